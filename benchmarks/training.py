"""One training step, with optimizer and moving average: this project beside diffusers and denoising-diffusion-pytorch.

    python benchmarks/training.py                                  # DDPM's CIFAR-10 network, batches of 16 and 64
    python benchmarks/training.py --device=cuda --batch=128,512    # on a GPU; bfloat16 and diffusers' best switches too
    python benchmarks/training.py --device=cuda --batch=128 --peers=ours,diffusers --variants=compiled

Needs diffusers and denoising-diffusion-pytorch (pip install -e '.[bench]'); --peers leaves one out. What the peers and
their variants are, benchmarks/peers.py tells; how they take turns, benchmarks/race.py.
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
from training import kept_memory


def main() -> None:
    """Print a table for each batch size."""
    parser = arguments(__doc__, batch="16,64", rounds=7)
    flags(parser)
    options = parser.parse_args()
    device = begin(options)
    print(describe(device), flush=True)
    found = peaks(device, precisions(options), options.clock)
    for size in batches(options):
        config = configure(cifar10.get_config(), options.set, size)
        x0 = torch.rand(size, 3, 32, 32, device=device) * 2 - 1
        flop = {name: per_image(name, config, lambda peer, x: peer.step(x)) for name, _ in chosen(options)}
        ways = []
        for pair in chosen(options):
            peer = PEERS[pair[0]](config, pair[1], device)
            ways.append(way(pair, peer, partial(peer.step, x0), size, size * flop[pair[0]]))
        with kept_memory(device):  # as in training
            alternate(ways, options)
        report(f"Training step, batch {size}, {device.type}", ways, REFERENCES, found, options)


if __name__ == "__main__":
    main()
