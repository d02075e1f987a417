"""How long data take to come, beside a training step: conversion, batches from each source, and the flagship's step.

python benchmarks/loading.py [--images 400] [--steps 4]

A folder of random aligned-size JPEGs (178 x 218, layout and names of CelebA) is made for it, the same images as a zip,
and as tar shards; nothing is downloaded.
"""

import argparse
import io
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs import celeba64, celeba64_attributes, celeba128
from data import StepDraws, get_dataset, prepare, train_batches
from training import builders

NAMES = ["Eyeglasses", "Male", "Smiling", "Wearing_Hat", "Young"]


def write_celeba(root: Path, count: int) -> list[tuple[str, bytes]]:
    """A CelebA folder of smooth noise; returns the files."""
    folder = root / "img_align_celeba"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    files = []
    for number in range(1, count + 1):
        noise = Image.fromarray(draw.integers(0, 256, (218, 178, 3), dtype=np.uint8))
        content = io.BytesIO()
        noise.filter(ImageFilter.GaussianBlur(3)).save(content, "JPEG", quality=90)
        files.append((f"{number:06d}.jpg", content.getvalue()))
        (folder / files[-1][0]).write_bytes(content.getvalue())
    rows = [f"{name} {' '.join(str(v) for v in 2 * draw.integers(0, 2, 5) - 1)}" for name, _ in files]
    (root / "list_attr_celeba.txt").write_text("\n".join([str(count), " ".join(NAMES), *rows]) + "\n")
    lines = [f"{name} {0 if k % 10 else 2}" for k, (name, _) in enumerate(files)]
    (root / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    return files


def write_others(root: Path, files: list[tuple[str, bytes]]) -> None:
    """The same images as a zip and as two shards."""
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        for name, content in files:
            archive.writestr(name, content)
    for shard in range(2):
        with tarfile.open(root / f"images-{shard}.tar", "w") as tar:
            for name, content in files[shard::2]:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def per_batch(dataset, batch_size: int, workers: int = 0, batches: int = 60) -> float:
    """Seconds for a batch, all of the work: order, reading, levels to model values, flips."""
    stream = train_batches(dataset, batch_size, seed=0, dequantize=False, flip=True, workers=workers)
    next(stream)
    start = time.perf_counter()
    for _ in range(batches):
        next(stream)
    seconds = (time.perf_counter() - start) / batches
    if workers:
        stream.close()
    return seconds


def per_step(config, dataset, batch, steps: int) -> float:
    """Seconds for an optimizer step on a batch that is there already: the median."""
    device = torch.device("cpu")
    model = builders.build_model(config, dataset, device)
    state = builders.build_state(config, model)
    loss_fn = builders.build_loss(config, model.sde)
    times = []
    for step in range(steps):
        start = time.perf_counter()
        loss_fn(model, batch.x, batch.y, StepDraws(0, step, len(batch.x), range(len(batch.x)))).mean().backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files = write_celeba(root / "celeba", args.images)
        write_others(root, files)
        start = time.perf_counter()
        options = {"root": str(root / "celeba"), "image_size": 64, "crop": "celeba140"}
        get_dataset("celeba", "train", cache=str(root / "cache"), **options)
        seconds = time.perf_counter() - start
        print(f"conversion of {args.images * 9 // 10} JPEGs to 64 x 64: {seconds:.2f} s", flush=True)
        general = {"image_size": 64, "crop": "celeba140", "channels": 3, "holdout": 0.1}
        sources = {
            "celeba, converted": get_dataset("celeba", "train", cache=str(root / "cache"), **options),
            "celeba, decoded each time": get_dataset("celeba", "train", **options),
            "zip, decoded each time": get_dataset("folder", "train", root=str(root / "images.zip"), **general),
            "shards, decoded each time": get_dataset("shards", "train", root=f"{root}/images-{{0..1}}.tar", **general),
        }
        for name, dataset in sources.items():
            print(f"batch of 8, {name}: {1e3 * per_batch(dataset, 8):.2f} ms", flush=True)
        for recipe in (celeba64, celeba64_attributes, celeba128):
            name, config = recipe.__name__.removeprefix("configs."), recipe.get_config()
            config.data.root, config.data.cache = str(root / "celeba"), str(root / "cache")
            if config.data.attributes:
                config.data.attributes = ",".join(NAMES)
            dataset = builders.build_dataset(config, "train")
            size = config.training.batch_size
            loading = per_batch(dataset, size, workers=0)
            batch = prepare(
                dataset.fetch(range(size)),
                dataset.quantizer,
                StepDraws(0, 0, size, range(size)),
                dequantize=False,
                flip=False,
            )
            step = per_step(config, dataset, batch, args.steps)
            share = f"its batch {1e3 * loading:.2f} ms, {loading / step:.2%}"
            print(f"{name}: a step of {size} images {step:.2f} s, {share}", flush=True)


if __name__ == "__main__":
    main()
