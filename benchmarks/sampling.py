"""One evaluation of the network, and whole sampler runs, beside diffusers and denoising-diffusion-pytorch.

    python benchmarks/sampling.py --batch=16 --steps=10             # DDPM's CIFAR-10 network
    python benchmarks/sampling.py --device=cuda --batch=256 --steps=50

Runs: ancestral sampling and DDIM, ours by ``samplers``, diffusers' by the loop of its pipelines over DDPMScheduler and
DDIMScheduler, lucidrains' by its own DDIM; all with as many evaluations as steps, on the averaged weights of the same
untrained network. ``--steps=0`` leaves the runs out. Peers and variants: benchmarks/peers.py.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from contestants import REFERENCES, chosen, configure, flags, per_image, precisions, way
from machine import describe, peaks
from peers import PEERS
from race import alternate, arguments, batches, begin, report

from configs import cifar10


def main() -> None:
    """Print a table of evaluations, and one of each sampler, for each batch size."""
    parser = arguments(__doc__, batch="16", rounds=7)
    flags(parser)
    parser.add_argument("--steps", type=int, default=10, help="of the sampler runs; 0: none")
    options = parser.parse_args()
    device = begin(options)
    print(describe(device), flush=True)
    found = peaks(device, precisions(options), options.clock)
    for size in batches(options):
        Table(options, size, device, found).print()


class Table:
    """The contestants at one batch size."""

    def __init__(self, options, size: int, device: torch.device, found: dict[str, float]) -> None:
        self.options, self.size, self.device, self.peaks = options, size, device, found
        config = configure(cifar10.get_config(), options.set, size)
        self.peers = {pair: PEERS[pair[0]](config, pair[1], device) for pair in chosen(options)}
        self.flop = {name: per_image(name, config, evaluate) for name, _ in self.peers}

    def print(self) -> None:
        x = torch.randn(self.size, 3, 32, 32, device=self.device)
        self.race("One evaluation", {pair: partial(evaluate, peer, x) for pair, peer in self.peers.items()}, 1)
        steps = self.options.steps
        for method in ("ancestral", "ddim") if steps else ():
            able = {pair: peer for pair, peer in self.peers.items() if method in peer.SAMPLERS}
            run = {
                pair: partial(peer.sample, method, steps, tuple(x.shape), self.device) for pair, peer in able.items()
            }
            self.race(f"Sampler {method}, {steps} steps", run, steps)

    def race(self, title: str, runs: dict, evaluations: int) -> None:
        """``runs``: contestant -> its run."""
        each = self.size * evaluations
        ways = [way(pair, self.peers[pair], run, self.size, each * self.flop[pair[0]]) for pair, run in runs.items()]
        alternate(ways, self.options)
        title = f"{title}, batch {self.size}, {self.device.type}"
        report(title, ways, REFERENCES, self.peaks, self.options)


def evaluate(peer, x: torch.Tensor) -> torch.Tensor:
    return peer.evaluate(x, torch.arange(len(x), device=x.device) * 900 // len(x))


if __name__ == "__main__":
    main()
