"""Samplers: one file per method, chosen by name."""

import inspect
from typing import Any

from samplers.adaptive_sde import AdaptiveSDE
from samplers.ancestral import Ancestral
from samplers.base import Progress, Sampler, SampleResult, SamplingError, Score
from samplers.ddim import DDIM
from samplers.deis import DEIS
from samplers.dpm_solver import DPMSolver
from samplers.dpmpp import DPMSolverPP
from samplers.dpmpp_sde import SDEDPMSolverPP
from samplers.euler_maruyama import EulerMaruyama
from samplers.exponential_sde import ExponentialSDE
from samplers.heun import Heun
from samplers.ipndm import IPNDM
from samplers.langevin import CORRECTORS
from samplers.noise import GeneratorNoise, Noise, PathNoise
from samplers.ode import ProbabilityFlow
from samplers.predictor_corrector import PREDICTORS, PredictorCorrector
from samplers.reverse_diffusion import ReverseDiffusion
from samplers.stochastic_heun import StochasticHeun
from samplers.threshold import THRESHOLDS
from samplers.time_grid import GRIDS, time_grid
from samplers.unipc import UniPC
from sde_lib import lookup

SAMPLERS: dict[str, type[Sampler]] = {
    # stochastic: the reverse SDE
    "ancestral": Ancestral,
    "reverse_diffusion": ReverseDiffusion,
    "euler_maruyama": EulerMaruyama,
    "pc": PredictorCorrector,
    "stochastic_heun": StochasticHeun,
    "exponential_sde": ExponentialSDE,
    "dpmpp_sde": SDEDPMSolverPP,
    "adaptive_sde": AdaptiveSDE,
    # deterministic: the probability-flow ODE
    "ode": ProbabilityFlow,
    "ddim": DDIM,
    "euler": DDIM,
    "heun": Heun,
    "dpm_solver": DPMSolver,
    "dpmpp": DPMSolverPP,
    "unipc": UniPC,
    "deis": DEIS,
    "ipndm": IPNDM,
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
    "THRESHOLDS",
    "GeneratorNoise",
    "Noise",
    "PathNoise",
    "Progress",
    "SampleResult",
    "Sampler",
    "SamplingError",
    "Score",
    "get_sampler",
    "sampler_options",
    "time_grid",
]
