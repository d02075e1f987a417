"""The contestants of a race: which peers in which variants, built on one configuration.

Peers and variants: benchmarks/peers.py. By default bfloat16 runs only where the hardware multiplies in it, and the
peer's best switches on a GPU alone; torch.compile, which takes minutes, only when asked for.
"""

import argparse
import ast
from collections.abc import Callable

import torch
from ml_collections import ConfigDict
from peers import PEERS
from race import Way, count_flop

from training import builders

REFERENCES = ["diffusers float32", "diffusers bfloat16", "diffusers best", "diffusers compiled"]
"""By whose speed the others are divided."""

Pair = tuple[str, str]
"""(peer, variant)."""


def flags(parser: argparse.ArgumentParser) -> None:
    """Add those that choose."""
    parser.add_argument("--peers", default="ours,diffusers,lucidrains")
    parser.add_argument(
        "--variants", default="", help="of float32,bfloat16,best,compiled; by default what suits the device"
    )
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="of the configuration")


def chosen(options: argparse.Namespace) -> list[Pair]:
    """All contestants."""
    usual = [*native_precisions(options), *(["best"] if torch.device(options.device).type == "cuda" else [])]
    wanted = options.variants.split(",") if options.variants else usual
    pairs = [(name, variant) for name in options.peers.split(",") for variant in wanted]
    return [(name, variant) for name, variant in pairs if variant in PEERS[name].VARIANTS]


def precision_choice(options: argparse.Namespace) -> list[str]:
    """Where there are no other variants."""
    wanted = options.variants.split(",") if options.variants else native_precisions(options)
    return [name for name in wanted if name in ("float32", "bfloat16")]


def native_precisions(options: argparse.Namespace) -> list[str]:
    """Those in which the hardware multiplies."""
    native = builders.resolve_precision("auto", torch.device(options.device)) == "bfloat16"
    return ["float32", "bfloat16"] if native else ["float32"]


def precisions(options: argparse.Namespace) -> set[str]:
    """Of their products."""
    return {precision(variant) for _, variant in chosen(options)}


def precision(variant: str) -> str:
    return "float32" if variant == "float32" else "bfloat16"


def configure(config: ConfigDict, settings: list[str], batch: int) -> ConfigDict:
    """A copy with SECTION.KEY=VALUE settings, and the batch size."""
    config = config.copy_and_resolve_references()
    for setting in settings:
        name, _, text = setting.partition("=")
        section, key = name.split(".")
        if key not in config[section]:
            raise SystemExit(f"there is no setting {name}")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        config[section][key] = value
    config.training.batch_size = batch
    return config


def per_image(name: str, config: ConfigDict, work: Callable[[object, torch.Tensor], object]) -> float:
    """Operations of what ``work`` does with (peer, images), for each image; counted on the CPU, without graphs."""
    peer = PEERS[name](configure(config, [], 2), "float32", torch.device("cpu"))
    return count_flop(lambda: work(peer, torch.zeros(2, 3, 32, 32))) / 2


def way(pair: Pair, peer: object, run: Callable[[], object], images: int, flop: float) -> Way:
    """Of a contestant; ``flop`` is that of a call."""
    return Way(" ".join(pair), run, images, flop, precision(pair[1]), peer.parameters())
