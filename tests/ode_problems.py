"""Problems with exact solutions, for the tests of integration."""

import math

import torch

from sde_lib import METHODS

TOLERANT = [name for name, kind in METHODS.items() if kind != "fixed"]
DIRECTIONS = [(0.2, 1.7), (1.7, 0.2)]

# Global error over tolerance that a method may show: tolerances bound each step's error, and the global one is the sum
# over the steps. fehlberg2's estimate is of order 1, so that it takes hundreds of steps, all with errors of one sign.
SLACK = dict.fromkeys(TOLERANT, 10) | {"fehlberg2": 200}

X0 = torch.tensor([[-0.8, 0.1, 0.7], [0.3, -0.2, 0.5]], dtype=torch.float64)


def tangent(t, x):
    """Nonlinear and time-dependent; both directions are about equally well conditioned."""
    return 0.8 * torch.cos(2 * t) * (1 + x * x)


def tangent_solution(x, t0, t1):
    return torch.tan(torch.atan(x) + 0.4 * (math.sin(2 * t1) - math.sin(2 * t0)))


class Recorder:
    def __init__(self, fn):
        self.fn = fn
        self.times = []

    def __call__(self, t, x):
        self.times.append(float(t))
        return self.fn(t, x)


def options(method, steps=40):
    return {"steps": steps} if METHODS[method] == "fixed" else {}
