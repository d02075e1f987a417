"""What a whole likelihood costs and how exact it is: this project against the way of the published code.

    python run_lib.py --mode=train                                           # a trained run to measure on: runs/digits
    python benchmarks/likelihood_errors.py --run=runs/digits --images=16     # all tables, about 15 minutes on one core
    python benchmarks/likelihood_errors.py --tables=3                        # the one with exact scores, a minute

What one evaluation costs, benchmarks/likelihood.py measures.

The published way (arXiv 2011.13456, its code base's likelihood): scipy's RK45 over one flat float64 vector of all
images and their log p, whose error norm is the root mean square over the whole batch, in the process's own time; each
evaluation is a forward pass for the drift, and a second one with its gradient for the divergence. It is written anew
here, on the same network, images and probes.
"""

import argparse
import copy
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.integrate import solve_ivp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from configs import stored
from data import UniformDequantizer
from evaluation import Draws, computing_in
from sde_lib import SDES, log_likelihood
from sde_lib.ode import integrate
from sde_lib.sde import batch_time, match_dims
from training import RunFolder, builders, load_checkpoint, load_weights


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--run", type=Path, help="folder of a trained run on images")
    arguments.add_argument("--images", type=int, default=16)
    arguments.add_argument("--tables", default="1,2,3", help="which of 1 to 3; 3 needs no run")
    options = arguments.parse_args()
    tables = options.tables.split(",")
    if options.run:
        problem = Problem(options.run, options.images)
        whole_runs(problem) if "1" in tables else None
        precisions(problem) if "2" in tables else None
    if "3" in tables:
        variables()


class Problem:
    """Held-out images, dequantised, with one Rademacher probe each, and the network in float32.

    The project's network is in channels_last; ``plain`` is the same one in torch's default layout.
    """

    def __init__(self, run, images):
        config = stored.get_config(str(run / "config.json"))
        experiment = builders.build_experiment(config)
        path = RunFolder(run).checkpoint()
        load_weights(experiment.model, load_checkpoint(path)[0]["ema"], path)
        self.model = experiment.model.eval().requires_grad_(False)
        self.model.precision = "float32"
        self.sde = experiment.sde
        dataset = builders.build_dataset(config, "test")
        draws = Draws(0, range(images))
        raw = dataset.fetch(range(images)).x
        self.x, self.log_q = UniformDequantizer(dataset.quantizer)(raw, draws.uniform("dequantize", dataset.shape))
        self.probe = (1 - 2 * (draws.uniform("probes", dataset.shape) < 0.5).float()).contiguous()
        self.plain = copy.deepcopy(self.model).to(memory_format=torch.contiguous_format)
        self.unit = dataset.shape[0] * dataset.shape[1] * dataset.shape[2] * math.log(2)
        print(
            f"{path}, {self.sde!r}, {images} images {dataset.shape}, torch {torch.__version__}, "
            f"{torch.get_num_threads()} thread(s)\n",
            flush=True,
        )

    def bits(self, log_prob):
        return (self.log_q.double() - log_prob.double()) / self.unit

    def ours(self, model=None, double=False, **options):
        x, probe = (self.x.double(), self.probe.double()) if double else (self.x, self.probe)
        started = time.perf_counter()
        result = log_likelihood(self.sde, model or self.model, x, probes=probe[None], **options)
        return self.bits(result.log_prob), result.nfe, time.perf_counter() - started

    def published(self, tolerance, model=None):
        started = time.perf_counter()
        z, change, nfe = published(self.sde, model or self.plain, self.x, self.probe, tolerance)
        return self.bits(self.sde.prior_log_prob(z) + change), nfe, time.perf_counter() - started


def published(sde, score_fn, x, probe, tolerance):
    """(z, integral of the divergence, evaluations), by scipy's RK45 in the process's own time."""
    calls, size = 0, x.numel()

    def drift(x, t):
        f, g = sde.drift_coeff(t), sde.diffusion(t)
        return match_dims(f, x) * x - match_dims(0.5 * g.square(), x) * score_fn(x, t)

    def field(t, flat):
        nonlocal calls
        calls += 1
        state = torch.from_numpy(flat[:size].reshape(x.shape)).float()
        times = torch.ones(len(x)) * t
        with torch.no_grad():
            velocity = drift(state, times)
        with torch.enable_grad():
            state.requires_grad_(True)
            (product,) = torch.autograd.grad((drift(state, times) * probe).sum(), state)
        divergence = (product * probe).flatten(1).sum(1)
        return np.concatenate([velocity.numpy().reshape(-1), divergence.numpy()])

    start = np.concatenate([x.numpy().reshape(-1), np.zeros(len(x))])
    end = solve_ivp(field, (sde.t_min, sde.T), start, rtol=tolerance, atol=tolerance, method="RK45").y[:, -1]
    return torch.from_numpy(end[:size].reshape(x.shape)), torch.from_numpy(end[size:]), calls


def whole_runs(problem):
    """Table 1: whole likelihoods, against the network in float64 at a tight tolerance."""
    double = copy.deepcopy(problem.model).double()
    reference, nfe, seconds = problem.ours(double, double=True, rtol=2e-5, atol=2e-5)
    mean = float(reference.mean())
    print(f"reference: float64, tolerance 2e-5, {nfe} evaluations, {seconds:.0f} s, mean {mean:.5f} bits/dim\n")
    print(
        "| way | tolerance | NFE | s | ms/NFE | mean error | rms error | largest |\n|---|---|---|---|---|---|---|---|",
        flush=True,
    )

    def row(name, tolerance, bits, nfe, seconds):
        error = bits - reference
        print(
            f"| {name} | {tolerance:g} | {nfe} | {seconds:.1f} | {1e3 * seconds / nfe:.1f} | {error.mean():+.1e} | "
            f"{error.square().mean().sqrt():.1e} | {error.abs().max():.1e} |",
            flush=True,
        )

    for tolerance in (1e-3, 1e-4, 1e-5):
        row("published", tolerance, *problem.published(tolerance))
    for care, tolerances in ((20.0, (1e-1, 1e-2, 1e-3, 1e-4)), (0.1, (1e-3, 1e-4, 1e-5))):
        for tolerance in tolerances:
            row(f"ours, care {care:g}", tolerance, *problem.ours(rtol=tolerance, atol=tolerance, log_prob_care=care))
    print(flush=True)
    race(problem)


def race(problem, rounds=5):
    """Seconds of three ways in turn, the best of each, since a neighbour only ever slows one down.

    "as published": log p weighs in the tolerance like one number more of the image.
    """
    ways = {
        "published, 1e-5": lambda: problem.published(1e-5),
        "published, 1e-5, in our layout": lambda: problem.published(1e-5, problem.model),
        "ours, 1e-5, log p weighed as published (care 0.1)": lambda: problem.ours(log_prob_care=0.1),
        "ours, the configuration's default (0.01, care 20)": lambda: problem.ours(rtol=1e-2, atol=1e-2),
    }
    times = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(way()[2])
    seconds = {name: min(found) for name, found in times.items()}
    slowest = seconds[next(iter(ways))]
    print("| way | s | times faster |\n|---|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.1f} | {slowest / value:.2f} |")
    print(flush=True)


def precisions(problem, tolerance=1e-2):
    """Table 2: what the precision of the network does to bits/dim, at the configuration's default tolerance."""
    double = copy.deepcopy(problem.model).double()
    whole, nfe, _ = problem.ours(double, double=True, rtol=tolerance, atol=tolerance)
    print("| precision | NFE | bits/dim | mean change | rms change |\n|---|---|---|---|---|")
    print(f"| float64 | {nfe} | {whole.mean():.4f} | | |", flush=True)
    for precision in ("float32", "bfloat16"):
        with computing_in(problem.model, precision):
            bits, nfe, _ = problem.ours(rtol=tolerance, atol=tolerance)
        mean, rms = (bits - whole).mean(), (bits - whole).square().mean().sqrt()
        print(f"| {precision} | {nfe} | {bits.mean():.4f} | {mean:+.1e} | {rms:.1e} |", flush=True)
    print(flush=True)


def variables(points=128):
    """Table 3: the same tolerance in the process's own time and state, and in u and y, with exact scores in float64."""
    from oracles import generator, mixture, mixture_2d

    print("| process | shape | tolerance | own time: NFE, error | u and y: NFE, error |\n|---|---|---|---|---|")
    for shape in ((2,), (3, 8, 8)):
        law = mixture_2d() if shape == (2,) else mixture(shape)
        unit = math.prod(shape) * math.log(2)
        for name, build in SDES.items():
            sde = build()
            x = law.marginal(sde, sde.t_min).sample(points, generator=generator(1), dtype=torch.float64)
            for tolerance in (1e-2, 1e-5):
                cells = []
                for solve in (in_own_time, in_flow_variables):
                    log_prob, z, nfe = solve(sde, law, x, tolerance)
                    exact = law.log_prob(x, sde, sde.t_min) + sde.prior_log_prob(z) - law.log_prob(z, sde, sde.T)
                    cells.append(f"{nfe}, {float((log_prob - exact).abs().max()) / unit:.1e}")
                print(f"| {name} | {shape} | {tolerance:g} | {cells[0]} | {cells[1]} |", flush=True)


def exact_field(law, sde, x, t):
    """(Score, its divergence) of a mixture in closed form: autograd would take D products."""
    alpha, sigma = sde.marginal(t.double())
    flat = x.flatten(1)
    precision = 1 / (alpha[:, None, None] ** 2 * law.eigenvalues + sigma[:, None, None] ** 2)
    inside = torch.einsum("kij,bki->bkj", law.eigenvectors, flat[:, None] - alpha[:, None, None] * law.means)
    gradients = -torch.einsum("kij,bkj->bki", law.eigenvectors, inside * precision)
    logits = law.weights.log() - 0.5 * (inside**2 * precision).sum(2) + 0.5 * precision.log().sum(2)
    shares = logits.softmax(1)
    score = torch.einsum("bk,bkd->bd", shares, gradients)
    divergence = (shares * (gradients.square().sum(2) - precision.sum(2))).sum(1) - score.square().sum(1)
    return score.reshape(x.shape), divergence[:, None]


def in_own_time(sde, law, x, tolerance):
    """d log p / dt = -div in t and x; log p held as tightly as ours is."""
    dims = x[0].numel()

    def flow(t, state):
        times = batch_time(t, x)
        score, divergence = exact_field(law, sde, state[0], times)
        f, half = sde.drift_coeff(t), 0.5 * sde.diffusion(t) ** 2
        return f * state[0] - half * score, f * dims - half * divergence

    tolerances = (tolerance, tolerance / 20)
    (z, change), nfe = integrate(
        flow,
        (x, x.new_zeros(len(x), 1)),
        sde.t_min,
        sde.T,
        rtol=tolerances,
        atol=tolerances,
        breakpoints=sde.breakpoints,
    )
    return sde.prior_log_prob(z) + change[:, 0], z, nfe


def in_flow_variables(sde, law, x, tolerance):
    """``log_likelihood`` itself, with the closed form in place of autograd."""
    import sde_lib.likelihood as home

    original = home._divergence
    home._divergence = lambda *_: lambda score_fn, x, t: exact_field(law, sde, x, t)
    try:
        result = log_likelihood(sde, law.score_fn(sde), x, rtol=tolerance, atol=tolerance)
    finally:
        home._divergence = original
    return result.log_prob, result.z, result.nfe


if __name__ == "__main__":
    main()
