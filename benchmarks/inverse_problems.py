"""How far each method for linear inverse problems is from the exact posterior of a correlated normal law.

python benchmarks/inverse_problems.py

Images (1, 4, 4) with covariance 0.25 exp(-distance / 2), the exact score, VP, dpmpp_sde in 100 steps, 4,000 samples of
one measurement with noise 0.05. "mean": largest error of a pixel's mean, in posterior standard deviations; "std":
smallest and largest ratio of a pixel's standard deviation to the exact one. Only unmeasured directions of more than a
tenth of the prior's spread count.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from guidance import INVERSE_METHODS, Deblurring, Inpainting, SuperResolution
from samplers import get_sampler
from sde_lib import VPSDE, GaussianMixture

SHAPE, SIZE, NOISE, COUNT = (1, 4, 4), 16, 0.05, 4000
KNOWN = torch.zeros(4, 4, dtype=torch.bool)
KNOWN[:2] = True
OPERATORS = {
    "inpainting": Inpainting(KNOWN),
    "super_resolution": SuperResolution(2),
    "deblurring": Deblurring.gaussian(0.7),
}


def prior() -> GaussianMixture:
    """Neighbours alike."""
    places = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double()
    covariance = 0.25 * torch.exp(-torch.cdist(places, places) / 2)
    return GaussianMixture([1.0], torch.zeros(1, *SHAPE), covariance)


def main() -> None:
    """Print the table."""
    law, sde = prior(), VPSDE()
    score_fn, c = law.score_fn(sde), law.covariance
    for task, operator in OPERATORS.items():
        matrix = operator.apply(torch.eye(SIZE, dtype=torch.float64).reshape(SIZE, *SHAPE)).flatten(1).T
        y = operator.measure(law.sample(1, generator=torch.Generator().manual_seed(1), dtype=torch.float64), NOISE)
        gram = matrix @ c @ matrix.T + NOISE**2 * torch.eye(len(matrix))
        gain = c @ matrix.T @ torch.linalg.inv(gram)
        mean, spread = gain @ y.flatten(), (c - gain @ matrix @ c).diagonal().sqrt()
        counted = spread > 0.1 * c.diagonal().sqrt()
        for name, method in INVERSE_METHODS.items():
            sampler = get_sampler("dpmpp_sde", steps=100)
            options = {"iterations": SIZE} if name == "moment_matching" else {}
            x = sampler.sample(
                sde,
                method(sde, score_fn, operator, y, NOISE, **options),
                (COUNT, *SHAPE),
                generator=torch.Generator().manual_seed(0),
                dtype=torch.float64,
            ).x.flatten(1)
            error = ((x.mean(0) - mean) / spread)[counted].abs().max()
            ratio = (x.std(0) / spread)[counted]
            print(f"| {task} | `{name}` | {error:.2f} | {ratio.min():.2f} to {ratio.max():.2f} |", flush=True)


if __name__ == "__main__":
    main()
