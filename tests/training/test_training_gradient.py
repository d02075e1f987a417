"""The gradient of a batch: the same by autocast, by bfloat16 weights, by a CUDA graph, and in any number of parts."""

import pytest
import torch

from data import StepDraws
from models import ScoreModel, UNet
from models.fused import convolution
from sde_lib import VPSDE
from training.gradient import Gradient, KeptDraws, LeanGradient, ReplayedGradient, gradient_of
from training.objective import chain, continuous, training_loss
from training.processes import ALONE

BATCH = 4
LOSS = training_loss(
    continuous(VPSDE(), weighting="uniform", time_law="uniform", low_discrepancy=True, importance=False),
    conditional=True,
    label_dropout=0.5,
)


def awake(precision="bfloat16", device="cpu"):
    """A small network with dropout, whose silent layers speak."""
    torch.manual_seed(0)
    net = UNet(1, 8, channels=8, channel_mult=(1, 2), res_blocks=1, attention_resolutions=(4,), num_classes=3)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return ScoreModel(net.to(memory_format=torch.channels_last), VPSDE(), "v", precision=precision).to(device)


def parts_of(step, count=1, device="cpu"):
    """The data of a step and their random numbers, in equal parts."""
    generator = torch.Generator().manual_seed(step)
    x0 = torch.rand(BATCH, 1, 8, 8, generator=generator).to(device)
    y = torch.randint(3, (BATCH,), generator=generator).to(device)
    draws = StepDraws(0, step, BATCH, range(BATCH), device)
    return list(zip(x0.chunk(count), y.chunk(count), draws.chunk(count), strict=True))


def found(gradient, model, step=0, count=1, device="cpu"):
    torch.manual_seed(step)  # of dropout
    loss = gradient(parts_of(step, count, device))
    return [loss, *(p.grad.clone() for p in model.parameters())]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("count", [1, 2])
def test_bfloat16_weights_give_the_bits_of_autocast(monkeypatch, count):
    """But for the convolutions of few pixels, which round in another order where there are matrix units."""
    monkeypatch.setattr(convolution, "matrix_units", lambda: False)
    model = awake()
    lean, plain = LeanGradient(model, LOSS), Gradient(model, LOSS)
    for step in range(2):
        assert same(found(lean, model, step, count), found(plain, model, step, count))
        with torch.no_grad():
            for p in model.parameters():
                p += 0.01 * p.grad
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())


def test_parts_add_up_to_the_gradient_of_the_mean():
    model = awake("float32").eval()  # dropout would be another in each part
    whole, cut = (found(Gradient(model, LOSS), model, count=count) for count in (1, 4))
    for one, other in zip(whole, cut, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Gradient, LeanGradient])
def test_gradients_of_an_earlier_batch_are_gone(kind):
    model = awake()
    gradient = kind(model, LOSS)
    first = found(gradient, model, 1)
    found(gradient, model, 2)
    assert same(found(gradient, model, 1), first)


def test_kept_draws_are_those_of_the_step_at_places_that_stay():
    x = torch.zeros(BATCH, 3)

    def ask(draws):
        uniform = draws.rows("time", lambda generator: torch.rand(draws.batch, generator=generator))
        return [draws.normal_like("noise", x), draws.uniform("u", (2,)), uniform]

    first, second = (StepDraws(0, step, BATCH, range(BATCH)) for step in (1, 2))
    kept = KeptDraws(first)
    recorded = ask(kept)
    assert same(recorded, ask(first))
    kept.rewind()
    again = ask(kept)
    assert [value.data_ptr() for value in again] == [value.data_ptr() for value in recorded]
    kept.renew(second)
    assert same(recorded, ask(second))
    assert (kept.batch, kept.places) == (BATCH, range(BATCH))


def test_what_is_chosen_for_a_precision():
    assert type(gradient_of(awake("float32"), LOSS, ALONE, graph=True)) is Gradient
    assert type(gradient_of(awake("bfloat16"), LOSS, ALONE, graph=True)) is LeanGradient


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_graph_gives_the_bits_of_what_it_records(precision, count):
    model = awake(precision, "cuda")
    kind = LeanGradient if precision == "bfloat16" else Gradient
    replayed = gradient_of(model, LOSS, ALONE, graph=True)
    assert type(replayed) is ReplayedGradient
    assert type(gradient_of(model, LOSS, ALONE, graph=False)) is kind
    for step in range(3):
        wanted = found(kind(model, LOSS), model, step, count, "cuda")
        assert same(found(replayed, model, step, count, "cuda"), wanted)
        with torch.no_grad():
            for p, change in zip(model.parameters(), wanted[1:], strict=True):
                p += 0.01 * change


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@torch.no_grad()
def test_a_frozen_network_is_replayed_with_its_present_weights(precision):
    model = awake(precision, "cuda").eval().requires_grad_(False)
    graphs = model._graphed
    for step in range(4):
        x, t = torch.randn(2 + step % 2, 1, 8, 8, device="cuda"), torch.rand(2 + step % 2, device="cuda")
        for y in (None, torch.tensor([1, 0, 2], device="cuda")[: len(x)]):
            for _ in range(3):
                replayed = model.eps(x, t, y)
                with torch.enable_grad():  # goes around the graph
                    assert torch.equal(replayed, model.eps(x, t, y))
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    assert 1 <= len(graphs._seen) <= 2
    assert all(graphs._seen.values())


CHAIN = chain(VPSDE(), 50)
LAWS = [
    continuous(VPSDE(), weighting="likelihood", time_law=law, low_discrepancy=True, importance=importance)
    for law in ("uniform", "log_snr", "logistic")
    for importance in (False, True)
]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("objective", [CHAIN, *LAWS])
def test_every_loss_can_be_recorded(objective):
    model, loss = awake("bfloat16", "cuda"), training_loss(objective, conditional=True, label_dropout=0.5)
    wanted = found(LeanGradient(model, loss), model, 1, 1, "cuda")
    assert same(found(gradient_of(model, loss, ALONE, graph=True), model, 1, 1, "cuda"), wanted)
