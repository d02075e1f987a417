"""The convolution of few pixels against PyTorch's own, and where it is used."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import ScoreModel, UNet
from models.fused import convolution as convolutions
from models.fused.convolution import FewPixels, pays
from models.lowered import lowered
from sde_lib import VPSDE

SHAPES = [(3, 5, 7, 8, 8), (2, 6, 4, 4, 4), (1, 3, 2, 1, 1), (4, 2, 3, 2, 5)]


def problem(shape: tuple[int, ...], dtype: torch.dtype, *, last: bool) -> list[Tensor]:
    """(x, weight, bias) that want gradients, in the layout channels_last or not."""
    torch.manual_seed(0)
    count, channels, out, height, width = shape
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(count, channels, height, width).to(dtype).contiguous(memory_format=layout)
    weight = torch.randn(out, channels, 3, 3).to(dtype).contiguous(memory_format=layout)
    return [value.requires_grad_() for value in (x, weight, torch.randn(out).to(dtype))]


@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "contiguous"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_of_the_convolution(shape: tuple, last: bool) -> None:
    inputs = problem(shape, torch.float64, last=last)
    ours, theirs = FewPixels.apply(*inputs), functional.conv2d(*inputs, padding=1)
    upstream = torch.randn_like(theirs)
    found, expected = (torch.autograd.grad(y, inputs, upstream) for y in (ours, theirs))
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    assert torch.equal(ours, theirs)


def test_in_bfloat16_the_gradient_errs_by_one_rounding() -> None:
    x, weight, _ = problem((16, 32, 32, 8, 8), torch.bfloat16, last=True)
    y = FewPixels.apply(x, weight, None)
    upstream = torch.randn_like(y)
    (found,) = torch.autograd.grad(y, weight, upstream)
    exact = [value.detach().double().requires_grad_() for value in (x, weight)]
    (expected,) = torch.autograd.grad(functional.conv2d(*exact, padding=1), exact[1], upstream.double())
    assert found.dtype == torch.bfloat16
    assert found.is_contiguous(memory_format=torch.channels_last)  # as the weights lie
    assert float((found.double() - expected).abs().max() / expected.abs().max()) < 2**-8


def test_gradients_of_gradients_are_those_of_the_convolution() -> None:
    inputs = problem((2, 3, 4, 4, 4), torch.float64, last=True)
    assert torch.autograd.gradgradcheck(FewPixels.apply, inputs)
    assert torch.autograd.gradgradcheck(lambda weight: FewPixels.apply(inputs[0].detach(), weight, None), inputs[1:2])


def test_gradients_of_several_vectors_at_once_are_those_of_each() -> None:
    inputs = problem((2, 3, 4, 4, 4), torch.float64, last=True)
    y = FewPixels.apply(*inputs)
    vectors = torch.randn(3, *y.shape, dtype=y.dtype)
    together = torch.autograd.grad(y, inputs, vectors, retain_graph=True, is_grads_batched=True)
    each = [torch.autograd.grad(y, inputs, vector, retain_graph=True) for vector in vectors]
    for found, expected in zip(together, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(expected))


def test_it_is_for_small_images_in_bfloat16_whose_weights_are_trained() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1).bfloat16()
    small, large = torch.randn(2, 4, 8, 8).bfloat16(), torch.randn(2, 4, 9, 8).bfloat16()
    assert pays(small, conv)
    assert not pays(large, conv)
    assert not pays(small.float(), conv)
    assert not pays(small, nn.Conv2d(4, 4, 3, padding=1))
    assert not pays(small, nn.Conv2d(4, 4, 3, padding=1, stride=2).bfloat16())
    assert not pays(small, nn.Conv2d(4, 4, 1).bfloat16())
    with torch.no_grad():
        assert not pays(small, conv)
    assert not pays(small, conv.requires_grad_(False))


def test_a_network_trains_by_it_as_without(monkeypatch) -> None:
    """On a processor that is said to have matrix units: the same values, and gradients that differ by rounding."""
    torch.manual_seed(0)
    net = UNet(3, 8, channels=16, channel_mult=(1, 2), res_blocks=1, attention_resolutions=(), dropout=0.0)
    for p in net.parameters():
        nn.init.normal_(p, std=0.1)  # not the zeros that branches start with
    model = ScoreModel(net, VPSDE(), precision="bfloat16")
    model = model.around(lowered(net.to(memory_format=torch.channels_last))[0])  # as training does
    x = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)

    def gradients(*, units: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        monkeypatch.setattr(convolutions, "matrix_units", lambda: units)
        loss = model.eps(x, torch.tensor([0.1, 0.3, 0.6, 0.9])).square().mean()
        return loss.detach(), torch.autograd.grad(loss, list(model.parameters()))

    (loss, ours), (same, theirs) = gradients(units=True), gradients(units=False)
    assert loss == same
    used = [not torch.equal(one, two) for one, two in zip(ours, theirs, strict=True)]
    kernels = [p.shape[2:] == (3, 3) for p in model.parameters()]
    assert sum(used[index] for index, is_kernel in enumerate(kernels) if is_kernel) >= 10
    for one, two in zip(ours, theirs, strict=True):
        assert float((one.double() - two.double()).norm()) <= 0.01 * float(two.double().norm())
