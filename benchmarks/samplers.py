"""Error of few-step samplers at equal cost, ours beside those of diffusers and k-diffusion, in one run.

Every method starts from the same x_T and is compared with the converged probability-flow ODE (dopri5, float64): the
median over samples of the root-mean-square error of x0, relative to the root-mean-square of x0. (The median, because a
few samples near the border of two modes end in the other one, and would drown the rest.) Cost is the number of calls of
the score, counted.

Problems: a Gaussian mixture in 64 dimensions with its exact score, under the VP and the EDM process, and, with --run, a
trained model of this project. There only those peers run that came within a factor of 1.3 of their package's best at
some cost on the mixture.

    pip install -e '.[dev]' and the packages that samplers_peers.py names
    python benchmarks/samplers.py [--run RUN_FOLDER] [--out benchmarks/samplers.md] [--plot docs/images/samplers.png]
"""

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from samplers_peers import PEERS
from samplers_peers_check import image_like_mixture
from torch import Tensor
from tqdm import tqdm

from samplers import get_sampler
from sde_lib import EDMSDE, SDE, VPSDE, ScoreFn

BUDGETS = (5, 8, 10, 15, 20, 35, 50)
DEFAULT = "deis"
CALLS_PER_STEP = {"heun": 2, "dpm_solver": 3}
VARIANTS = {
    "deis": {},
    "deis, order 2": {"order": 2},
    "deis, order 4": {"order": 4},
    "deis, in time, quadratic grid": {"variable": "time", "grid": "quadratic"},
    "ipndm": {},
    "dpmpp": {},
    "dpmpp, order 2": {"order": 2},
    "unipc": {},
    "unipc, order 2": {"order": 2},
    "dpm_solver": {},
    "heun": {},
    "ddim": {},
}
"""Ours: sampler, then what differs from its defaults."""


class Problem(NamedTuple):
    """A score, where it starts, and where the converged ODE ends."""

    name: str
    sde: SDE
    score_fn: ScoreFn
    x_T: Tensor
    x0: Tensor


Method = Callable[[SDE, ScoreFn, Tensor, int], tuple[Tensor, int] | None]


def mixture_problem(name: str, sde: SDE, n: int = 64) -> Problem:
    """Draws of the exact p_T, and their way to the data."""
    data, g = image_like_mixture(), torch.Generator().manual_seed(1)
    x_T = data.marginal(sde, sde.T).sample(n, generator=g, dtype=torch.float64)
    return solved(name, sde, data.score_fn(sde), x_T, tolerance=1e-9)


def trained_problem(folder: Path, n: int = 16) -> Problem:
    """A model trained by this project, in float64."""
    from configs import stored
    from training import RunFolder, builders, load_checkpoint, load_weights

    experiment = builders.build_experiment(stored.get_config(str(folder / "config.json")))
    path = RunFolder(folder, 1).checkpoint(None)
    load_weights(experiment.model, load_checkpoint(path)[0]["ema"], path)
    model = experiment.model.cpu().eval().requires_grad_(False).double()
    g = torch.Generator().manual_seed(1)
    x_T = experiment.sde.prior_sample((n, *experiment.dataset.shape), generator=g, dtype=torch.float64)
    return solved(f"{experiment.dataset.name}, a trained U-Net", experiment.sde, model, x_T, tolerance=1e-6)


def solved(name: str, sde: SDE, score_fn: ScoreFn, x_T: Tensor, tolerance: float) -> Problem:
    """Solve the ODE down to t = 1e-5 (a trained network: 1e-4), and denoise."""
    t_end = 1e-5 if tolerance < 1e-8 else 1e-4
    reference = get_sampler("ode", rtol=tolerance, atol=tolerance, t_end=t_end, max_nfe=100_000)
    return Problem(name, sde, score_fn, x_T, reference.sample(sde, score_fn, x_T.shape, x_init=x_T).x)


def ours(variant: str) -> Method:
    """A sampler of this project with its defaults, in as many steps as the budget allows."""
    name = variant.partition(",")[0]

    def run(sde: SDE, score_fn: ScoreFn, x_T: Tensor, nfe: int) -> tuple[Tensor, int] | None:
        steps = (nfe - 1) // CALLS_PER_STEP.get(name, 1)  # one call is the denoising at the end
        if steps < 1:
            return None
        result = get_sampler(name, steps=steps, **VARIANTS[variant]).sample(sde, score_fn, x_T.shape, x_init=x_T)
        return result.x, result.nfe

    return run


def error(x: Tensor, x0: Tensor) -> float:
    """Median over samples of the RMS error, relative to the RMS of all."""
    return float((x - x0).flatten(1).square().mean(1).sqrt().median() / x0.square().mean().sqrt())


def measure(problem: Problem, methods: dict[str, Method]) -> dict[str, list[float]]:
    """Errors of each method at each budget; infinite where it cannot run."""
    table = {}
    for name, method in tqdm(methods.items(), desc=problem.name, disable=None):
        row = []
        for budget in BUDGETS:
            result = method(problem.sde, problem.score_fn, problem.x_T, budget)
            if result is not None and result[1] > budget:
                raise RuntimeError(f"{name} made {result[1]} calls of {budget}")
            value = math.inf if result is None else error(result[0], problem.x0)
            row.append(value if math.isfinite(value) else math.inf)
        if min(row) < math.inf:
            table[name] = row
    return table


def best(table: dict[str, list[float]], package: str, i: int) -> tuple[float, str]:
    """Smallest error of a package at the i-th budget, and whose it is."""
    return min((row[i], name.removeprefix(package).strip()) for name, row in table.items() if name.startswith(package))


def near_best(table: dict[str, list[float]], factor: float = 1.3) -> set[str]:
    """Methods within a factor of their package's best at some budget."""
    packages = {name.split()[0] for name in table}
    floor = {p: [best(table, p, i)[0] for i in range(len(BUDGETS))] for p in packages}
    return {
        name
        for name, row in table.items()
        if any(v <= factor * f for v, f in zip(row, floor[name.split()[0]], strict=True))
    }


def report(problem: Problem, table: dict[str, list[float]]) -> str:
    """Markdown: the default beside the best of each package, then all of ours."""
    lines = [
        f"## {problem.name}",
        "",
        f"{problem.sde!r}, {len(problem.x_T)} samples, {len(table) - len(VARIANTS)} peers.",
        "",
        f"| NFE | ours: {DEFAULT} | ours: best | diffusers: best | k-diffusion: best | default / best peer |",
        "|---|---|---|---|---|---|",
    ]
    for i, budget in enumerate(BUDGETS):
        cells = [best(table, package, i) for package in ("ours", "diffusers", "k-diffusion")]
        default = table[f"ours {DEFAULT}"][i]
        shown = " | ".join(f"{value:.1e} ({name})" for value, name in cells)
        lines.append(f"| {budget} | {default:.1e} | {shown} | {default / min(cells[1][0], cells[2][0]):.2f} |")
    lines += ["", "| ours | " + " | ".join(map(str, BUDGETS)) + " |", "|---" * (len(BUDGETS) + 1) + "|"]
    for name, row in table.items():
        if name.startswith("ours"):
            lines.append(f"| {name[5:]} | " + " | ".join("-" if v == math.inf else f"{v:.1e}" for v in row) + " |")
    return "\n".join(lines) + "\n"


def plot(results: list[tuple[Problem, dict[str, list[float]]]], path: Path) -> None:
    """Error against NFE on logarithmic axes, a panel for each problem."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(5 * len(results), 4), squeeze=False)
    for axis, (problem, table) in zip(axes[0], results, strict=True):
        for package, style in (("diffusers", "k--"), ("k-diffusion", "k:")):
            curve = [best(table, package, i)[0] for i in range(len(BUDGETS))]
            axis.loglog(BUDGETS, curve, style, label=f"{package}, best at each NFE", linewidth=2)
        for name in (DEFAULT, "unipc", "dpmpp", "heun", "ddim"):
            axis.loglog(BUDGETS, table[f"ours {name}"], "o-", label=name, markersize=3)
        axis.set(title=problem.name, xlabel="network evaluations", ylabel="relative error of x0", ylim=(None, 1.5))
        axis.set_xticks(BUDGETS, [str(b) for b in BUDGETS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="run folder of a trained model")
    parser.add_argument("--out", type=Path, help="write the tables here, as Markdown")
    parser.add_argument("--plot", type=Path, help="draw the curves here")
    parser.add_argument("--values", type=Path, help="write all numbers here, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    own = {f"ours {variant}": ours(variant) for variant in VARIANTS}
    results, good = [], set(PEERS)
    began = time.time()
    for build in (
        lambda: mixture_problem("mixture in 64 dimensions, VP", VPSDE()),
        lambda: mixture_problem("mixture in 64 dimensions, EDM", EDMSDE()),
        *([lambda: trained_problem(args.run)] if args.run else []),
    ):
        problem = build()
        if len(results) == 2:
            good = set().union(*(near_best(table) for _, table in results))
        table = measure(problem, own | {name: peer for name, peer in PEERS.items() if name in good})
        results.append((problem, table))
        print(report(problem, table), f"({time.time() - began:.0f} s)", flush=True)
    head = [
        "# Samplers against their peers: error of x0 at equal cost",
        "",
        (__doc__ or "").partition("\n\n")[2].partition("\n\nProblems")[0],
        "",
        f"torch {torch.__version__}, {platform.machine()}, {time.strftime('%Y-%m-%d')}; command: `python "
        f"benchmarks/samplers.py{' --run RUN_FOLDER' if args.run else ''}`.",
        "",
    ]
    if args.out:
        args.out.write_text("\n".join([*head, *(report(*result) for result in results)]))
    if args.plot:
        plot(results, args.plot)
    if args.values:
        args.values.write_text(json.dumps({problem.name: table for problem, table in results}, indent=1))


if __name__ == "__main__":
    main()
