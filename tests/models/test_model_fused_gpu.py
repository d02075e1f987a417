"""The kernel for GPUs against the formula in float64: by Triton's interpreter here, and on a GPU where there is one."""

import copy
import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from models.fused.norm_silu import norm_silu
from models.fused.residual import residual

ROOT = str(pytest.importorskip("models").__path__[0]).removesuffix("/models")
INTERPRETED = """
import json, sys, torch
from torch.nn import functional
from models.fused import norm_silu_triton as kernel

(samples, channels, height, width), groups, drop, adds, silu = json.loads(sys.argv[1])
torch.manual_seed(0)
x = (3 * torch.randn(samples, channels, height, width) + 2).contiguous(memory_format=torch.channels_last)
added = torch.randn(samples, channels) if adds else None
gain, offset = torch.randn(channels).expand(samples, -1), torch.randn(samples, channels)
noise = torch.randint(256, (x.numel(),), dtype=torch.uint8) if drop else None
dy = torch.randn(x.shape).contiguous(memory_format=torch.channels_last)
y, mean, rstd = kernel.forward(x, added, gain, offset, noise, drop, groups, silu, 1e-6)
found = kernel.backward(dy, x, added, gain, offset, noise, mean, rstd, drop, groups, silu)

exact = [None if value is None else value.double().requires_grad_() for value in (x, added, gain, offset)]
pixelwise = [value if value is None else value[:, :, None, None] for value in exact[1:]]
h = exact[0] if added is None else exact[0] + pixelwise[0]
h = functional.group_norm(h, groups, eps=1e-6) * pixelwise[1] + pixelwise[2]
h = functional.silu(h) if silu else h
if drop:
    h = h * (noise.as_strided(x.shape, x.stride()) >= drop) * (256 / (256 - drop))
wanted = torch.autograd.grad(h, [value for value in exact if value is not None], dy.double())
pairs = [(y, h), *zip([value for value in found if value is not None], wanted)]
print(json.dumps([float(((one - two).norm() / two.norm()).detach()) for one, two in pairs]))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize(
    "problem",
    [
        ((3, 32, 5, 5), 4, 0, True, True),
        ((2, 24, 9, 7), 6, 64, True, True),
        ((1, 48, 30, 32), 4, 20, False, True),
        ((2, 12, 1, 2), 4, 0, False, False),
    ],
    ids=str,
)
def test_values_and_gradients_by_the_interpreter(problem) -> None:
    """The shapes have widths and sizes that are no powers of two, several blocks of pixels, and one pixel or two."""
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED, json.dumps(problem)],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": ROOT, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    errors = json.loads(done.stdout)
    assert len(errors) == 4 + problem[3]
    assert max(errors) < 3e-6, errors


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(
    "shape", [(3, 32, 5, 5), (16, 128, 32, 32), (2, 384, 16, 16), (1, 64, 9, 7), (4, 48, 13, 6)], ids=str
)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 3e-6), (torch.bfloat16, 4e-3)], ids=["float32", "bf16"])
@pytest.mark.parametrize("p", [0.0, 0.25])
def test_values_and_gradients_on_a_gpu(shape, dtype, error, p) -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, shape[1], eps=1e-6).cuda()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (3 * torch.randn(shape) + 2).to("cuda", dtype, memory_format=torch.channels_last)
    inputs = [v.requires_grad_() for v in (x, *(torch.randn(shape[:2], device="cuda") for _ in range(3)))]
    exact = [value.detach().double().requires_grad_() for value in inputs]
    exact_norm = copy.deepcopy(norm).double()
    y = norm_silu(inputs[0], norm, added=inputs[1], scale=inputs[2], shift=inputs[3], dropout=nn.Dropout(p))
    assert type(y.grad_fn).__name__ == "_NormSiLUBackward"  # it is the kernel that is tested
    added, scale, shift = (value[:, :, None, None] for value in exact[1:])
    wanted = functional.silu((1 + scale) * exact_norm(exact[0] + added) + shift)
    if p:
        kept = y != 0  # silu is zero at zero only
        assert abs(float(kept.float().mean()) - 1 + p) < 5 * (p * (1 - p) / kept.numel()) ** 0.5
        wanted = wanted * kept / (1 - p)
    upstream = torch.randn_like(y)
    found = torch.autograd.grad(y, (*inputs, *norm.parameters()), upstream)
    expected = torch.autograd.grad(wanted, (*exact, *exact_norm.parameters()), upstream.double())
    for ours, theirs in zip((y, *found), (wanted, *expected), strict=True):
        assert float((ours.double() - theirs).detach().norm()) < 4 * error * float(theirs.detach().norm())


SUMS = """
import torch
from models.fused import residual_triton as kernel

for shape in [(2, 24, 9, 7), (3, 64, 40, 40)]:
    x, h = (torch.randn(shape).contiguous(memory_format=torch.channels_last) for _ in range(2))
    bias = torch.randn(shape[1])
    wanted = (x.double() + h.double() + bias.double()[:, None, None]) * 0.7
    print(float((kernel.forward(x, h, bias, 0.7) - wanted).abs().max()))
    print(float((kernel.channel_sums(x) - x.double().sum((0, 2, 3))).abs().max() / x.numel() ** 0.5))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_sums_by_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SUMS],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": ROOT, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    errors = [float(line) for line in done.stdout.split()]
    assert len(errors) == 4
    assert max(errors) < 1e-6, errors


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 3e-6), (torch.bfloat16, 8e-3)], ids=["float32", "bf16"])
@pytest.mark.parametrize("changes", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.5**0.5])
def test_a_residual_sum_on_a_gpu(dtype, error, changes, scale) -> None:
    torch.manual_seed(0)
    with torch.backends.cudnn.flags(allow_tf32=False):
        conv = nn.Conv2d(32, 48, 3, padding=1)
        shortcut = nn.Conv2d(40, 48, 1) if changes else nn.Identity()
        modules = [module.to("cuda", dtype, memory_format=torch.channels_last) for module in (conv, shortcut)]
        x, h = torch.randn(4, 40 if changes else 48, 16, 16), torch.randn(4, 32, 16, 16)
        x, h = (v.to("cuda", dtype, memory_format=torch.channels_last).requires_grad_() for v in (x, h))
        y = residual(x, modules[1], h, modules[0], scale)
        assert type(y.grad_fn).__name__ == "_ResidualBackward"  # it is the kernel that is tested
        exact = [copy.deepcopy(module).double() for module in modules]
        far = [v.detach().double().requires_grad_() for v in (x, h)]
        wanted = (exact[1](far[0]) + exact[0](far[1])) * scale
        upstream = torch.randn_like(y)
        inputs = (x, h, *modules[0].parameters(), *modules[1].parameters())
        far_inputs = (*far, *exact[0].parameters(), *exact[1].parameters())
        found = torch.autograd.grad(y, inputs, upstream)
        expected = torch.autograd.grad(wanted, far_inputs, upstream.double())
    for ours, theirs in zip((y, *found), (wanted, *expected), strict=True):
        assert float((ours.double() - theirs).detach().norm()) < error * float(theirs.detach().norm())
