"""Several ways to do the same work, in turn: medians and minima, operations per second, share of the measured peak.

The ways take turns, forwards in one round and backwards in the next, so a machine that slows down slows all of them. A
way that has used up its seconds sits out the rest. Operations (multiplications and additions) are those of
convolutions and matrix products, counted by ``torch.utils.flop_counter``.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from training.flops import Operations

SHORT = 0.2
"""Seconds that one timing takes at least, by repeating calls that are shorter."""


@dataclass
class Way:
    """One contestant.

    Attributes:
        name: what it is called in the table.
        run: does the work once.
        images: in one call.
        flop: operations of one call; None to count them in the first call.
        precision: whose peak it is measured by.
        parameters: of its network.
        seconds: of one call, in each round.
    """

    name: str
    run: Callable[[], object]
    images: int
    flop: float | None = None
    precision: str = "float32"
    parameters: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / self.median


def arguments(doc: str, *, batch: str, rounds: int) -> argparse.ArgumentParser:
    """The flags that all races have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", default=batch, help="images in a call; several divided by commas")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each way at each batch, warm-up included")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: torch's choice")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help=CLOCK_HELP)
    parser.add_argument("--json", type=Path, help="file for all timings; tables are added to what it holds")
    return parser


CLOCK_HELP = "cpu: seconds of this process, for one thread on a shared machine"


def begin(options: argparse.Namespace) -> torch.device:
    """Set the threads; the device."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if options.clock == "cpu" and (device.type != "cpu" or torch.get_num_threads() > 1):
        raise SystemExit("--clock=cpu adds up the seconds of all threads; use it with --device=cpu --threads=1")
    return device


def batches(options: argparse.Namespace) -> list[int]:
    return [int(size) for size in options.batch.split(",")]


def count_flop(run: Callable[[], object]) -> int:
    """Operations of one call; attention is counted as its two matrix products."""
    with sdpa_kernel(SDPBackend.MATH), Operations() as counted:
        run()
    return counted.total


def alternate(ways: list[Way], options: argparse.Namespace) -> None:
    """Fill in the seconds of every way."""
    device = torch.device(options.device)
    spent, calls = {}, {}
    for way in ways:
        started = time.perf_counter()
        if way.flop is None:
            way.flop = count_flop(way.run)
        for _ in range(3 if device.type == "cuda" else 1):  # caches, kernels, compilation, graphs
            way.run()
        once = timed(way.run, 1, options.clock, device)
        calls[way.name] = min(max(math.ceil(SHORT / once), 1), 50)
        spent[way.name] = time.perf_counter() - started
        tell(f"warm-up: {way.name} {1e3 * once:.1f} ms")
    for number in range(options.rounds):
        for way in ways if number % 2 == 0 else ways[::-1]:
            if way.seconds and spent[way.name] > options.seconds:
                continue
            started = time.perf_counter()
            way.seconds.append(timed(way.run, calls[way.name], options.clock, device))
            spent[way.name] += time.perf_counter() - started
            tell(f"round {number + 1} of {options.rounds}: {way.name} {1e3 * way.seconds[-1]:.1f} ms")


def timed(run: Callable[[], object], calls: int, clock: str, device: torch.device) -> float:
    """Seconds of one call, of several in a row."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    settle(device)
    started = now()
    for _ in range(calls):
        run()
    settle(device)
    return (now() - started) / calls


def settle(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def report(title: str, ways: list[Way], references: list[str], peaks: dict[str, float], options) -> None:
    """Print a markdown table, and keep it in the file of ``--json``.

    Args:
        title: of the table.
        ways: after the race.
        references: names of the ways by whose images per second the others are divided.
        peaks: precision -> measured operations per second.
        options: parsed flags.
    """
    known = {way.name: way for way in ways}
    references = [name for name in references if name in known]
    head = ["way", "parameters", "GFLOP/img", "ms, median", "min", "img/s", "GFLOP/s", "of the peak"]
    print(f"\n{title}\n")
    row([*head, *(f"times {name}" for name in references)])
    row(["---"] * (len(head) + len(references)))
    rows = []
    for way in ways:
        gflops, peak = way.flop / way.median / 1e9, peaks.get(way.precision)
        cells = [
            way.name,
            f"{way.parameters / 1e6:.2f} M",
            f"{way.flop / way.images / 1e9:.2f}",
            f"{1e3 * way.median:.1f}",
            f"{1e3 * min(way.seconds):.1f}",
            f"{way.rate:.3g}" if way.rate < 1000 else f"{way.rate:.0f}",
            f"{gflops:.0f}",
            f"{1e9 * gflops / peak:.0%}" if peak else "",
        ]
        row([*cells, *(f"{way.rate / known[name].rate:.2f}" for name in references)])
        rows.append(
            {
                "name": way.name,
                "parameters": way.parameters,
                "flop": way.flop,
                "images": way.images,
                "precision": way.precision,
                "seconds": way.seconds,
            }
        )
    print(flush=True)
    keep(options, title, {"rows": rows, "peaks": peaks})


def keep(options: argparse.Namespace, title: str, content: dict) -> None:
    """Add a table to the file of ``--json``."""
    if options.json is None:
        return
    found = json.loads(options.json.read_text()) if options.json.exists() else {}
    settings = {key: str(value) for key, value in vars(options).items() if key != "json"}
    found[title] = {"date": time.strftime("%Y-%m-%d"), "settings": settings, **content}
    options.json.write_text(json.dumps(found, indent=1))


def row(cells: list[str]) -> None:
    print(f"| {' | '.join(cells)} |")
