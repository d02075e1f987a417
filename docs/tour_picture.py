"""The picture of docs/tour.md: the law of x_t in one dimension, and paths through it.

python docs/tour_picture.py [--out docs/images/tour.png]        needs matplotlib: pip install -e '.[dev]'
"""

import argparse
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from PIL import Image
from torch import Tensor

from samplers import Progress, get_sampler
from sde_lib import VPSDE, GaussianMixture

END = 1e-3
HEIGHT = 3.2


def forward_paths(sde: VPSDE, x0: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """The forward SDE at steps + 1 times, by its exact transitions, shape (steps + 1, B)."""
    times = torch.linspace(END, 1, steps + 1, dtype=torch.float64)
    path = [sde.perturb(x0, END, torch.randn(x0.shape, generator=generator))]
    for s, t in itertools.pairwise(times):
        ratio, std = sde.transition(s, t)
        path.append(ratio * path[-1] + std * torch.randn(x0.shape, generator=generator))
    return torch.stack(path).squeeze(2)


def sampled_paths(name: str, sde: VPSDE, data: GaussianMixture, x: Tensor, steps: int) -> Tensor:
    """The states that a sampler goes through from x at t = 1, earliest time first, shape (steps + 1, B)."""
    path = [x]

    def keep(progress: Progress) -> None:
        path.append(progress.x)

    sampler = get_sampler(name, steps=steps, grid="uniform", t_end=END, denoise=False)
    generator = torch.Generator().manual_seed(1)
    sampler.sample(sde, data.score_fn(sde), x.shape, x_init=x, generator=generator, callback=keep)
    return torch.stack(path[::-1]).squeeze(2)


def main(arguments: list[str] | None = None) -> None:
    """Draw it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(Path(__file__).parent / "images" / "tour.png"))
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args(arguments)

    sde, data = VPSDE(), GaussianMixture([0.3, 0.7], torch.tensor([[1.6], [-1.0]]), std=0.3)
    generator = torch.Generator().manual_seed(0)
    x0, noise = data.sample(10, generator=generator), torch.randn(10, 1, generator=generator)
    times, places = torch.linspace(END, 1, args.steps + 1), torch.linspace(-HEIGHT, HEIGHT, 200)[:, None]
    density = torch.stack([data.log_prob(places, sde, t).exp() for t in times], 1)
    panels = {
        "forward SDE": forward_paths(sde, x0, args.steps, generator),
        "reverse SDE": sampled_paths("ancestral", sde, data, noise, args.steps),
        "probability-flow ODE": sampled_paths("heun", sde, data, noise, args.steps),
    }
    figure, axes = pyplot.subplots(1, 3, figsize=(10, 2.9), sharey=True, layout="constrained")
    for axis, (title, paths) in zip(axes, panels.items(), strict=True):
        axis.imshow(
            density.sqrt().numpy(), origin="lower", aspect="auto", extent=(0, 1, -HEIGHT, HEIGHT), cmap="Blues", vmin=0
        )
        axis.plot(times.numpy(), paths.numpy(), color="#c03020", linewidth=0.7, alpha=0.85)
        axis.set(title=title, xlabel="t", ylim=(-HEIGHT, HEIGHT), xlim=(0, 1))
    axes[0].set_ylabel("x")
    figure.savefig(args.out, dpi=80)
    pyplot.close(figure)
    Image.open(args.out).convert("RGB").quantize(64).save(args.out, optimize=True)  # small


if __name__ == "__main__":
    main()
