"""The deterministic samplers of diffusers and k-diffusion as solvers of our probability-flow ODE.

``PEERS`` maps a name to ``(sde, score_fn, x_T, nfe) -> (x0, calls)``: the peer's own last x0 from the state x_T at T,
and the score evaluations really made, at most ``nfe`` and as near to it as the peer allows; None where the peer does
not serve the process or the budget. Against the x0 of the converged ODE that is the error of a scheduler and its grid.

How each is run:

* diffusers, variance preserving: the scheduler of a 1000-step model whose alphas_cumprod[i] is alpha^2((i + 1) / 1000)
  of our process, so timestep tau stands for t = (tau + 1) / 1000. The score is asked where the scheduler says its
  timestep is, as a pipeline asks its network: rounded or truncated to whole timesteps where the scheduler does that. A
  name with "@sigma" asks at the scheduler's own noise level instead: the solver without that mismatch.
* diffusers, EDM: the score becomes the raw network output F that the scheduler turns back to the denoised image.
* k-diffusion: every process, through y = x / alpha and its noise level sigma / alpha. Grids end at 0 by one last step
  to the denoised image, except in dpm_fast and dpm_adaptive, which stop at the smallest noise level.
* Start: x_T itself where the first noise level is that of T; otherwise (timestep_spacing "leading") pure noise
  x_T / prior_std, as a user begins. A name with "noise start" begins from pure noise in any case.

Names: package, scheduler or sampler with its order, then the grid. ``dpm_adaptive`` runs with the tightest tolerance of
a ladder that fits the budget; the calls of the search are not counted.

Packages, besides the project's own (k-diffusion imports its evaluation code, hence the second list):

    pip install "diffusers>=0.42"
    pip install --no-deps k-diffusion torchsde trampoline clean-fid clip-anytorch ftfy wcwidth dctorch einops
    pip install --no-deps jsonmerge jsonschema jsonschema-specifications referencing rpds-py attrs
    pip install --no-deps scikit-image lazy-loader

``samplers_peers_check.py`` checks the adapters on an exact score.
"""

import functools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from sys import path as import_path

import numpy as np
import torch
from torch import Tensor

import_path.insert(0, str(Path(__file__).resolve().parents[1]))
warnings.filterwarnings("ignore")

import diffusers  # noqa: E402
from k_diffusion import sampling as kd  # noqa: E402

from sde_lib import EDMSDE, SDE, VPSDE, ScoreFn, match_dims  # noqa: E402

diffusers.utils.logging.set_verbosity_error()

Peer = Callable[[SDE, ScoreFn, Tensor, int], tuple[Tensor, int] | None]

TRAIN_STEPS = 1000


class Oracle:
    """The score of a process as noise or denoised image, at a time or a noise level sigma / alpha; it counts."""

    def __init__(self, sde: SDE, score_fn: ScoreFn) -> None:
        self.sde = sde
        self.calls = 0
        self._score_fn = score_fn

    def time(self, noise_level: Tensor | float) -> Tensor:
        """The time at which sigma / alpha is this, at most T."""
        level = torch.as_tensor(noise_level, dtype=torch.float64)
        return self.sde.time_from_log_snr(-2 * level.log()).clamp(0, self.sde.T)

    def eps(self, x: Tensor, t: Tensor) -> Tensor:
        """Noise in x at a time (float64 scalar)."""
        self.calls += 1
        score = self._score_fn(x, t.to(x.dtype).expand(len(x)))
        return -match_dims(self.sde.sigma(t), x) * score

    def denoised(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x0 | x] by Tweedie's formula."""
        alpha, sigma = self.sde.marginal(t)
        return (x - sigma * self.eps(x, t)) / alpha

    def k_denoiser(self, y: Tensor, noise_level: Tensor) -> Tensor:
        """k-diffusion's model(y, sigma) with y = x / alpha."""
        t = self.time(noise_level[0])
        return self.denoised(y * self.sde.marginal(t)[0], t)


# diffusers, variance preserving

GRID_OPTIONS = {
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading"},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "lu": {"use_lu_lambdas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}


def is_vp(sde: SDE) -> bool:
    alpha, sigma = sde.marginal(torch.linspace(0, sde.T, 5, dtype=torch.float64))
    return torch.allclose(alpha.square() + sigma.square(), torch.ones_like(alpha))


@functools.cache
def trained_betas(sde: SDE) -> np.ndarray:
    """Betas of the discrete chain that has our alpha^2 at t = 1/1000, 2/1000, ..., 1."""
    t = torch.arange(TRAIN_STEPS + 1, dtype=torch.float64) / TRAIN_STEPS
    return -torch.expm1(2 * sde.log_alpha(t).diff()).numpy()


def first_level(scheduler, sde: SDE) -> float:
    """sigma / alpha at which a scheduler starts."""
    if hasattr(scheduler, "step_index"):
        return float(scheduler.sigmas[0])
    alpha, sigma = sde.marginal((scheduler.timesteps[0].double() + 1) / TRAIN_STEPS)
    return float(sigma / alpha)


def own_level(scheduler, i: int) -> Tensor:
    """sigma / alpha at which a scheduler expects its i-th model output."""
    middle = getattr(scheduler, "sigmas_interpol", None)  # KDPM2 evaluates every second time between two levels
    return (scheduler.sigmas if middle is None or i % 2 == 0 else middle)[i].double()


def run_vp(
    make: Callable[[], object],
    sde: SDE,
    score_fn: ScoreFn,
    x_T: Tensor,
    nfe: int,
    at_sigma: bool = False,
    noise_start: bool = False,
    fewest: int = 2,
) -> tuple[Tensor, int] | None:
    """The loop of a diffusers pipeline, with as many steps as the budget pays for."""
    if not is_vp(sde):
        return None
    steps, excess = nfe, 1
    while excess > 0:
        if steps < fewest:
            return None
        scheduler = make()
        scheduler.set_timesteps(steps)
        excess = len(scheduler.timesteps) - nfe
        steps -= max(1, excess // 2)  # no scheduler makes more than two calls a step
    oracle = Oracle(sde, score_fn)
    level, top = first_level(scheduler, sde), sde.log_snr(torch.tensor(sde.T, dtype=torch.float64))
    in_sigma_space = float(scheduler.init_noise_sigma) != 1.0
    if noise_start or abs(math.log(level) + 0.5 * float(top)) > 1e-3:
        x = x_T / sde.prior_std * float(scheduler.init_noise_sigma)
    else:
        x = x_T * math.sqrt(level**2 + 1) if in_sigma_space else x_T
    for i, tau in enumerate(scheduler.timesteps):
        z = scheduler.scale_model_input(x, tau).to(x_T.dtype)
        t = oracle.time(own_level(scheduler, i)) if at_sigma else (tau.double() + 1) / TRAIN_STEPS
        x = scheduler.step(oracle.eps(z, t), tau, x, return_dict=False)[0].to(x_T.dtype)
        if getattr(scheduler, "step_index", i + 1) != i + 1:
            raise RuntimeError(f"{type(scheduler).__name__} skipped a step: its index is {scheduler.step_index}")
    return x, oracle.calls


def vp_peer(scheduler: str, grid: str, at_sigma: bool = False, noise_start: bool = False, **options) -> Peer:
    def peer(sde: SDE, score_fn: ScoreFn, x_T: Tensor, nfe: int) -> tuple[Tensor, int] | None:
        def make():
            kind = getattr(diffusers, scheduler)
            only = "Singlestep" in scheduler and grid == "linspace"  # its one spacing, for which it has no option
            settings = options | ({} if only else GRID_OPTIONS[grid])
            return kind(num_train_timesteps=TRAIN_STEPS, trained_betas=trained_betas(sde), **settings)

        fewest = 4 if scheduler == "PNDMScheduler" else 2
        return run_vp(make, sde, score_fn, x_T, nfe, at_sigma, noise_start, fewest)

    return peer


def ipndm(sde: SDE, score_fn: ScoreFn, x_T: Tensor, nfe: int) -> tuple[Tensor, int] | None:
    """diffusers' IPNDM, whose "trained_betas" are the sigmas of its grid: uniform in t from T to 1/1000, then 0."""
    if not is_vp(sde):
        return None
    t = torch.linspace(sde.T, 1 / TRAIN_STEPS, nfe, dtype=torch.float64)
    scheduler = diffusers.IPNDMScheduler(trained_betas=[*sde.sigma(t).tolist(), 0.0])
    scheduler.set_timesteps(nfe)
    oracle, x = Oracle(sde, score_fn), x_T
    for i, tau in enumerate(scheduler.timesteps):
        alpha, sigma = scheduler.alphas[i], scheduler.betas[i]
        v = (oracle.eps(x, t[i]) - sigma * x) / alpha  # its alpha, so that its own conversion gives eps again
        x = scheduler.step(v, tau, x, return_dict=False)[0]
    return x, oracle.calls


# diffusers, EDM


def edm_peer(scheduler: str, noise_start: bool = False, **options) -> Peer:
    def peer(sde: SDE, score_fn: ScoreFn, x_T: Tensor, nfe: int) -> tuple[Tensor, int] | None:
        if not isinstance(sde, EDMSDE):
            return None
        levels = {"sigma_min": sde.sigma_min, "sigma_max": sde.sigma_max, "rho": sde.rho}
        solver = getattr(diffusers, scheduler)(**levels, **options)
        solver.set_timesteps(nfe)
        oracle = Oracle(sde, score_fn)
        x = x_T / sde.prior_std * solver.init_noise_sigma if noise_start else x_T
        data = solver.config.sigma_data
        for i, tau in enumerate(solver.timesteps):
            solver.scale_model_input(x, tau)
            sigma = solver.sigmas[i]
            denoised = oracle.denoised(x, oracle.time(sigma))
            skip, out = data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2) ** 0.5
            x = solver.step((denoised - skip * x) / out, tau, x, return_dict=False)[0].to(x_T.dtype)
        return x, oracle.calls

    return peer


# k-diffusion


def smallest_time(sde: SDE) -> float:
    """t = 0 where the process has noise there (EDM), otherwise the first timestep of a 1000-step model."""
    return 0.0 if float(sde.sigma(torch.zeros((), dtype=torch.float64))) > 0 else sde.T / TRAIN_STEPS


def level_at(sde: SDE, t: Tensor | float) -> Tensor:
    return (-0.5 * sde.log_snr(torch.as_tensor(t, dtype=torch.float64))).exp()


def discrete_grid(sde: SDE, steps: int) -> Tensor:
    """DiscreteSchedule.get_sigmas of k-diffusion's wrappers: timesteps from 999 to 0, here without rounding."""
    return kd.append_zero(level_at(sde, torch.linspace(sde.T, smallest_time(sde), steps, dtype=torch.float64)))


K_GRIDS: dict[str, Callable[[SDE, int], Tensor]] = {
    "karras": lambda sde, n: kd.get_sigmas_karras(n, *level_range(sde)),
    "exponential": lambda sde, n: kd.get_sigmas_exponential(n, *level_range(sde)),
    "polyexponential": lambda sde, n: kd.get_sigmas_polyexponential(n, *level_range(sde), rho=1.5),
    "vp": lambda sde, n: kd.get_sigmas_vp(n),
    "discrete": discrete_grid,
}


def level_range(sde: SDE) -> tuple[float, float]:
    """Smallest and largest sigma / alpha."""
    low, high = level_at(sde, torch.tensor([smallest_time(sde), sde.T])).tolist()
    return low, high


def k_peer(sampler: str, grid: str, calls_per_step: int = 1, **options) -> Peer:
    def peer(sde: SDE, score_fn: ScoreFn, x_T: Tensor, nfe: int) -> tuple[Tensor, int] | None:
        steps = (nfe + calls_per_step - 1) // calls_per_step  # the last step, to 0, takes one call
        if steps < 2 or (grid == "vp" and not (isinstance(sde, VPSDE) and (sde.beta_min, sde.beta_max) == (0.1, 20.0))):
            return None
        sigmas = K_GRIDS[grid](sde, steps).double()
        oracle = Oracle(sde, score_fn)
        y = x_T / sde.marginal(torch.tensor(sde.T, dtype=torch.float64))[0]
        x0 = getattr(kd, f"sample_{sampler}")(oracle.k_denoiser, y, sigmas, disable=True, **options)
        return x0, oracle.calls

    return peer


def k_dpm_fast(sde: SDE, score_fn: ScoreFn, x_T: Tensor, nfe: int) -> tuple[Tensor, int] | None:
    oracle = Oracle(sde, score_fn)
    y = x_T / sde.marginal(torch.tensor(sde.T, dtype=torch.float64))[0]
    return kd.sample_dpm_fast(oracle.k_denoiser, y, *level_range(sde), nfe, disable=True), oracle.calls


def k_dpm_adaptive(order: int) -> Peer:
    def peer(sde: SDE, score_fn: ScoreFn, x_T: Tensor, nfe: int) -> tuple[Tensor, int] | None:
        y = x_T / sde.marginal(torch.tensor(sde.T, dtype=torch.float64))[0]
        best = None
        for exponent in range(8, -25, -1):  # tolerances from 2^8 to 2^-24 of the default; the tightest that fits
            oracle = Oracle(sde, within(score_fn, nfe))
            tolerance = {"rtol": 0.05 * 2.0**exponent, "atol": 0.0078 * 2.0**exponent}
            try:
                x0 = kd.sample_dpm_adaptive(
                    oracle.k_denoiser, y, *level_range(sde), order=order, disable=True, **tolerance
                )
            except OverBudgetError:
                if best is not None:
                    break
            else:
                best = x0, oracle.calls
        return best

    return peer


class OverBudgetError(Exception):
    """A score was asked for once too often."""


def within(score_fn: ScoreFn, nfe: int) -> ScoreFn:
    calls = 0

    def limited(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > nfe:
            raise OverBudgetError
        return score_fn(x, t)

    return limited


# All by name


def vp_peers() -> dict[str, Peer]:
    peers: dict[str, Peer] = {}

    def vp(name: str, scheduler: str, grids: str, **options) -> None:
        for grid in grids.split():
            base, _, variant = grid.partition("@")
            label = f"{base} @sigma" if variant else base
            peers[f"diffusers {name} {label}"] = vp_peer(f"{scheduler}Scheduler", base, bool(variant), **options)

    spacings, converted = "linspace leading trailing", "karras karras@sigma exponential exponential@sigma beta@sigma"
    multistep = f"{spacings} {converted}"
    vp("DPMSolverMultistep 2M", "DPMSolverMultistep", f"{multistep} lu lu@sigma", solver_order=2)
    vp("DPMSolverMultistep 2M heun", "DPMSolverMultistep", "linspace lu@sigma", solver_order=2, solver_type="heun")
    vp("DPMSolverMultistep 2M euler_at_final", "DPMSolverMultistep", "linspace lu@sigma", euler_at_final=True)
    vp("DPMSolverMultistep 2M noise start", "DPMSolverMultistep", "linspace", noise_start=True)
    vp("DPMSolverMultistep 3M", "DPMSolverMultistep", f"{spacings} karras@sigma lu lu@sigma", solver_order=3)
    eps = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
    vp("DPMSolverMultistep eps 2M", "DPMSolverMultistep", "linspace karras@sigma lu@sigma", **eps)
    final = {"euler_at_final": True}  # its last step on this grid has length 0, and the third order divides by it
    vp("DPMSolverMultistep eps 3M", "DPMSolverMultistep", "linspace", solver_order=3, **eps)
    vp("DPMSolverMultistep eps 3M", "DPMSolverMultistep", "lu@sigma", solver_order=3, **eps, **final)
    single = "linspace karras karras@sigma exponential@sigma"
    vp("DPMSolverSinglestep 2", "DPMSolverSinglestep", single, solver_order=2, lower_order_final=True)
    vp("DPMSolverSinglestep 3", "DPMSolverSinglestep", single, solver_order=3, lower_order_final=True)
    vp("DPMSolverSinglestep eps 3", "DPMSolverSinglestep", "linspace exponential@sigma", solver_order=3,
       lower_order_final=True, **eps)  # fmt: skip
    sigma_min = {"final_sigmas_type": "sigma_min"}  # bh1 and eps make NaN of a step to 0
    for order in (2, 3):
        bh1 = {"solver_order": order, "solver_type": "bh1", **sigma_min}
        vp(f"UniPC {order} bh2", "UniPCMultistep", multistep, solver_order=order)
        vp(f"UniPC {order} bh1", "UniPCMultistep", "linspace karras@sigma exponential@sigma", **bh1)
        vp(f"DEIS {order}", "DEISMultistep", multistep, solver_order=order)
    vp("UniPC eps 3 bh2", "UniPCMultistep", "linspace exponential@sigma", solver_order=3, predict_x0=False, **sigma_min)
    for predictor, corrector in ((2, 2), (3, 4)):
        orders = {"predictor_order": predictor, "corrector_order": corrector, "tau_func": lambda t: 0}
        vp(f"SASolver {predictor}-{corrector} tau 0", "SASolver", "linspace trailing exponential@sigma", **orders)
    vp("DDIM", "DDIM", spacings, clip_sample=False)
    vp("PNDM prk", "PNDM", "leading trailing")
    vp("PNDM plms", "PNDM", spacings, skip_prk_steps=True)
    vp("PNDM plms to zero", "PNDM", "leading trailing", skip_prk_steps=True, set_alpha_to_one=True)
    peers["diffusers IPNDM uniform"] = ipndm
    interpolated = f"{spacings} linspace@sigma karras karras@sigma exponential beta"
    for name in ("Euler", "Heun", "KDPM2", "LMS"):
        vp(name, f"{name}Discrete", interpolated)
    return peers


def edm_peers() -> dict[str, Peer]:
    peers: dict[str, Peer] = {}
    for order in (2, 3):
        for schedule in ("karras", "exponential"):
            options = {"solver_order": order, "sigma_schedule": schedule}
            peers[f"diffusers EDM DPMSolverMultistep {order}M {schedule}"] = edm_peer(
                "EDMDPMSolverMultistepScheduler", **options
            )
    peers["diffusers EDM DPMSolverMultistep 2M heun karras"] = edm_peer(
        "EDMDPMSolverMultistepScheduler", solver_type="heun"
    )
    peers["diffusers EDM DPMSolverMultistep 2M noise start karras"] = edm_peer(
        "EDMDPMSolverMultistepScheduler", noise_start=True
    )
    for schedule in ("karras", "exponential"):
        peers[f"diffusers EDM Euler {schedule}"] = edm_peer("EDMEulerScheduler", sigma_schedule=schedule)
    return peers


def k_peers() -> dict[str, Peer]:
    peers: dict[str, Peer] = {}
    silent = {"eta": 0.0, "noise_sampler": lambda sigma, sigma_next: 0.0}
    k_samplers = {
        "euler": ("euler", 1, {}),
        "heun": ("heun", 2, {}),
        "dpm_2": ("dpm_2", 2, {}),
        "lms": ("lms", 1, {}),
        "dpmpp_2m": ("dpmpp_2m", 1, {}),
        "dpmpp_2s eta 0": ("dpmpp_2s_ancestral", 2, silent),
        "dpmpp_sde eta 0": ("dpmpp_sde", 2, silent),
        "dpmpp_2m_sde eta 0": ("dpmpp_2m_sde", 1, silent),
        "dpmpp_2m_sde heun eta 0": ("dpmpp_2m_sde", 1, silent | {"solver_type": "heun"}),
        "dpmpp_3m_sde eta 0": ("dpmpp_3m_sde", 1, silent),
    }
    for name, (sampler, calls, options) in k_samplers.items():
        for grid in K_GRIDS:
            peers[f"k-diffusion {name} {grid}"] = k_peer(sampler, grid, calls, **options)
    peers["k-diffusion dpm_fast"] = k_dpm_fast
    peers["k-diffusion dpm_adaptive 2"] = k_dpm_adaptive(2)
    peers["k-diffusion dpm_adaptive 3"] = k_dpm_adaptive(3)
    return peers


PEERS = vp_peers() | edm_peers() | k_peers()
