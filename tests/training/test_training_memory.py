"""The estimate of memory against what autograd really keeps."""

import pytest
import torch

from models import EMA, MLP, ScoreModel, UNet
from sde_lib import VPSDE
from training import TrainState, estimate_memory

UNET = {"channels": 8, "channel_mult": (1, 2), "res_blocks": 1, "attention_resolutions": (4,), "dropout": 0.1}
NETWORKS = {
    "unet": ((3, 8, 8), lambda: UNet(3, 8, **UNET)),
    "unet with classes": ((1, 8, 8), lambda: UNet(1, 8, **UNET, num_classes=10)),
    "mlp": ((2,), lambda: MLP(2, width=32, blocks=2, dropout=0.1)),
}


@pytest.fixture(params=NETWORKS)
def case(request):
    """(shape of a sample, model)."""
    shape, make = NETWORKS[request.param]
    return shape, ScoreModel(make(), VPSDE(), "edm", "log_snr")


def kept_by_autograd(model, shape, batch_size):
    """Bytes of the distinct storages that a forward pass on the CPU saves for the backward pass, without weights."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor too, so that its address stays taken
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model.eps(torch.randn(batch_size, *shape), torch.linspace(0.1, 0.9, batch_size))
    assert out.requires_grad
    return sum(size for size, _ in kept.values())


def test_activations_are_those_that_autograd_keeps(case):
    shape, model = case
    for batch_size in (1, 6):
        estimate = estimate_memory(model, shape, batch_size)
        # 2%: kernels of the meta device and of the CPU may keep other small tensors (statistics, random seeds)
        assert estimate.activations == pytest.approx(kept_by_autograd(model, shape, batch_size), rel=0.02)


def test_activations_grow_with_the_batch_and_the_rest_does_not(case):
    shape, model = case
    one, four = (estimate_memory(model, shape, batch_size) for batch_size in (3, 12))
    assert four.activations == pytest.approx(4 * one.activations, rel=0.02)
    assert four.resident == one.resident


def test_what_stays_is_weights_gradient_two_moments_and_average(case):
    shape, model = case
    state = TrainState(model, torch.optim.AdamW(model.parameters(), fused=True), EMA(model))
    model.eps(torch.randn(2, *shape), torch.tensor([0.2, 0.7])).square().sum().backward()
    state.optimizer.step()
    moments = [
        value for entry in state.optimizer.state_dict()["state"].values() for k, value in entry.items() if k != "step"
    ]
    held = [*model.parameters(), *state.ema.model.parameters(), *moments]
    gradients = sum(p.numel() for p in model.parameters() if p.grad is not None)
    expected = 4 * (sum(t.numel() for t in held) + gradients)
    unused = sum(p.numel() for p in model.parameters() if p.grad is None)  # none, or the classes that were not given
    assert unused == 0
    assert estimate_memory(model, shape, 1).resident == expected


def test_every_other_average_takes_as_much_as_the_weights(case):
    shape, model = case
    one, four = (estimate_memory(model, shape, 3, averages) for averages in (1, 4))
    assert four.resident - one.resident == 3 * 4 * sum(p.numel() for p in model.parameters())
    assert four.activations == one.activations


def test_the_model_is_left_as_it_was(case):
    shape, model = case
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.precision = "bfloat16"
    low = estimate_memory(model, shape, 4)
    assert not model.training
    assert model.precision == "bfloat16"
    assert all(p.device.type == "cpu" and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    model.precision = "float32"
    assert estimate_memory(model, shape, 4) == low  # the estimate is that of float32


def test_the_text_is_in_mebibytes(case):
    estimate = type(estimate_memory(case[1], case[0], 1))(resident=5 * 2**20, activations=37 * 2**20)
    assert str(estimate) == (
        "42 MiB: 5 for weights, gradients, optimizer and averages, 37 for the activations of a batch in float32"
    )
