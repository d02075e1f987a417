"""A small classifier of a data set's own labels: features for images of which Inception knows nothing, as digits.

It trains in seconds on the labelled training data, and its weights follow from the data and a seed. The features are
its last hidden layer; the logits of its classes give a score like Inception's. What it cannot tell apart, it does not
see: its accuracy on held-out images is told with every result.
"""

import json
import time
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from data import Dataset, batch_indices, derive_seed, whole_file
from evaluation.extractors import Extractor, Features, as_seen, hash_of

STEPS = 300
BATCH = 64
RATE = 3e-3
WIDTH = 24
FEATURES = 64
"""Optimizer steps, images in each, learning rate at the start, width of the first layer, and number of features."""


class Classifier(nn.Module):
    """Three convolutions, of which two halve the image, means over its quarters, a hidden layer, logits.

    Features are divided by their root mean square on the training data, so that distances are in units of that.

    Args:
        channels: of the images.
        outputs: number of logits.
    """

    scale: Tensor

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        widths = (channels, WIDTH, 2 * WIDTH, 2 * WIDTH)
        convolutions = (
            nn.Sequential(nn.Conv2d(a, b, 3, stride, padding=1), nn.GroupNorm(8, b), nn.ReLU())
            for a, b, stride in zip(widths[:-1], widths[1:], (1, 2, 2), strict=True)
        )
        self.body = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.hidden = nn.Linear(4 * widths[-1], FEATURES)
        self.out = nn.Linear(FEATURES, outputs)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels uint8 (B, C, H, W) -> features (B, 64) and logits (B, K)."""
        hidden = functional.relu(self.hidden(self.body(pixels.float() / 127.5 - 1)))
        return hidden / self.scale, self.out(hidden)


def trained_classifier(
    train: Dataset,
    heldout: Dataset,
    path: Path,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    first: bool = True,
) -> Extractor:
    """The classifier that lies in a file; where there is none it is trained, and put there.

    Args:
        train: labelled images, with classes or attributes.
        heldout: those on which its accuracy is told.
        path: of the file. Its name should tell the training data and the seed.
        seed: of its first weights and of the order of the images.
        device: where to compute.
        first: whether this process trains it; others wait for the file.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.exists() and first:
        network = _train(train, seed, device)
        about = {"accuracy": _accuracy(network, heldout, device), "images": len(heldout)}
        with whole_file(path) as draft:
            save_file(network.state_dict(), draft, {"about": json.dumps(about)})
    while not path.exists():
        time.sleep(0.5)
    network = _new(train)
    try:
        with safe_open(path, "pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (it is no dict)
            about = json.loads(file.metadata()["about"])
            network.load_state_dict(weights)
    except (SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and the classifier is trained anew") from error
    network = network.to(device).eval().requires_grad_(False)

    def extract(samples: Tensor) -> Features:
        features, logits = network(samples.to(device))
        return Features(features, logits if train.num_classes else None)

    told = f"accuracy {about['accuracy']:.4f} on {about['images']} images"
    return Extractor("classifier", hash_of(weights), extract, told, scores=train.num_classes > 0)


def _new(dataset: Dataset, seed: int = 0) -> Classifier:
    """Untrained; global random states stay as they are."""
    channels = dataset.shape[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "classifier"))
        return Classifier(3 if channels == 1 else channels, dataset.num_classes or dataset.num_attributes)


def _train(dataset: Dataset, seed: int, device: torch.device | str) -> Classifier:
    """AdamW with a rate that falls to 0 linearly, on cross-entropy (of each attribute, where labels are such)."""
    network = _new(dataset, seed).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    for step in tqdm(range(STEPS), desc="training the classifier", unit="step", disable=None, leave=False):
        indices = batch_indices(len(dataset), BATCH, step, seed=seed, shards=dataset.shards)
        pixels, y = _labelled(dataset, indices, device)
        logits = network(pixels)[1]
        if dataset.num_classes:
            loss = functional.cross_entropy(logits, y)
        else:
            loss = functional.binary_cross_entropy_with_logits(logits, y.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval().requires_grad_(False)
    some, _ = _labelled(dataset, batch_indices(len(dataset), 1024, 0, seed=seed, shards=dataset.shards), device)
    network.scale.fill_(network(some)[0].square().mean().sqrt())
    return network


@torch.no_grad()
def _accuracy(network: Classifier, dataset: Dataset, device: torch.device | str) -> float:
    """Share of the labels that it tells."""
    right, labels = 0, 0
    for start in range(0, len(dataset), 256):
        pixels, y = _labelled(dataset, range(start, min(start + 256, len(dataset))), device)
        logits = network(pixels)[1]
        found = logits.argmax(1) if dataset.num_classes else (logits > 0).long()
        right, labels = right + int((found == y).sum()), labels + y.numel()
    return right / labels


def _labelled(dataset: Dataset, indices: range | list[int], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Pixels and labels."""
    x, y = dataset.fetch(indices)
    if dataset.quantizer is None or y is None:
        raise ValueError(f"{dataset.name!r} has no labelled images to train a classifier on")
    return as_seen(dataset.quantizer.encode(x), dataset.quantizer).to(device), y.to(device)
