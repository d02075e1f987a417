"""Guidance scale against what comes out: are the digits those that were asked for, and how different are they?

python run_lib.py --mode=train --config=configs/digits_classes.py
python benchmarks/digits_guidance.py [RUN] [--picture docs/images/guidance.png]

Accuracy: a support-vector machine trained on the real training digits recognises 1,000 generated ones (deis, 12 steps)
as their label. Diversity: mean distance of two digits of one class, relative to that of real ones.
"""

import argparse
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from sklearn.svm import SVC

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs import stored
from data import get_dataset
from evaluation import generate
from guidance import ClassifierFreeGuidance
from samplers import get_sampler
from training import RunFolder, builders, load_checkpoint, load_weights

mpl.use("Agg")
from matplotlib import pyplot as plt

SCALES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)


def spread(x: np.ndarray, y: np.ndarray) -> float:
    """Mean distance of two images of one class."""
    parts = [x[y == k].astype(float) for k in range(10)]
    return float(np.mean([np.linalg.norm(part[:, None] - part[None], axis=2).mean() for part in parts]))


def main() -> None:
    """Print a table, and plot it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", default="runs/digits_classes")
    parser.add_argument("--picture", default="")
    args = parser.parse_args()
    train, test = get_dataset("digits"), get_dataset("digits", "test")
    (x, y), (x_test, y_test) = (part.fetch(range(len(part))) for part in (train, test))
    x, x_test = x.flatten(1).numpy(), x_test.flatten(1).numpy()
    judge = SVC(gamma=0.001, C=10).fit(x, y.numpy())
    print(f"real held-out digits: {(judge.predict(x_test) == y_test.numpy()).mean():.2%}", flush=True)
    experiment = builders.build_experiment(stored.get_config(str(Path(args.run) / "config.json")))
    path = RunFolder(args.run).checkpoint()
    load_weights(experiment.model, load_checkpoint(path)[0]["ema"], path)
    model, labels = experiment.model.eval().requires_grad_(False), torch.arange(1000) % 10
    rows = []
    for scale in SCALES:
        score_fn = ClassifierFreeGuidance(experiment.sde, model, scale)
        options = {"batch_size": 500, "labels": labels, "seed": 1, "progress": False}
        drawn = generate(get_sampler("deis", steps=12), experiment.sde, score_fn, (1, 8, 8), 1000, **options).x
        v = train.quantizer.decode(drawn).flatten(1).numpy()
        accuracy = (judge.predict(v) == labels.numpy()).mean()
        rows.append((scale, accuracy, spread(v, labels.numpy()) / spread(x, y.numpy())))
        print(f"| {scale:g} | {accuracy:.1%} | {rows[-1][2]:.3f} |", flush=True)
    if args.picture:
        scales, accuracies, diversities = zip(*rows, strict=True)
        _, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
        axes.plot(scales, accuracies, "o-", label="recognised as their label")
        axes.plot(scales, diversities, "s-", label="diversity, relative to real digits")
        axes.set(xlabel="guidance scale w", ylim=(0, 1.4))
        axes.legend()
        plt.savefig(args.picture, dpi=120)


if __name__ == "__main__":
    main()
