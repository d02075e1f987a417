"""What a training step and an evaluation cost beside their products: convolutions, matrix products, attention.

    python benchmarks/around_products.py --batch=16

On bfloat16 units products take a tenth of their time in float32, and half of a step is everything else: normalisations,
conversions, sums, random numbers, the optimizer, the average. That can be measured on any machine. Each product is
computed once (of bfloat16 numbers in float32, benchmarks/rounded_products.py); later ones of the same shapes return
what it found, at once. The values are of no use then. Peers and variants: benchmarks/peers.py.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from contestants import configure, flags
from machine import describe
from peers import PEERS
from race import Way, alternate, arguments, batches, begin, keep, row
from rounded_products import PRODUCTS, RoundedProducts
from sampling import evaluate
from torch.utils._pytree import tree_map_only

from configs import cifar10

VARIANTS = {"ours": ("bfloat16",), "diffusers": ("bfloat16", "float32"), "lucidrains": ("bfloat16", "float32")}


def main() -> None:
    """Print a table of steps and one of evaluations for each batch size."""
    parser = arguments(__doc__, batch="16", rounds=7)
    flags(parser)
    options = parser.parse_args()
    device = begin(options)
    print(describe(device), flush=True)
    pairs = [(name, variant) for name in options.peers.split(",") for variant in VARIANTS[name]]
    for size in batches(options):
        config = configure(cifar10.get_config(), options.set, size)
        x0 = torch.rand(size, 3, 32, 32) * 2 - 1
        peers = {f"{name} {variant}": PEERS[name](config, variant, device) for name, variant in pairs}
        runs = {name: partial(peer.step, x0) for name, peer in peers.items()}
        race(f"A step beside its products, batch {size}", runs, options)
        runs = {name: partial(evaluate, peer, x0) for name, peer in peers.items()}
        race(f"An evaluation beside its products, batch {size}", runs, options)


def race(title: str, runs: dict, options: Any) -> None:
    """``runs``: contestant -> its work."""
    with Recorded() as recorded:
        for run in runs.values():
            run()
    ways = [Way(name, run, 1, flop=0.0) for name, run in runs.items()]
    with known(recorded.results):
        alternate(ways, options)
    print(f"\n{title}\n")
    row(["way", "ms, median", "min"])
    row(["---"] * 3)
    for way in ways:
        row([way.name, f"{1e3 * median(way.seconds):.0f}", f"{1e3 * min(way.seconds):.0f}"])
    print(flush=True)
    keep(options, title, {"rows": [{"name": way.name, "seconds": way.seconds} for way in ways]})


class Recorded(RoundedProducts):
    """A context that keeps the result of the first product of each kind and shapes.

    Attributes:
        results: key -> result.
    """

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[Any, Any] = {}

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if op not in PRODUCTS:
            return op(*args, **(kwargs or {}))
        key = key_of(op, args)
        if key not in self.results:
            self.results[key] = super().__torch_dispatch__(op, types, args, kwargs)
        return again(self.results[key])


@contextmanager
def known(results: dict[Any, Any]) -> Iterator[None]:
    """A context in which products return what was found before."""
    library = torch.library.Library("aten", "IMPL")
    for op in PRODUCTS:
        library.impl(op, partial(_look_up, results, op), "CPU")
    try:
        yield
    finally:
        library._destroy()


def _look_up(results: dict[Any, Any], op: Any, *args: Any, **kwargs: Any) -> Any:
    return again(results[key_of(op, args)])


def key_of(op: Any, args: tuple[Any, ...]) -> Any:
    """The product and the shapes, layouts and types of what goes in."""

    def known(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return tuple(value.shape), value.stride(), value.dtype
        return tuple(value) if isinstance(value, list) else value

    return op, *map(known, args)


def again(result: Any) -> Any:
    """The same numbers as new tensors, so that gradients can be taken over as they are."""
    return tree_map_only(torch.Tensor, torch.Tensor.detach, result)


if __name__ == "__main__":
    main()
