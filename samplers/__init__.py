"""Samplers: one file per method, chosen by name."""

import inspect
from typing import Any

from samplers.ancestral import Ancestral
from samplers.base import Progress, Sampler, SampleResult, Score
from samplers.euler_maruyama import EulerMaruyama
from samplers.langevin import CORRECTORS
from samplers.ode import ProbabilityFlow
from samplers.predictor_corrector import PREDICTORS, PredictorCorrector
from samplers.reverse_diffusion import ReverseDiffusion
from samplers.time_grid import GRIDS, time_grid
from sde_lib import lookup

SAMPLERS: dict[str, type[Sampler]] = {
    "ancestral": Ancestral,
    "reverse_diffusion": ReverseDiffusion,
    "euler_maruyama": EulerMaruyama,
    "pc": PredictorCorrector,
    "ode": ProbabilityFlow,
}


def sampler_options(name: str) -> tuple[str, ...]:
    """Names of the options that a sampler takes, its own first."""
    own = inspect.signature(lookup(SAMPLERS, name, "sampler").__init__).parameters
    shared = inspect.signature(Sampler.__init__).parameters
    return tuple(key for key in dict.fromkeys([*own, *shared]) if key not in ("self", "options"))


def get_sampler(name: str, **options: Any) -> Sampler:
    """Build a sampler.

    Args:
        name: a key of ``SAMPLERS``.
        **options: steps, grid, t_end, denoise, and the method's own.

    Raises:
        ValueError: unknown name, or an option out of range.
        TypeError: an option that this sampler does not have; the message lists those it has.
    """
    accepted = sampler_options(name)
    unknown = [key for key in options if key not in accepted]
    if unknown:
        raise TypeError(f"sampler {name!r} has no option {', '.join(unknown)}; it takes {', '.join(accepted)}")
    return SAMPLERS[name](**options)


__all__ = [
    "CORRECTORS",
    "GRIDS",
    "PREDICTORS",
    "SAMPLERS",
    "Progress",
    "SampleResult",
    "Sampler",
    "Score",
    "get_sampler",
    "sampler_options",
    "time_grid",
]
