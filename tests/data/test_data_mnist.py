"""MNIST and its like, from files as torchvision lays them."""

import numpy as np
import pytest
import torch

from data import get_dataset, mnist

RNG = np.random.default_rng(0)
CONTENT = {
    split: (RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8), RNG.integers(0, 10, n, dtype=np.uint8))
    for split, n in (("train", 12), ("t10k", 5))
}


def idx(values):
    """The IDX format, by its definition."""
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes() + values.tobytes()


@pytest.fixture(params=["MNIST", "FashionMNIST"])
def files(request, tmp_path, monkeypatch):
    monkeypatch.setattr(mnist, "SIZES", {"train": 12, "test": 5})
    raw = tmp_path / request.param / "raw"
    raw.mkdir(parents=True)
    for stem, (images, labels) in CONTENT.items():
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(idx(labels))
    return {"MNIST": "mnist", "FashionMNIST": "fashion_mnist"}[request.param], tmp_path, raw


def test_images_and_labels(files):
    name, root, _ = files
    for split, stem in (("train", "train"), ("test", "t10k")):
        dataset = get_dataset(name, split, root=root)
        batch = dataset.fetch(range(len(dataset)))
        np.testing.assert_array_equal(batch.x[:, 0], CONTENT[stem][0])
        np.testing.assert_array_equal(batch.y, CONTENT[stem][1])
        assert (dataset.shape, dataset.num_classes, batch.y.dtype) == ((1, 28, 28), 10, torch.int64)
        assert len(dataset.label_names) == (10 if name == "fashion_mnist" else 0)


def test_missing_files(files):
    name, root, raw = files
    (raw / "t10k-labels-idx1-ubyte").unlink()
    for split in ("train", "test"):
        with pytest.raises(FileNotFoundError, match=r"is not complete in .*raw: missing t10k-labels-idx1-ubyte"):
            get_dataset(name, split, root=root)


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-7], lambda b: b"", lambda b: b"text" + b[4:], lambda b: b"\0\0\x0d\3" + b[4:], lambda b: b + b"x"],
    ids=["cut", "empty", "text", "float", "longer"],
)
@pytest.mark.parametrize("kind", ["images-idx3-ubyte", "labels-idx1-ubyte"])
def test_damaged_files(files, damage, kind):
    name, root, raw = files
    path = raw / f"train-{kind}"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"files of train in .*raw (are damaged|hold images)"):
        get_dataset(name, root=root)
    assert len(get_dataset(name, "test", root=root)) == 5


def test_files_of_another_size(files, monkeypatch):
    name, root, _ = files
    monkeypatch.setattr(mnist, "SIZES", {"train": 13, "test": 5})
    with pytest.raises(ValueError, match="not 13 of 28 x 28; get them again"):
        get_dataset(name, root=root)
