"""Processes with unusual arguments beside the defaults, and times at which to look at them."""

import math

import pytest
import torch
from oracles import PROCESSES

from sde_lib import EDMSDE, VESDE, VPSDE, CosineVPSDE, SubVPSDE

VARIANTS = {
    "vp-flat": VPSDE(2.0, 2.0),
    "vp-mild": VPSDE(0.01, 7.0),
    "subvp-mild": SubVPSDE(0.01, 7.0),
    "ve-narrow": VESDE(0.1, 3.0),
    "cosine-clipped": CosineVPSDE(0.02, 30.0),
    "edm-linear": EDMSDE(0.01, 20.0, rho=1.0),
}
ALL = PROCESSES | VARIANTS
every_process = pytest.mark.parametrize("sde", ALL.values(), ids=ALL.keys())


def times(sde, n=400, start=None, dtype=torch.float64):
    """From t_min to T, dense at both ends of the scale of log t, off the kinks."""
    start = sde.t_min if start is None else start
    t = torch.cat([torch.logspace(math.log10(start), 0, n).double(), torch.linspace(start, sde.T, n).double()])
    t = t.clamp(start, sde.T).sort().values.unique()
    for kink in sde.breakpoints:
        t = t[(t - kink).abs() > 1e-6]
    return t.to(dtype)


def derivative(fn, t):
    t = t.clone().requires_grad_()
    value = fn(t)
    if not value.requires_grad:  # a constant
        return torch.zeros_like(t)
    return torch.autograd.grad(value.sum(), t)[0]
