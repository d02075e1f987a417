"""What a given time of training buys: this project's training against diffusers' own step, and recipe against recipe.

    python benchmarks/time_to_quality.py --data=IMAGES.zip --minutes=10                      # a small network, on a CPU
    python benchmarks/time_to_quality.py --data=IMAGES.zip --minutes=5 --config=cifar10 --device=cuda --batch=128
    python benchmarks/time_to_quality.py --data=IMAGES.zip --minutes=2 --config=song_cifar10:vp_ddpmpp --device=cuda \
        --contestants=ours,logistic,log_snr,edm,v+logistic # an ablation; RECIPES below names them, --set adds to all
    python benchmarks/time_to_quality.py --show            # the table of what is in the folder

All train the same network from the same weights on the same batches (32x32 colour images; a tenth is held out) for the
same time: seconds of the process on one thread of a CPU, where neighbours do not count, and of the clock on a GPU;
compilation counts, evaluation does not. Learning rates that decay reach their end when the time does. The averaged
weights of each are then scored by the same code: the held-out denoising error in bins of the log-SNR, and bits/dim by
the probability-flow ODE. Each contestant writes NAME.json into the folder after every quarter of its time, with its
state beside it, so it may be stopped, run alone (--contestants=NAME), and goes on.
"""

import argparse
import importlib
import itertools
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from contestants import configure
from machine import describe
from ml_collections import ConfigDict
from peers import Diffusers, Ours
from race import CLOCK_HELP, begin, row, settle, tell

from configs import cifar10
from data import Dataset, TensorDataset, UniformDequantizer, get_dataset, train_batches, whole_file
from evaluation import HeldOutLoss, ODEEstimator, computing_in, evaluate_likelihood, heldout_loss
from training import kept_memory

RECIPES: dict[str, dict[str, object]] = {
    "ours": {},
    "float32": {"model.precision": "float32"},
    "bfloat16": {"model.precision": "bfloat16"},
    "log_snr": {"training.time_law": "log_snr"},
    "logistic": {"training.time_law": "logistic"},
    "independent_times": {"training.low_discrepancy": False},
    "likelihood": {"training.weighting": "likelihood"},
    "likelihood_importance": {
        "training.weighting": "likelihood",
        "training.time_law": "log_snr",
        "training.importance": True,
    },
    "ema_999": {"training.ema_decay": 0.999},
    "no_ema": {"training.ema_decay": 0.0},
    "averages": {"training.averages": "0.99,0.995,0.998,0.999,power:0.05,power:0.1,power:0.15,power:0.2,power:0.25"},
    "v": {"model.prediction": "v"},
    "edm": {"model.prediction": "edm", "model.conditioning": "log_snr", "model.sigma_data": 0.5},
    "edm_logistic": {
        "model.prediction": "edm",
        "model.conditioning": "log_snr",
        "model.sigma_data": 0.5,
        "training.time_law": "logistic",
    },
    "cosine_decay": {"training.decay": "cosine"},
    "linear_decay": {"training.decay": "linear"},
    "rate_1e-4": {"training.learning_rate": 1e-4},
    "rate_5e-4": {"training.learning_rate": 5e-4},
    "rate_1e-3": {"training.learning_rate": 1e-3},
    "rate_2e-3": {"training.learning_rate": 2e-3},
    "rate_4e-3": {"training.learning_rate": 4e-3},
    "no_dropout": {"model.dropout": 0.0},
    "ddpm_chain": {"training.loss": "ddpm", "training.ddpm_steps": 1000},
    "no_graph": {"training.cuda_graph": False},
}
"""Name -> what it changes in the configuration; names joined by + are changes made together."""

PEERS = {"diffusers": "float32", "diffusers_autocast": "bfloat16", "diffusers_best": "best"}
"""Name -> variant of benchmarks/peers.py."""


def small() -> ConfigDict:
    """DDPM's network made small enough for minutes on a core."""
    config = cifar10.get_config()
    config.model.channels = 16
    config.model.channel_mult = (1, 2, 2)
    config.model.res_blocks = 1
    config.model.attention_resolutions = (8,)
    return config


def base(name: str, warmup: int) -> ConfigDict:
    """A configuration by name: "small", or a file of configs/ with its argument."""
    module, _, argument = name.partition(":")
    build = small if module == "small" else importlib.import_module(f"configs.{module}").get_config
    config = build(argument) if argument else build()
    config.training.warmup_steps = warmup
    config.data.dequantize = True  # so that there is a density, whose bits/dim are those of the levels
    return config


def main() -> None:
    """Train and score the contestants one after the other; print the table."""
    options = flags().parse_args()
    device = begin(options)
    options.folder.mkdir(parents=True, exist_ok=True)
    if not options.show:
        print(describe(device), flush=True)
        loading = {"root": options.data, "image_size": 32, "crop": "none", "holdout": 0.1}
        train, test = (get_dataset("folder", split, **loading) for split in ("train", "test"))
        train, test = in_memory(train, options.images), in_memory(test, max(options.heldout, options.bits))
        tell(f"{len(train)} training images, {len(test)} of the held-out ones")
        for name in options.contestants.split(","):
            with kept_memory(device):  # as in training
                run(name, options, train, test, device)
    show(options.folder)


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="folder or zip of images")
    parser.add_argument("--images", type=int, default=0, help="training images; 0: all that are not held out")
    parser.add_argument("--config", default="small", help="small, or a file of configs/ as NAME[:ARGUMENT]")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for all contestants")
    parser.add_argument("--contestants", default="ours,diffusers")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, each")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--warmup", type=int, default=500, help="steps of both; those of diffusers' script")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall" if torch.cuda.is_available() else "cpu", help=CLOCK_HELP
    )
    parser.add_argument("--heldout", type=int, default=512, help="images for the error in bins")
    parser.add_argument("--bits", type=int, default=64, help="images for bits/dim; 0: leave it out")
    parser.add_argument("--folder", type=Path, default=Path("runs/time_to_quality"))
    parser.add_argument("--show", action="store_true", help="only print the table")
    return parser


def in_memory(dataset: Dataset, count: int) -> TensorDataset:
    """The first images (0: all), decoded once, without labels."""
    count = min(count or len(dataset), len(dataset))
    levels = torch.cat([dataset.fetch(range(k, min(k + 1000, count))).x for k in range(0, count, 1000)])
    return TensorDataset(dataset.name, levels, quantizer=dataset.quantizer)


def contestant(name: str, options: argparse.Namespace, device: torch.device):
    """The trained thing, and its configuration."""
    config = configure(base(options.config, options.warmup), options.set, options.batch)
    if name in PEERS:
        peer = Diffusers(config, PEERS[name], device)
        peer.warmup = options.warmup
        return peer, config
    for part in name.split("+"):
        if part not in RECIPES:
            raise SystemExit(f"unknown contestant {part!r}; choose from {', '.join([*PEERS, *RECIPES])}")
        for key, value in RECIPES[part].items():
            section, own = key.split(".")
            if own not in config[section]:
                raise SystemExit(f"contestant {part!r} sets {key}, which the configuration does not have")
            config[section][own] = value
    return Ours(config, "as configured", device), config


def run(name: str, options: argparse.Namespace, train: Dataset, test: Dataset, device: torch.device) -> None:
    """Train for the time, score after each quarter, and keep all of it."""
    peer, config = contestant(name, options, device)
    folder = options.folder / name
    record = {"name": name, "settings": {k: str(v) for k, v in vars(options).items()}, "machine": describe(device)}
    record |= {"parameters": peer.parameters(), "step": 0, "seconds": 0.0, "loss": [], "marks": []}
    file = options.folder / f"{name}.json"
    if file.exists():
        record |= json.loads(file.read_text())
        peer.load(folder, device)
        tell(f"{name} goes on after {record['seconds']:.0f} s")
    budget = 60 * options.minutes
    while record["seconds"] < budget:
        quarter = int(4 * record["seconds"] / budget + 1e-6) + 1
        train_until(quarter * budget / 4, budget, peer, config, record, train, options, device)
        score(peer, record, test, options, device, last=record["seconds"] >= budget)
        peer.save(folder)
        with whole_file(file) as draft:
            draft.write_text(json.dumps(record, indent=1))


def train_until(end, budget, peer, config, record, train, options, device) -> None:
    """Steps until ``record`` has so many seconds."""
    now = time.process_time if options.clock == "cpu" else time.perf_counter
    batches = train_batches(
        train,
        options.batch,
        seed=config.seed,
        start_step=record["step"],
        dequantize=True,
        flip=config.data.random_flip,
        workers=2 if device.type == "cuda" else 0,
    )
    torch.manual_seed(record["step"])  # of diffusers' noise; ours has seeds of its own
    before, started, losses = record["seconds"], now(), []
    while record["seconds"] < end:
        if record["step"]:
            peer.plan(max(record["step"] + 1, round(record["step"] * budget / record["seconds"])))
        losses.append(peer.step(next(batches).x.to(device)))
        record["step"] += 1
        if len(losses) % 10 == 0:  # a GPU works ahead of Python, but not far
            settle(device)
        record["seconds"] = before + now() - started
        if len(losses) % 100 == 0:
            tell(
                f"{record['seconds']:.0f} s, step {record['step']}, loss {float(torch.stack(losses[-100:]).mean()):.4f}"
            )
    settle(device)
    record["seconds"] = before + now() - started
    batches.close()
    record["loss"] += [round(float(part.mean()), 5) for part in torch.stack(losses).split(100)]


def score(peer, record, test, options, device, *, last: bool) -> None:
    """Held-out error in bins, and at the end bits/dim, of the averaged weights, in float32; and of other averages."""

    def error(model) -> HeldOutLoss:
        with computing_in(model, "float32"), torch.no_grad():
            return heldout_loss(model.sde, model.eps, test, num_images=options.heldout, bins=8, seed=0, device=device)

    model = peer.averaged()
    found = error(model)
    mark = {"seconds": record["seconds"], "step": record["step"], **asdict(found)}
    if last:
        mark["averages"] = {name: asdict(error(other)) for name, other in peer.other_averages().items()}
    if last and options.bits:
        options_of_ode = {"rtol": 1e-2, "atol": 1e-2, "log_prob_care": 20.0}
        estimator = ODEEstimator(model.sde, scored(model), UniformDequantizer(test.quantizer), options=options_of_ode)
        with computing_in(model, "float32"):
            report, _ = evaluate_likelihood(
                estimator, test, num_images=options.bits, batch_size=min(options.bits, 128), seed=0, device=device
            )
        mark |= {"bits_per_dim": report.bits_per_dim, "bits_error": report.std_error, "nfe": report.nfe}
    record["marks"].append(mark)
    tell(f"{record['name']}: after {record['seconds']:.0f} s, {record['step']} steps: held-out loss {found.loss:.4f}")


def scored(model):
    """As the estimators call it; the weights are not to be trained."""
    model.requires_grad_(False)
    return lambda x, t, y: model(x, t)


def show(folder: Path) -> None:
    """One table of the ends, and one of the loss after each quarter."""
    records = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    if not records:
        raise SystemExit(f"no results in {folder}")
    edges = records[0]["marks"][-1]["edges"]
    bins = [f"{low:.1f} .. {high:.1f}" for low, high in itertools.pairwise(edges)]
    print("\nHeld-out denoising error by log-SNR, and bits/dim, at the end\n")
    row(["", "minutes", "steps", "images", "loss", *bins, "bits/dim"])
    row(["---"] * (6 + len(bins)))
    for record in records:
        mark = record["marks"][-1]
        if mark["edges"] != edges:
            tell(f"{record['name']} has another process: its bins are others")
        images = record["step"] * int(record["settings"]["batch"])
        cells = [record["name"], f"{record['seconds'] / 60:.1f}", f"{record['step']}", f"{images}"]
        cells += [f"{mark['loss']:.4f} ± {mark['std_error']:.4f}", *(f"{value:.4f}" for value in mark["bins"])]
        row([*cells, f"{mark['bits_per_dim']:.3f} ± {mark['bits_error']:.3f}" if "bits_per_dim" in mark else ""])
    for record in records:
        others = record["marks"][-1].get("averages")
        if others:
            print(f"\nHeld-out loss of other averages of {record['name']}\n")
            row(list(others))
            row(["---"] * len(others))
            row([f"{found['loss']:.4f}" for found in others.values()])
    print("\nHeld-out loss after each quarter of the time, and of what was added later\n")
    most = max(len(record["marks"]) for record in records)
    row(["", *(str(number + 1) for number in range(most))])
    row(["---"] * (1 + most))
    for record in records:
        cells = [f"{mark['loss']:.4f}" for mark in record["marks"]]
        row([record["name"], *cells, *[""] * (most - len(cells))])


if __name__ == "__main__":
    main()
