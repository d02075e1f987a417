"""The check of the adapters in samplers_peers.py, on exact scores.

Needs the packages that samplers_peers.py names.

    python benchmarks/samplers_peers_check.py             table of errors of every peer, on a mixture
    python benchmarks/samplers_peers_check.py --orders    slopes of log error over log step of multistep schedulers
"""

import argparse
import functools
import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import diffusers
import torch
from samplers_peers import PEERS, smallest_time
from torch import Tensor

from samplers import get_sampler
from sde_lib import EDMSDE, SDE, VPSDE, GaussianMixture

# Errors


def image_like_mixture(dim: int = 64) -> GaussianMixture:
    """Three correlated components at the scale of images in [-1, 1], with standard deviations from 0.1 to 0.7."""
    g = torch.Generator().manual_seed(0)
    bases = torch.linalg.qr(torch.randn(3, dim, dim, generator=g, dtype=torch.float64))[0]
    spectrum = torch.logspace(math.log10(0.5), -2, dim, dtype=torch.float64)
    means = 0.5 * torch.randn(3, dim, generator=g, dtype=torch.float64)
    return GaussianMixture([0.5, 0.3, 0.2], means, bases * spectrum @ bases.mT)


def relative_rms(x: Tensor, reference: Tensor) -> float:
    return float((x - reference).square().mean().sqrt() / reference.square().mean().sqrt())


def typical(x: Tensor, reference: Tensor) -> float:
    """Median over samples of the RMS error, relative to the RMS of all: blind to the few that end in another mode."""
    return float((x - reference).square().mean(1).sqrt().median() / reference.square().mean().sqrt())


def check(budgets: tuple[int, ...], only: str, processes: tuple[SDE, ...], error: Callable) -> None:
    """Error of every peer against the converged ODE, on a mixture with its exact score.

    The last column is that of the largest budget against the exact ODE stopped where grids stop (the peer's own end),
    denoised there or not, whichever is nearer: without the floor that the end itself sets.
    """
    data = image_like_mixture()
    for sde in processes:
        g = torch.Generator().manual_seed(1)
        score_fn = data.score_fn(sde)
        t = torch.tensor(sde.T, dtype=torch.float64)
        alpha, sigma = sde.marginal(t)
        shape = (64, *data.shape)
        x_T = alpha * data.sample(64, generator=g, dtype=torch.float64)
        x_T = x_T + sigma * torch.randn(shape, generator=g, dtype=torch.float64)
        exact = functools.partial(get_sampler, "ode", rtol=1e-9, atol=1e-9)
        reference = exact(t_end=1e-5, denoise=True).sample(sde, score_fn, shape, x_init=x_T).x
        print(f"\n{sde}: relative error of x0 ({error.__name__}); * marks fewer calls than the budget")
        print(f"{'NFE':58s}" + "".join(f"{b:>10d}" for b in budgets) + "   own end")
        ends = []
        for denoise in (True, False):
            last = exact(t_end=smallest_time(sde), denoise=denoise).sample(sde, score_fn, shape, x_init=x_T).x
            ends.append(last)
            label = f"(exact ODE to t = {smallest_time(sde):g}{', denoised' if denoise else ''})"
            print(f"{label:58s}{error(last, reference):10.1e}")
        for name, peer in PEERS.items():
            if only not in name:
                continue
            cells, own_end = [], math.nan
            for budget in budgets:
                result = peer(sde, score_fn, x_T, budget)
                if result is None:
                    cells.append(f"{'-':>10s}")
                    continue
                x0, calls = result
                if calls > budget or x0.dtype != x_T.dtype:
                    raise RuntimeError(f"{name}: {calls} calls of {budget}, {x0.dtype}")
                cells.append(f"{error(x0, reference):9.1e}{'*' if calls < budget else ' '}")
                own_end = min(error(x0, end) for end in ends)
            if any(c.strip() != "-" for c in cells):
                print(f"{name:58s}" + "".join(cells) + f"{own_end:9.1e}", flush=True)


# Orders of convergence


class Gaussian:
    """Independent normals, one mean and several variances, for which the flow of y = x / alpha is closed form."""

    mean = 0.3
    variance = torch.logspace(-1.5, 0, 16, dtype=torch.float64)

    def denoised(self, y: Tensor, level: Tensor) -> Tensor:
        return (self.variance * y + level**2 * self.mean) / (self.variance + level**2)

    def flow(self, y: Tensor, start: Tensor, end: Tensor) -> Tensor:
        return self.mean + ((self.variance + end**2) / (self.variance + start**2)).sqrt() * (y - self.mean)


def order_errors(make: Callable[[], object], counts: tuple[int, ...], exact_start: int) -> list[float]:
    """RMS errors at the last level of grids uniform in log(sigma / alpha) from 20 to 0.05, in float64.

    The first ``exact_start`` steps are replaced by the exact flow, so that the lower orders with which a multistep
    method begins do not hide the order of the method.
    """
    data, errors = Gaussian(), []
    y_T = 20 * torch.randn(32, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for steps in counts:
        levels = torch.logspace(math.log10(20), math.log10(0.05), steps + 1, dtype=torch.float64)
        scheduler = make()
        scheduler.set_timesteps(steps)
        edm = "EDM" in type(scheduler).__name__
        alphas = torch.ones_like(levels) if edm else (1 + levels**2).rsqrt()
        scheduler.sigmas, scheduler.timesteps = levels, torch.arange(steps - 1, -1, -1)
        x = alphas[0] * y_T
        for i, tau in enumerate(scheduler.timesteps):
            denoised = data.denoised(x / alphas[i], levels[i])
            if edm:
                spread = levels[i] ** 2 + 0.25
                output = (denoised - 0.25 / spread * x) / (levels[i] * 0.5 / spread**0.5)
            else:
                output = (x / alphas[i] - denoised) / levels[i]
            x = scheduler.step(output, tau, x, return_dict=False)[0]
            if i < exact_start:
                x = alphas[i + 1] * data.flow(y_T, levels[0], levels[i + 1])
                if hasattr(scheduler, "last_sample"):  # where a corrector starts
                    scheduler.last_sample = alphas[i] * data.flow(y_T, levels[0], levels[i])
        errors.append(float((x / alphas[-1] - data.flow(y_T, levels[0], levels[-1])).square().mean().sqrt()))
    return errors


def orders(counts: tuple[int, ...] = (20, 40, 80, 160)) -> None:
    """Slopes of log error over log steps, from the schedulers' own start and from an exact one."""
    torch.set_default_dtype(torch.float64)
    multistep = {"lower_order_final": False, "final_sigmas_type": "sigma_min"}
    eps = {"algorithm_type": "dpmsolver"}
    unipc = {"lower_order_final": False}
    cases = {
        "DPMSolverMultistep 2M midpoint": ("DPMSolverMultistep", {"solver_order": 2, **multistep}),
        "DPMSolverMultistep 3M": ("DPMSolverMultistep", {"solver_order": 3, **multistep}),
        "DPMSolverMultistep eps 3M": ("DPMSolverMultistep", {"solver_order": 3, **multistep, **eps}),
        "EDM DPMSolverMultistep 3M": ("EDMDPMSolverMultistep", {"solver_order": 3, **multistep}),
        "UniPC 2 bh2": ("UniPCMultistep", {"solver_order": 2, **unipc}),
        "UniPC 3 bh2": ("UniPCMultistep", {"solver_order": 3, **unipc}),
        "UniPC 3 bh1": ("UniPCMultistep", {"solver_order": 3, "solver_type": "bh1", **unipc}),
        "UniPC 3 bh2 without corrector": (
            "UniPCMultistep", {"solver_order": 3, "disable_corrector": list(range(max(counts))), **unipc},
        ),
        "DEIS 2": ("DEISMultistep", {"solver_order": 2, "lower_order_final": False}),
        "DEIS 3": ("DEISMultistep", {"solver_order": 3, "lower_order_final": False}),
    }  # fmt: skip
    print(f"{'steps':34s}{'start':8s}" + "".join(f"{n:>10d}" for n in counts) + "   slopes")
    for name, (scheduler, options) in cases.items():
        for exact_start in (0, 2):
            make = functools.partial(getattr(diffusers, f"{scheduler}Scheduler"), **options)
            errors = order_errors(make, counts, exact_start)
            slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
            row = "".join(f"{e:10.1e}" for e in errors) + "  " + "".join(f"{slope:6.2f}" for slope in slopes)
            print(f"{name:34s}{'exact' if exact_start else 'own':8s}{row}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--orders", action="store_true", help="measure the order of convergence instead")
    parser.add_argument("--only", default="", help="only peers whose name contains this")
    parser.add_argument("--process", choices=("vp", "edm", "both"), default="both")
    parser.add_argument("--rms", action="store_true", help="RMS error of all samples instead of the median sample's")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.orders:
        orders()
    else:
        processes = {"vp": (VPSDE(),), "edm": (EDMSDE(),), "both": (VPSDE(), EDMSDE())}[args.process]
        check((5, 8, 10, 15, 20, 35, 50, 200), args.only, processes, relative_rms if args.rms else typical)


if __name__ == "__main__":
    main()
