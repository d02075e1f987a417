"""CIFAR-10 from files in its own format, with few images."""

import hashlib
import pickle
import re

import numpy as np
import pytest
import torch
import torchvision

from data.cifar10 import CIFAR10

BATCHES = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]


def rows(number):
    return np.random.default_rng(number).integers(0, 256, (4, 3072), dtype=np.uint8)


def labels(number):
    return [number, 9, 0, number]


def write(path, content):
    """Pickle as the authors' old numpy did: its module names, and dtype flags that are integers (numpy 2.4.0 warns)."""
    data = pickle.dumps(content, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    data = re.sub(rb"(u1q.)\x89\x88", b"\\1K\x00K\x01", data)
    path.write_bytes(data)
    return hashlib.md5(data).hexdigest()


@pytest.fixture
def root(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    sums = [[b, write(folder / b, {"data": rows(n), "labels": labels(n)})] for n, b in enumerate(BATCHES)]
    meta = write(folder / "batches.meta", {"label_names": [str(number) for number in range(10)]})
    source = torchvision.datasets.CIFAR10
    monkeypatch.setattr(source, "train_list", sums[:5])
    monkeypatch.setattr(source, "test_list", sums[5:])
    monkeypatch.setattr(source, "meta", source.meta | {"md5": meta})
    return tmp_path


@pytest.mark.parametrize(("split", "numbers"), [("train", range(5)), ("test", [5])])
def test_pixels_and_labels_are_those_of_the_files(root, split, numbers):
    dataset = CIFAR10(split, root=str(root))
    batch = dataset.fetch(range(len(dataset)))
    assert (dataset.shape, dataset.num_classes, dataset.quantizer.levels) == ((3, 32, 32), 10, 256)
    assert batch.x.dtype == torch.uint8
    expected = np.concatenate([rows(number) for number in numbers]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(batch.x, expected)
    assert batch.y.tolist() == [label for number in numbers for label in labels(number)]


def test_missing_files_are_named(root):
    for name in ("data_batch_3", "batches.meta"):
        (root / "cifar-10-batches-py" / name).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"expected data_batch_1, .*; missing data_batch_3, batches\.meta\. Unpack"
    ):
        CIFAR10(root=root)


def test_a_missing_data_set(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not complete in .*cifar-10-batches-py: .*give that as root"):
        CIFAR10(root=tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["data_batch_2", "batches.meta"])
def test_a_damaged_file_is_never_unpickled(root, name):
    with (root / "cifar-10-batches-py" / name).open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"damaged \(wrong checksum\); unpack https"):
        CIFAR10(root=root)


def test_unknown_split(root):
    with pytest.raises(ValueError, match="unknown split of cifar10 'valid'; choose from 'test', 'train'"):
        CIFAR10("valid", root=root)
