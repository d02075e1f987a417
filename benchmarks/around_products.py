"""What a training step and an evaluation cost beside their products: convolutions, matrix products, attention.

    python benchmarks/around_products.py --batch=16 --peers=ours,diffusers

On bfloat16 units products take a tenth of their time in float32, and half of a step is everything else: normalisations,
conversions, sums, random numbers, the optimizer, the average. That is measured here without such units. Each product is
computed once (of bfloat16 numbers in float32, benchmarks/rounded_products.py); later ones of the same shapes return a
copy of what it found, so the time of these copies is in the tables, for all alike. The values are of no use then. Steps
are timed as in training, with the memory that they free kept. Peers and variants: benchmarks/peers.py; CPU only.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from contestants import chosen, configure, flags
from machine import describe
from peers import PEERS
from race import Way, alternate, arguments, batches, begin, keep, row
from rounded_products import PRODUCTS, RoundedProducts
from sampling import evaluate
from torch.utils._pytree import tree_map_only

from configs import cifar10
from training import kept_memory


def main() -> None:
    """Print a table of steps and one of evaluations for each batch size."""
    parser = arguments(__doc__, batch="16", rounds=7)
    flags(parser)
    parser.set_defaults(device="cpu", variants="float32,bfloat16")
    options = parser.parse_args()
    device = begin(options)
    if device.type != "cpu":
        raise SystemExit(f"--device={device}: only products on the CPU can be left out; leave the flag out")
    print(describe(device), flush=True)
    for size in batches(options):
        config = configure(cifar10.get_config(), options.set, size)
        x0 = torch.rand(size, 3, 32, 32) * 2 - 1
        peers = {" ".join(pair): PEERS[pair[0]](config, pair[1], device) for pair in chosen(options)}
        steps = {name: partial(peer.step, x0) for name, peer in peers.items()}
        with kept_memory(device):
            time_beside(f"A step beside its products, batch {size}", steps, options)
        evaluations = {name: partial(evaluate, peer, x0) for name, peer in peers.items()}
        time_beside(f"An evaluation beside its products, batch {size}", evaluations, options)


def time_beside(title: str, runs: dict[str, Callable[[], object]], options: Any) -> None:
    """A table; ``runs``: contestant -> its work."""
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
        row([way.name, f"{1e3 * way.median:.0f}", f"{1e3 * min(way.seconds):.0f}"])
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
        return copied(self.results[key])


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
    return copied(results[key_of(op, args)])


def key_of(op: Any, args: tuple[Any, ...]) -> Any:
    """The product and the shapes, layouts and types of what goes in."""

    def kind(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return tuple(value.shape), value.stride(), value.dtype
        return tuple(value) if isinstance(value, list) else value

    return op, *map(kind, args)


def copied(result: Any) -> Any:
    """The same numbers in memory of their own, as a product's would be."""
    return tree_map_only(torch.Tensor, torch.Tensor.clone, result)


if __name__ == "__main__":
    main()
