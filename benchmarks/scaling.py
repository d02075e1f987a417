"""What a run on many GPUs needs: computed from the networks' operations and stated rates, with what can be timed here.

    python benchmarks/scaling.py [--rate 3000] [--link 50e9] ...     the tables of docs/scaling.md
    python benchmarks/scaling.py --measure                           what one machine can time without GPUs
    torchrun --standalone --nproc-per-node=2 benchmarks/scaling.py --measure     a checkpoint of shares

All follows from one rate, images/s of the 35.7 M CIFAR-10 U-Net in training on one device: the operations that this
device sustains. Seconds of the other networks are their operations divided by it, so convolutions of other widths are
taken to be as efficient, and small batches too.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from configs import celeba64, celebahq256, cifar10
from data import StepDraws
from data.order import batch_indices
from evaluation import Parts
from models import ADM
from training import Checkpoints, builders, joined
from training.saver import Saver, snapshot

GPUS = (1, 8, 64, 512)
NODE = 8
NFE = 35
"""Evaluations of a sample: 18 steps of EDM's sampler, as for CIFAR-10 (arXiv 2206.00364)."""
ODE = 100
"""Evaluations of a likelihood, each a forward and a backward pass."""


@dataclass(frozen=True)
class Job:
    """A network and its training: images in one step, and in all; held-out images to be scored."""

    name: str
    net: torch.nn.Module
    size: int
    batch: int
    images: float
    held_out: int

    def operations(self, gradient: bool) -> int:
        """Of one image: forward, or forward and backward, counted on the meta device."""
        x = torch.empty(1, 3, self.size, self.size, device="meta")
        with torch.set_grad_enabled(gradient), FlopCounterMode(display=False) as counter:
            out = self.net(x, torch.empty(1, device="meta"))
            if gradient:
                out.sum().backward()
        return counter.get_total_flops()

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.net.parameters())


def from_recipe(config) -> torch.nn.Module:
    config.data.name = "none"  # its shape is all that matters
    return builders.describe_model(config, builders.build_dataset(config, "train")).build_network().to("meta")


def jobs() -> list[Job]:
    """The first is the measure of all others."""
    adm = ADM(3, 64, head_channels=64, num_classes=1000, resample_in_blocks=True).to("meta")
    celebahq = celebahq256.get_config("ddpm")
    return [
        Job("CIFAR-10 32", from_recipe(cifar10.get_config()), 32, 128, 128 * 800_000, 10_000),
        Job("CelebA 64", from_recipe(celeba64.get_config()), 64, 256, 50 * 162_770, 19_962),
        Job("CelebA-HQ 256", from_recipe(celebahq), 256, 64, 64 * 500_000, 300),
        Job("ImageNet 64", adm, 64, 4096, 2500e6, 50_000),
    ]


def all_reduce(nbytes: float, gpus: int, args) -> float:
    """Seconds: scatter and gather over NVLink in a machine, a ring of each GPU's share between machines; latencies."""
    inside, machines = min(gpus, NODE), -(-gpus // NODE)
    seconds = 2 * (inside - 1) / inside * nbytes / args.nvlink
    seconds += 2 * (machines - 1) / machines * nbytes / inside / args.link
    buckets = -(-nbytes // 25e6)
    return seconds + (buckets * args.latency if gpus > 1 else 0)


def duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= size:
            return f"{seconds / size:.2g} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{float(f'{seconds * 1e3:.2g}'):g} ms"


def plan(args) -> None:
    known = jobs()
    sustained = args.rate * known[0].operations(gradient=True)
    print(f"one device: {args.rate:g} images/s of {known[0].name}, so {sustained / 1e12:.3g} TFLOP/s sustained\n")
    print("| network | parameters | GFLOP an image, trained | sampled | images/s of one | gradient | checkpoint |")
    print("|---|---|---|---|---|---|---|")
    for job in known:
        trained, forward = (job.operations(gradient) for gradient in (True, False))
        print(
            f"| {job.name} | {job.parameters / 1e6:.1f} M | {trained / 1e9:,.0f} | {forward / 1e9:,.0f} | "
            f"{sustained / trained:,.0f} | {job.parameters * 4 / 1e6:,.0f} MB | {job.parameters * 16 / 1e9:.2f} GB |"
        )
    print(
        "\n| run | GPUs | images/s | of a machine's 8 | step | all-reduce | not hidden | training | copy | written in "
        "| 50,000 samples | bits/dim |"
    )
    print("|" + "---|" * 12)
    for job in known[1:]:
        trained, forward = (job.operations(gradient) for gradient in (True, False))
        for gpus in GPUS:
            if job.batch % gpus:
                print(f"| {job.name}, batch {job.batch} | {gpus} | cannot be shared |" + " |" * 9)
                continue
            compute = job.batch / gpus * trained / sustained
            reduce = all_reduce(4 * job.parameters, gpus, args)
            exposed = max(0.0, reduce - 2 / 3 * compute)  # it runs beside the backward pass
            step, checkpoint = compute + exposed, 16 * job.parameters
            cells = [
                f"{job.batch / step:,.0f}",
                f"{job.batch / step / max(1, gpus / NODE):,.0f}",
                duration(step),
                duration(reduce),
                f"{exposed / step:.0%}",
                duration(job.images / job.batch * step),
                duration(checkpoint / args.copy),
                duration(checkpoint / args.disk),
                duration(50_000 * NFE * forward / sustained / gpus),
                duration(job.held_out * ODE * trained / sustained * args.float32 / min(gpus, job.held_out)),
            ]
            print(f"| {job.name}, batch {job.batch} | {gpus} | " + " | ".join(cells) + " |")


def timed(run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure(folder: Path) -> None:
    for count, size in ((782, 64), (5_000, 1)):
        parts = Parts(folder / f"parts{size}")
        x = np.zeros((size, 3, 8, 8), np.float32)
        rows = [{"index": np.arange(k * size, (k + 1) * size), "x": x} for k in range(count)]
        saved = timed(lambda parts=parts, rows=rows: [parts.save(row) for row in rows])
        fresh = Parts(parts.folder)
        times = [timed(fresh.done), timed(fresh.done), timed(fresh.load), timed(fresh.remove)]
        print(
            f"parts: {count} files of {size} samples 3x8x8: {saved / count * 1e3:.2f} ms to save one; all found in "
            "{:.2f} s, looked at again in {:.3f} s, loaded in {:.2f} s, removed in {:.2f} s".format(*times),
            flush=True,
        )
    tensors = {"model": {str(k): torch.randn(2**22) for k in range(64)}}  # 1 GiB
    copied = [timed(lambda: snapshot(tensors)) for _ in range(3)]
    written = timed(lambda: Checkpoints(folder / "checkpoints").save(1, tensors, {}))
    print(f"checkpoint of 1 GiB: copied in {min(copied):.2f} s, written with its digest in {written:.2f} s", flush=True)
    draws, x = StepDraws(0, 1, 4096, range(0, 4096, 64)), torch.empty(64, 3, 64, 64)
    noise = min(timed(lambda: draws.normal_like("noise", x)) for _ in range(5)) / 64
    bare = min(timed(x.normal_) for _ in range(5)) / 64
    print(
        f"noise of an image 3x64x64 from its own generator: {noise * 1e6:.0f} us; of a batch at once {bare * 1e6:.0f}"
    )
    order = [timed(lambda step=step: batch_indices(1_281_167, 4096, step, seed=0)) for step in (0, 1, 2)]
    print(f"order of 1,281,167 samples: {order[0] * 1e3:.0f} ms an epoch, {order[2] * 1e3:.2f} ms a batch of 4096")


def measure_shares(rank: int, count: int) -> None:
    """How long training waits for the copy of a checkpoint, and when all is written: of wholes and of shares."""
    with joined(rank, count) as together, tempfile.TemporaryDirectory() as folder:
        for parallel in ("ddp", "fsdp"):
            config = cifar10.get_config()
            config.data.name, config.training.parallel = "none", parallel
            model = builders.build_model(config, builders.build_dataset(config, "train"), torch.device("cpu"))
            state = builders.build_state(config, model, together)
            for parameter in state.model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            state.optimizer.step()
            with Saver(Checkpoints(Path(folder)) if rank == 0 else None) as saver:
                saver.save(state)
                saver.wait()
                together.told(None)
                copied = timed(lambda saver=saver, state=state: saver.save(state))
                written = copied + timed(saver.wait)
            if rank == 0:
                tensors, _ = state.content()
                total = sum(value.numel() * 4 for group in tensors.values() for value in group.values())
                print(
                    f"{parallel}: {total / 1e9:.2f} GB copied in {copied:.2f} s, written in {written:.2f} s", flush=True
                )


def main() -> None:
    """Print the tables, or time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=3000, help="images/s of the CIFAR-10 U-Net, training on a GPU")
    parser.add_argument("--nvlink", type=float, default=450e9, help="bytes/s of a GPU in one direction, in a machine")
    parser.add_argument("--link", type=float, default=50e9, help="bytes/s of a GPU to other machines: 400 Gb/s")
    parser.add_argument("--latency", type=float, default=50e-6, help="seconds of an all-reduce of nothing")
    parser.add_argument("--copy", type=float, default=25e9, help="bytes/s from a GPU to the host")
    parser.add_argument("--disk", type=float, default=1e9, help="bytes/s of writing a checkpoint, digest included")
    parser.add_argument("--float32", type=float, default=4, help="how many times slower float32 is")
    parser.add_argument("--measure", action="store_true")
    args = parser.parse_args()
    if args.measure and (count := int(os.environ.get("WORLD_SIZE", 1))) > 1:
        measure_shares(int(os.environ["RANK"]), count)
    elif args.measure:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder))
    else:
        plan(args)


if __name__ == "__main__":
    main()
