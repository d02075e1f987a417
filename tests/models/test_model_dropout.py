"""Dropout behind norm + SiLU: its law, and that a kernel, where there is one, drops what is dropped without it."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.fused import norm_silu as fused
from models.fused.library import library
from models.fused.norm_silu import norm_silu

WITH_COMPILER = pytest.mark.skipif(library("norm_silu") is None, reason="needs a C++ compiler")


@pytest.fixture(params=[pytest.param("kernel", marks=WITH_COMPILER), "plain"])
def _way(request, monkeypatch):
    """With the kernel, and as where there is none."""
    if request.param == "plain":
        monkeypatch.setattr(fused, "_kernel_of", lambda *_: None)


def problem(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[nn.GroupNorm, Tensor]:
    """A normalisation, and images in channels_last that want gradients."""
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, shape[1], dtype=dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm, torch.randn(shape).to(dtype).to(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.usefixtures("_way")
def test_each_value_is_kept_with_its_probability_and_the_mean_with_it() -> None:
    norm, x = problem(8, 64, 32, 32)
    dropout = nn.Dropout(0.25)
    torch.manual_seed(1)
    dropped, whole = norm_silu(x, norm, dropout=dropout), norm_silu(x, norm)
    zero = dropped == 0
    count = zero.numel()
    assert abs(float(zero.float().mean()) - 0.25) < 5 * (0.25 * 0.75 / count) ** 0.5
    # each of the eight bytes of a number, and neighbours are independent
    eighths = zero.permute(0, 2, 3, 1).reshape(-1, 8).float()
    assert float((eighths.mean(0) - 0.25).abs().max()) < 5 * (0.25 * 0.75 / (count / 8)) ** 0.5
    assert float((torch.corrcoef(eighths.T) - torch.eye(8)).abs().max()) < 5 / (count / 8) ** 0.5
    torch.testing.assert_close(dropped[~zero], (whole / 0.75)[~zero])
    torch.manual_seed(1)
    assert torch.equal(norm_silu(x, norm, dropout=dropout), dropped)
    assert torch.equal(norm_silu(x, norm, dropout=dropout.eval()), whole)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_gradient_is_that_of_what_is_kept(layout: torch.memory_format) -> None:
    norm, x = problem(2, 32, 12, 12)
    x = x.detach().to(memory_format=layout).requires_grad_()
    added = torch.randn(2, 32, requires_grad=True)
    y = norm_silu(x, norm, added=added, dropout=nn.Dropout(0.5))
    kept = (y != 0).double() * 2
    exact = [value.detach().double().requires_grad_() for value in (x, added)]
    h = copy.deepcopy(norm).double()(exact[0] + exact[1].unflatten(1, (-1, 1, 1)))
    expected = torch.autograd.grad((functional.silu(h) * kept).square().sum(), exact)
    for ours, theirs in zip(torch.autograd.grad(y.square().sum(), (x, added)), expected, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


@WITH_COMPILER
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_without_the_kernel_the_same_values_are_dropped(monkeypatch, dtype: torch.dtype, error: float) -> None:
    """So a run does not depend on a compiler. Plain operations round to bfloat16 three times."""
    norm, x = problem(2, 32, 6, 5, dtype=dtype)

    def found() -> list[Tensor]:
        torch.manual_seed(1)
        y = norm_silu(x, norm, dropout=nn.Dropout(0.3))
        return [y.detach(), *torch.autograd.grad(y.square().sum(), x)]

    with_kernel = found()
    monkeypatch.setattr(fused, "_kernel_of", lambda *_: None)
    without = found()
    assert torch.equal(with_kernel[0] == 0, without[0] == 0)
    for one, other in zip(with_kernel, without, strict=True):
        assert float((one - other).double().norm() / other.double().norm()) < error


def test_under_torch_func_it_is_pytorchs_own() -> None:
    """Which knows how random numbers go with a batch of functions."""
    norm, x = problem(3, 16, 4, 4)
    dropped = torch.func.vmap(lambda x: norm_silu(x[None], norm, dropout=nn.Dropout(0.5)), randomness="different")(x)
    assert 0.3 < float((dropped == 0).float().mean()) < 0.7
