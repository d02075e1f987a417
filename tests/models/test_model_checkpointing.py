"""Activation checkpointing: the same numbers to the bit, fewer activations, and no trace in the weights."""

import pytest
import torch

from models import MODELS, PRECISIONS, ScoreModel, recompute_blocks
from models.checkpointing import Block
from sde_lib import VPSDE, log_likelihood

UNETS = {"image_size": 8, "channels": 32, "channel_mult": (1, 2), "res_blocks": 2, "attention_resolutions": (4,)}
SMALL = {
    "unet": (UNETS, (3, 8, 8)),
    "ncsnpp": ({**UNETS, "progressive_input": "residual", "progressive": "skip"}, (3, 8, 8)),
    "adm": ({**UNETS, "resample_in_blocks": True}, (3, 8, 8)),
    "dit": ({"image_size": 8, "channels": 24, "depth": 3, "heads": 2}, (3, 8, 8)),
    "mlp": ({"dim": 5, "width": 24, "blocks": 3}, (5,)),
}
FALLS = {"unet": 0.65, "ncsnpp": 0.65, "adm": 0.6, "dit": 0.45, "mlp": 0.8}
"""Share of the bytes that is kept still: at most this, at these sizes (deeper networks keep less)."""
every_network = pytest.mark.parametrize("name", MODELS)


def build(name, recomputed, **options):
    """A network as in training, with dropout, no part of it silent."""
    torch.manual_seed(0)
    settings, shape = SMALL[name]
    net = MODELS[name](**settings | {"dropout": 0.3} | options).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.2)
    recompute_blocks(net, recomputed)
    return net, shape


def batch(shape, count=4):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, *shape, generator=generator)
    return x, torch.linspace(10, 900, count)


def gradients(net, shape, precision="float32", parts=1):
    """Of a batch, by parts that accumulate; outputs and dropout's seed are the same for all."""
    x, c_noise = batch(shape)
    net.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    outs = []
    for part in zip(x.chunk(parts), c_noise.chunk(parts), strict=True):
        with torch.autocast("cpu", PRECISIONS[precision], enabled=precision != "float32"):
            out = net(*part)
        out.float().square().mean().backward()
        outs.append(out.detach())
    return [torch.cat(outs), *(p.grad for p in net.parameters() if p.grad is not None), torch.rand(3)]


@every_network
@pytest.mark.parametrize(("precision", "parts"), [("float32", 1), ("float32", 2), ("bfloat16", 1)])
def test_outputs_gradients_and_later_random_numbers_are_the_same_bits(name, precision, parts):
    plain, again = (gradients(*build(name, on), precision, parts) for on in (False, True))
    assert len(plain) == len(again) > 5
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_dropout_matters_to_these_gradients():
    # else the test above would not see that it drops the same values the second time
    net, shape = build("unet", True)
    first = gradients(net, shape)
    for layer in net.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    assert not torch.equal(first[1], gradients(net, shape)[1])


def kept_bytes(net, shape):
    own, kept = {p.untyped_storage().data_ptr() for p in net.parameters()}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = net(*batch(shape, 16))
    assert out.requires_grad
    return sum(size for size, _ in kept.values())


@every_network
def test_less_is_kept_for_the_backward_pass(name):
    plain, again = (kept_bytes(*build(name, on)) for on in (False, True))
    assert again < FALLS[name] * plain


@every_network
def test_names_weights_and_the_number_of_outputs_stay(name):
    (plain, _), (again, _) = (build(name, on) for on in (False, True))
    assert list(plain.state_dict()) == list(again.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), again.state_dict().values(), strict=True))
    assert [n for n, _ in plain.named_modules()] == [n for n, _ in again.named_modules()]


def passes(net, shape, **grad):
    """How often each block began to run in a pass forwards and backwards (the second time it may stop early)."""
    ran = []
    outer = [m for m in net.modules() if isinstance(m, Block) and m.recomputed]
    handles = [block.register_forward_pre_hook(lambda module, _: ran.append(id(module))) for block in outer]
    x, c_noise = batch(shape)
    out = net(x.requires_grad_(grad.get("by_input", False)), c_noise)
    if out.requires_grad:
        out.sum().backward()
    for handle in handles:
        handle.remove()
    return {ran.count(id(block)) for block in outer}


@every_network
def test_blocks_run_twice_in_training_and_once_elsewhere(name):
    net, shape = build(name, True)
    assert passes(net.train(), shape) == {2}
    with torch.no_grad():
        assert passes(net, shape) == {1}
    assert passes(net.eval(), shape, by_input=True) == {1}
    recompute_blocks(net, False)
    assert not any(m.recomputed for m in net.modules() if isinstance(m, Block))


@every_network
def test_no_block_lies_in_one_that_is_recomputed(name):
    net, _ = build(name, True)
    outer = [m for m in net.modules() if isinstance(m, Block) and m.recomputed]
    assert outer
    assert not any(m.recomputed for block in outer for m in block.modules() if isinstance(m, Block) and m is not block)


@every_network
@pytest.mark.parametrize("training", [False, True])
def test_transforms_of_functions_see_no_difference(name, training):
    results = []
    for on in (False, True):
        net, shape = build(name, on, dropout=0.0)
        net.train(training)
        x, c_noise = batch(shape)
        tangent = torch.ones_like(x)
        weights = dict(net.named_parameters())

        def loss(weights, net=net, x=x, c_noise=c_noise):
            return torch.func.functional_call(net, weights, (x, c_noise)).square().mean()

        results.append(
            [
                *torch.func.vjp(lambda x, net=net, c=c_noise: net(x, c), x)[1](tangent),
                *torch.func.grad(loss)(weights).values(),
            ]
        )
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_likelihood_is_the_same():
    values = []
    for on in (False, True):
        net, shape = build("unet", on)
        model, x = ScoreModel(net, VPSDE()).eval(), batch(shape, 2)[0].double()
        generator = torch.Generator().manual_seed(0)
        values.append(
            log_likelihood(model.sde, model, x, method="euler", steps=3, generator=generator, probes=2).log_prob
        )
    assert torch.equal(*values)
