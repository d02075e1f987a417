"""CIFAR-10 from files in its own format, with few images."""

import numpy as np
import pytest
import torch
from stored_images import cifar10_labels, cifar10_rows, write_cifar10

from data.cifar10 import CIFAR10


@pytest.fixture
def root(tmp_path, monkeypatch):
    return write_cifar10(tmp_path, monkeypatch)


@pytest.mark.parametrize(("split", "numbers"), [("train", range(5)), ("test", [5])])
def test_pixels_and_labels_are_those_of_the_files(root, split, numbers):
    dataset = CIFAR10(split, root=str(root))
    batch = dataset.fetch(range(len(dataset)))
    assert (dataset.shape, dataset.num_classes, dataset.quantizer.levels) == ((3, 32, 32), 10, 256)
    assert batch.x.dtype == torch.uint8
    expected = np.concatenate([cifar10_rows(number) for number in numbers]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(batch.x, expected)
    assert batch.y.tolist() == [label for number in numbers for label in cifar10_labels(number)]


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
