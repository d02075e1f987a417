"""Whether bfloat16 trains as float32 does: the same steps in both, on the same batches and noise, scored alike.

    python benchmarks/precision.py --data=IMAGES.zip --steps=4000 --seeds=0,1
    python benchmarks/precision.py --show

32x32 colour images, a tenth held out; by default a network small enough for a core. Where the processor has no
bfloat16 units, their arithmetic is computed in float32 (benchmarks/rounded_products.py). The averaged weights are
scored in float32: the held-out denoising error in bins of the log-SNR, and bits/dim by the probability-flow ODE.
PRECISION_SEED.json in the folder keeps each result; what is there is not trained again.
"""

import argparse
import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from contestants import configure
from machine import describe
from peers import Ours
from race import row, tell
from rounded_products import RoundedProducts
from time_to_quality import base, in_memory, score

from data import Dataset, get_dataset, train_batches, whole_file
from training import builders

PRECISIONS = ("float32", "bfloat16")


def main() -> None:
    """Train and score each precision with each seed; print the table."""
    options = flags().parse_args()
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    if not options.show:
        loading = {"root": options.data, "image_size": 32, "crop": "none", "holdout": 0.1}
        train, test = (get_dataset("folder", split, **loading) for split in ("train", "test"))
        train, test = in_memory(train, options.images), in_memory(test, max(options.heldout, options.bits))
        for seed in map(int, options.seeds.split(",")):
            for precision in options.precisions.split(","):
                run(precision, seed, options, train, test)
    show(options.folder)


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="folder or zip of images")
    parser.add_argument("--images", type=int, default=0, help="training images; 0: all that are not held out")
    parser.add_argument("--config", default="small", help="small, or a file of configs/ as NAME[:ARGUMENT]")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for both")
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--seeds", default="0,1", help="of weights, batches and noise")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--warmup", type=int, default=500, help="steps")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--heldout", type=int, default=512, help="images for the error in bins")
    parser.add_argument("--bits", type=int, default=64, help="images for bits/dim; 0: leave it out")
    parser.add_argument("--folder", type=Path, default=Path("runs/precision"))
    parser.add_argument("--show", action="store_true", help="only print the table")
    return parser


def run(precision: str, seed: int, options: argparse.Namespace, train: Dataset, test: Dataset) -> None:
    """Train, score, and keep the result."""
    file = options.folder / f"{precision}_{seed}.json"
    if file.exists():
        return
    device = torch.device(options.device)
    config = configure(base(options.config, options.warmup), options.set, options.batch)
    config.model.precision, config.seed = precision, seed
    peer = Ours(config, "as configured", device)
    peer.plan(options.steps)
    how = arithmetic(precision, device)
    batches = train_batches(train, options.batch, seed=seed, dequantize=True, flip=config.data.random_flip)
    losses = []
    with how:
        for step in range(1, options.steps + 1):
            losses.append(peer.step(next(batches).x.to(device)))
            if step % 500 == 0:
                tell(f"{precision}, seed {seed}: step {step}, loss {float(torch.stack(losses[-500:]).mean()):.4f}")
    batches.close()
    if isinstance(how, RoundedProducts) and not how.count:
        raise RuntimeError("no product was computed in bfloat16")
    record = {"name": f"{precision}, seed {seed}", "machine": describe(device), "arithmetic": type(how).__name__}
    record |= {"precision": precision, "seed": seed, "step": options.steps, "seconds": 0.0, "marks": []}
    record["loss"] = [round(float(part.mean()), 5) for part in torch.stack(losses).split(100)]
    score(peer, record, test, options, device, last=True)
    with whole_file(file) as draft:
        draft.write_text(json.dumps(record, indent=1))


def arithmetic(precision: str, device: torch.device) -> AbstractContextManager:
    """Of the hardware, or what stands for it."""
    native = precision == "float32" or builders.resolve_precision("auto", device) == "bfloat16"
    return nullcontext() if native else RoundedProducts()


def show(folder: Path) -> None:
    """One table, a line for each result."""
    records = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    if not records:
        raise SystemExit(f"no results in {folder}")
    edges = records[0]["marks"][-1]["edges"]
    row(
        [
            "seed",
            "precision",
            "steps",
            "last 1000 training losses",
            "held-out loss",
            "bits/dim",
            *map("{:.1f}".format, edges[:-1]),
        ]
    )
    row(["---"] * (5 + len(edges)))
    for record in sorted(records, key=lambda record: (record["seed"], record["precision"])):
        mark, last = record["marks"][-1], record["loss"][-10:]
        cells = [str(record["seed"]), record["precision"], str(record["step"]), f"{sum(last) / len(last):.4f}"]
        cells += [f"{mark['loss']:.4f} ± {mark['std_error']:.4f}"]
        cells += [f"{mark['bits_per_dim']:.3f} ± {mark['bits_error']:.3f}" if "bits_per_dim" in mark else ""]
        row([*cells, *(f"{value:.4f}" for value in mark["bins"])])


if __name__ == "__main__":
    main()
