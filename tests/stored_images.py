"""Few and random images on the disk, in the layouts that the data sets read."""

import hashlib
import pickle
import re

import numpy as np
import torchvision
from PIL import Image

BATCHES = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]


def write_folder(root):
    """Two images, of which the folder holds one out."""
    for name in ("a.png", "b.png"):
        _save(root / name)
    return root


def write_celeba(root):
    """One image of the training split and one of the test split, with five attributes."""
    images = ("000001.jpg", "182638.jpg")
    for name in images:
        _save(root / "img_align_celeba" / name)
    rows = [f"{name}  1 -1  1 -1 -1" for name in images]
    table = ["2", "Eyeglasses Male Smiling Wearing_Hat Young", *rows]
    (root / "list_attr_celeba.txt").write_text("\n".join(table) + "\n")
    return root


def write_cifar10(root, monkeypatch):
    """Four images a file, of ``cifar10_rows`` and ``cifar10_labels``; torchvision is told their checksums."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    sums = [
        [batch, _pickle(folder / batch, {"data": cifar10_rows(number), "labels": cifar10_labels(number)})]
        for number, batch in enumerate(BATCHES)
    ]
    meta = _pickle(folder / "batches.meta", {"label_names": [str(number) for number in range(10)]})
    source = torchvision.datasets.CIFAR10
    monkeypatch.setattr(source, "train_list", sums[:5])
    monkeypatch.setattr(source, "test_list", sums[5:])
    monkeypatch.setattr(source, "meta", source.meta | {"md5": meta})
    return root


def cifar10_rows(number):
    """The pixels of a file, as it stores them."""
    return np.random.default_rng(number).integers(0, 256, (4, 3072), dtype=np.uint8)


def cifar10_labels(number):
    """The classes of a file."""
    return [number, 9, 0, number]


def _save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (218, 178, 3), dtype=np.uint8)).save(path)


def _pickle(path, content):
    """Pickle as the authors' old numpy did: its module names, and dtype flags that are integers (numpy 2.4.0 warns)."""
    data = pickle.dumps(content, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    data = re.sub(rb"(u1q.)\x89\x88", b"\\1K\x00K\x01", data)
    path.write_bytes(data)
    return hashlib.md5(data).hexdigest()
