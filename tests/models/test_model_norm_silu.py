"""The fused kernel against PyTorch's own operations in float64."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.fused import library as libraries
from models.fused.norm_silu import norm_silu, normalise

SHAPES = [(3, 32, 5, 5), (2, 128, 32, 32), (1, 64, 9, 7), (2, 12, 1, 1), (4, 48, 13, 6)]
WITH_COMPILER = pytest.mark.skipif(libraries.library("norm_silu") is None, reason="needs a C++ compiler")
pytestmark = WITH_COMPILER


def groupnorm(channels: int, groups: int) -> nn.GroupNorm:
    norm = nn.GroupNorm(groups, channels, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def plain(x: Tensor, norm: nn.GroupNorm, added: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The formula, in the precision of x."""
    h = norm(x + added.unflatten(1, (-1, 1, 1)))
    return functional.silu((1 + scale.unflatten(1, (-1, 1, 1))) * h + shift.unflatten(1, (-1, 1, 1)))


def problem(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[nn.GroupNorm, list[Tensor]]:
    """A normalisation, and inputs (x, added, scale, shift) in channels_last that want gradients."""
    torch.manual_seed(0)
    norm = groupnorm(shape[1], 4)
    x = (3 * torch.randn(shape) + 2).to(dtype).to(memory_format=torch.channels_last)
    return norm, [value.requires_grad_() for value in (x, *(torch.randn(shape[:2]) for _ in range(3)))]


def relative(ours: Tensor, exact: Tensor) -> float:
    ours, exact = ours.detach().double(), exact.detach()
    return float((ours - exact).norm() / exact.norm().clamp(min=1e-6))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-6), (torch.bfloat16, 4e-3)], ids=["float32", "bf16"])
def test_values_and_gradients_are_those_of_the_formula(shape: tuple, dtype: torch.dtype, error: float) -> None:
    """Bfloat16 resolves 2^-9 = 2e-3 of what is written; gradients of vectors are sums in float32."""
    norm, inputs = problem(shape, dtype)
    exact_norm = copy.deepcopy(norm).double()
    exact_inputs = [value.detach().double().requires_grad_() for value in inputs]
    x, added, scale, shift = inputs
    y = norm_silu(x, norm, added=added, scale=scale, shift=shift)
    assert type(y.grad_fn).__name__ == "_NormSiLUBackward"  # it is the kernel that is tested
    exact = plain(exact_inputs[0], exact_norm, *exact_inputs[1:])
    upstream = torch.randn_like(y)
    gradients = torch.autograd.grad(y, (*inputs, *norm.parameters()), upstream)
    expected = torch.autograd.grad(exact, (*exact_inputs, *exact_norm.parameters()), upstream.double())
    assert relative(y, exact) < error
    for ours, theirs in zip(gradients, expected, strict=True):
        # the gradient before a normalisation is what is left of larger terms: of single pixels, nothing is left
        size = float(upstream.double().norm()) if shape[2:] == (1, 1) else float(theirs.norm())
        assert float((ours.double() - theirs).norm()) < 4 * error * size


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-6), (torch.bfloat16, 4e-3)], ids=["float32", "bf16"])
def test_the_normalisation_alone_is_pytorchs_own(shape: tuple, dtype: torch.dtype, error: float) -> None:
    norm, (x, *_) = problem(shape, dtype)
    exact_norm, exact_x = copy.deepcopy(norm).double(), x.detach().double().requires_grad_()
    y, exact = normalise(x, norm), exact_norm(exact_x)
    assert type(y.grad_fn).__name__ == "_NormSiLUBackward"
    upstream = torch.randn_like(y)
    gradients = torch.autograd.grad(y, (x, *norm.parameters()), upstream)
    expected = torch.autograd.grad(exact, (exact_x, *exact_norm.parameters()), upstream.double())
    assert relative(y, exact) < error
    for ours, theirs in zip(gradients, expected, strict=True):
        size = float(upstream.double().norm()) if shape[2:] == (1, 1) else float(theirs.norm())
        assert float((ours.double() - theirs).norm()) < 4 * error * size


def test_a_normalisation_without_weights_is_pytorchs_own() -> None:
    _, (x, *_) = problem((2, 32, 6, 6))
    norm = nn.GroupNorm(4, 32, affine=False)
    assert torch.equal(normalise(x, norm), norm(x))
    assert torch.equal(norm_silu(x, norm), functional.silu(norm(x)))


def test_values_and_slopes_are_those_of_silu_however_large_the_argument() -> None:
    """An offset of every size, from where the sigmoid is 0 in float32 to where it is 1."""
    norm = nn.GroupNorm(1, 128)
    sizes = torch.cat([torch.logspace(-6, 30, 31), torch.linspace(1, 90, 32), torch.zeros(1)])
    offset = torch.cat([sizes, -sizes]).requires_grad_()
    x = torch.zeros(1, 128, 4, 4).contiguous(memory_format=torch.channels_last)
    y = norm_silu(x, norm, shift=offset[None])[0, :, 0, 0]
    exact = functional.silu(offset.double())
    (slope,) = torch.autograd.grad(y.sum(), offset)
    (exact_slope,) = torch.autograd.grad(exact.sum(), offset)
    least = 2e-38 * (1 + offset.abs().double())  # the sigmoid ends where float32 does
    assert bool(((y - exact).abs() <= 2e-6 * exact.abs() + least).all())
    assert bool(((slope - exact_slope).abs() <= 4e-6 * exact_slope.abs() + least).all())


def test_a_large_mean_does_not_cancel() -> None:
    norm, (x, *_) = problem((2, 32, 16, 16))
    far = (x.detach() + 1000).contiguous(memory_format=torch.channels_last)
    ours, theirs = far.requires_grad_(), far.detach().double().requires_grad_()
    y, exact = norm_silu(ours, norm), functional.silu(copy.deepcopy(norm).double()(theirs))
    upstream = torch.randn_like(y)
    assert relative(y, exact) < 1e-4  # float32 resolves 1000 to 6e-5
    gradients = torch.autograd.grad(y, ours, upstream), torch.autograd.grad(exact, theirs, upstream.double())
    assert relative(gradients[0][0], gradients[1][0]) < 1e-4


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    norm, (x, added, scale, shift) = problem((3, 32, 20, 20))

    def results() -> list[Tensor]:
        y = norm_silu(x, norm, added=added, scale=scale, shift=shift)
        return [y, *torch.autograd.grad(y.square().sum(), (x, added, scale, shift, norm.weight))]

    threads = torch.get_num_threads()
    several = results()
    try:
        torch.set_num_threads(5 - threads if threads in (2, 3) else 2)
        other = results()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(several, other, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(bad: float) -> None:
    norm, (x, *_) = problem((2, 32, 9, 9))
    spoiled = x.detach().clone(memory_format=torch.preserve_format)
    spoiled[0, 3, 4, 5] = bad
    y = norm_silu(spoiled, norm)
    assert y[0, :8].isnan().any()
    assert y[1].isfinite().all()


def test_gradients_of_gradients_are_those_of_the_formula() -> None:
    def twice(y: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(value.pow(3).sum() for value in first), inputs)

    norm, inputs = problem((2, 16, 6, 6))
    exact = [value.detach().double().requires_grad_() for value in inputs]
    x, added, scale, shift = inputs
    ours = twice(norm_silu(x, norm, added=added, scale=scale, shift=shift), inputs)
    theirs = twice(plain(exact[0], copy.deepcopy(norm).double(), *exact[1:]), exact)
    assert all(relative(one, two) < 1e-4 for one, two in zip(ours, theirs, strict=True))


def test_gradients_of_several_vectors_at_once_are_those_of_each() -> None:
    norm, (x, *_) = problem((2, 32, 6, 6))
    y = norm_silu(x, norm)
    vectors = torch.randn(5, *y.shape)
    (together,) = torch.autograd.grad(y, x, vectors, retain_graph=True, is_grads_batched=True)
    each = [torch.autograd.grad(y, x, vector, retain_graph=True)[0] for vector in vectors]
    assert torch.equal(together, torch.stack(each))


def test_forward_mode_and_vmap_go_around_the_kernel() -> None:
    norm, (x, *_) = problem((2, 32, 6, 6))
    x, direction = x.detach(), torch.randn(x.shape)
    value, slope = torch.func.jvp(lambda x: norm_silu(x, norm), (x,), (direction,))
    y = norm_silu(x.requires_grad_(), norm)
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    torch.testing.assert_close(value, y)
    torch.testing.assert_close(slope.sum(), (gradient * direction).sum(), rtol=1e-4, atol=1e-3)


SWITCHED = """
import torch
from models.fused.library import library
from models.fused.norm_silu import norm_silu
norm = torch.nn.GroupNorm(4, 32)
x = torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
print(library("norm_silu") is None, f"{float(norm_silu(x, norm).detach().double().norm()):.4f}")
"""


def told(**environment: str) -> tuple[list[str], str]:
    done = subprocess.run(
        [sys.executable, "-c", SWITCHED], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split(), done.stderr


def test_without_a_compiler_the_same_is_computed(tmp_path, capsys) -> None:
    exec(SWITCHED, {})
    absent, norm = capsys.readouterr().out.split()
    assert absent == "False"
    assert told(SCORE_SDE_FUSED="0") == (["True", norm], "")
    assert told(CXX="no-such-compiler") == (["True", norm], "")
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho version; [ $1 = --version ] || { echo out of order >&2; exit 1; }\n")
    broken.chmod(0o755)
    values, warning = told(CXX=str(broken), XDG_CACHE_HOME=str(tmp_path))
    assert values == ["True", norm]
    assert "norm_silu.cpp could not be compiled" in warning
    assert "out of order" in warning
