"""What a sampler costs beside its network: seconds of a step without the score, against one U-Net evaluation.

The score is replaced by a stored tensor, so all that remains is the sampler's own work; the U-Net is this project's
default (35.7 M parameters) at 32x32 in batches of 64.

    python benchmarks/sampling_overhead.py [--device cuda] [--steps 20]
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from models import ScoreModel, UNet
from samplers import SAMPLERS, PathNoise, get_sampler
from sde_lib import VPSDE

SHAPE = (64, 3, 32, 32)
ADAPTIVE = {"ode": {"rtol": 1e-2, "atol": 1e-2}, "adaptive_sde": {"rtol": 0.1, "atol": 0.05}}


def seconds(run, device: str, repeats: int = 5) -> float:
    """Median over repeats, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    sde = VPSDE()
    model = ScoreModel(UNet(3), sde).to(args.device).eval().requires_grad_(False)
    x, t = torch.randn(SHAPE, device=args.device), torch.full((SHAPE[0],), 0.5, device=args.device)
    network = seconds(lambda: model(x, t), args.device, repeats=3)
    where = f"{args.device}, {torch.get_num_threads()} threads"
    print(f"one evaluation of the U-Net on {SHAPE}: {network * 1e3:.0f} ms ({where})")
    print(f"{'sampler':18s}{'noise':>12s}{'ms/evaluation':>15s}{'share of it':>13s}")

    def score(x, t):
        return -x  # of standard normal data, exact: one pass over x

    for name in SAMPLERS:
        for kind in ("generator", "path"):
            options = ADAPTIVE.get(name, {"steps": args.steps})
            sampler = get_sampler(name, **options)
            calls = sampler.sample(sde, score, SHAPE, device=args.device).nfe

            def run(sampler=sampler, kind=kind):
                noise = PathNoise(range(SHAPE[0])) if kind == "path" else None
                sampler.sample(sde, score, SHAPE, noise=noise, device=args.device)

            each = seconds(run, args.device) / calls
            print(f"{name:18s}{kind:>12s}{each * 1e3:15.2f}{each / network:13.2%}", flush=True)


if __name__ == "__main__":
    main()
