"""Arrays: their layouts, splits and labels; and what is refused."""

import numpy as np
import pytest
import torch

from data import get_dataset

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
GREY = COLOUR[..., :1]
CLASSES = RNG.integers(0, 4, 40)
CLASSES[0] = 3
VECTORS = RNG.integers(0, 2, (40, 3))


def arrays(path, **options):
    return [get_dataset("arrays", split, root=path, **options) for split in ("train", "test")]


def whole(path):
    """All rows in their order, without hold-out."""
    dataset = get_dataset("arrays", root=path, holdout=0.0)
    return dataset, dataset.fetch(range(len(dataset)))


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (COLOUR, COLOUR.transpose(0, 3, 1, 2)),
        (COLOUR.transpose(0, 3, 1, 2), COLOUR.transpose(0, 3, 1, 2)),
        (GREY, GREY.transpose(0, 3, 1, 2)),
        (GREY[..., 0], GREY.transpose(0, 3, 1, 2)),
    ],
    ids=["NHWC", "NCHW", "NHW1", "NHW"],
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_images_in_every_layout(tmp_path, stored, expected, suffix):
    path = tmp_path / f"a.{suffix}"
    np.save(path, stored) if suffix == "npy" else np.savez(path, images=stored)
    dataset, batch = whole(path)
    np.testing.assert_array_equal(batch.x, expected)
    assert batch.x.dtype == torch.uint8
    assert (dataset.shape, dataset.quantizer.levels, batch.y) == (expected.shape[1:], 256, None)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f8"])
def test_vectors_are_continuous_data(tmp_path, dtype):
    values = RNG.normal(size=(40, 3)).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    dataset, batch = whole(tmp_path / "a.npy")
    assert (dataset.shape, dataset.quantizer) == ((3,), None)
    np.testing.assert_array_equal(batch.x, values.astype(np.float32))


@pytest.mark.parametrize(
    ("labels", "expected", "kinds"),
    [(CLASSES, CLASSES, (4, 0)), (CLASSES[:, None], CLASSES, (4, 0)), (VECTORS, VECTORS, (0, 3))],
    ids=["classes", "column", "vectors"],
)
@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), ("arr_0", "arr_1")])
def test_labels(tmp_path, labels, expected, kinds, keys):
    np.savez(tmp_path / "a.npz", **dict(zip(keys, (COLOUR, labels), strict=True)))
    dataset, batch = whole(tmp_path / "a.npz")
    assert (dataset.num_classes, dataset.num_attributes) == kinds
    np.testing.assert_array_equal(batch.y, expected)
    train, test = arrays(tmp_path / "a.npz", holdout=0.3)
    assert len(train) + len(test) == 40
    for part in (train, test):  # the labels follow the rows
        for x, y in zip(*part.fetch(range(len(part))), strict=True):
            (row,) = (k for k in range(40) if np.array_equal(COLOUR[k].transpose(2, 0, 1), x))
            np.testing.assert_array_equal(y, expected[row])


@pytest.mark.parametrize("keys", ["{}_images {}_labels", "x_{} y_{}"])
def test_splits_of_their_own_are_kept(tmp_path, keys):
    content = {}
    for split, rows in (("train", slice(0, 30)), ("test", slice(30, 40))):
        for key, values in zip(keys.format(split, split).split(), (COLOUR, CLASSES), strict=True):
            content[key] = values[rows]
    np.savez(tmp_path / "a.npz", **content)
    train, test = arrays(tmp_path / "a.npz")
    assert (len(train), len(test)) == (30, 10)
    np.testing.assert_array_equal(test.fetch(range(10)).y, CLASSES[30:])


def test_a_large_npy_is_mapped_and_not_read(tmp_path):
    """A file of 40 GB with holes in it, which takes no place on the disk."""
    path = tmp_path / "large.npy"
    sparse = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(200, 8192, 8192, 3))
    sparse[7, 5, 6] = (1, 2, 3)
    del sparse
    x = get_dataset("arrays", root=path, holdout=0.0)._samples
    assert isinstance(x, np.memmap)
    assert x[7, 5, 6].tolist() == [1, 2, 3]


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*a\.npy: give an \.npy or \.npz as root"):
        get_dataset("arrays", root=tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", images=COLOUR)
    content = (tmp_path / "a.npz").read_bytes()
    np.save(tmp_path / "b.npy", COLOUR)
    part = (tmp_path / "b.npy").read_bytes()[:-1]
    for name, bad in {"cut.npz": content[:500], "empty.npy": b"", "text.npy": b"text", "cut.npy": part}.items():
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(ValueError, match=rf"{name} is no "):
            get_dataset("arrays", root=tmp_path / name)


class Trap:
    """Unpickling it would raise."""

    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_nothing_is_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object))
    np.savez(tmp_path / "a.npz", images=np.array([Trap()], dtype=object))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(ValueError, match=r"is no complete \.npy or \.npz of plain numbers"):
            get_dataset("arrays", root=tmp_path / name)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"faces": COLOUR}, r"holds faces; name the samples train_images, x_train, images, samples, x, arr_0"),
        ({"images": COLOUR.astype(np.int32)}, r"holds int32 of shape \(40, 6, 5, 3\); give images as uint8"),
        ({"images": COLOUR[..., :2]}, r"holds uint8 of shape \(40, 6, 5, 2\)"),
        ({"images": COLOUR[:0]}, "holds no samples"),
        ({"images": COLOUR[:, :0]}, "holds no samples"),
        ({"images": np.uint8(3)}, "holds uint8 of shape"),
        ({"images": np.full((3, 2), np.nan)}, "values that are not finite"),
        ({"images": np.full((3, 2), 1e300)}, "values that are not finite as float32"),
        ({"images": COLOUR, "labels": CLASSES[:-1]}, r"40 samples need labels of shape \(40,\), got \(39,\)"),
        ({"images": COLOUR, "labels": CLASSES - 1}, r"labels must lie in 0\.\.\d, got values from -1"),
        ({"images": COLOUR, "labels": VECTORS + 1}, r"labels must lie in 0\.\.1, got values from 1 to 2"),
        ({"images": COLOUR, "labels": CLASSES / 2}, "labels are float64"),
        ({"images": COLOUR, "labels": np.array(["cat"] * 40)}, "labels are <U3"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, content, match):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(ValueError, match=match):
        get_dataset("arrays", root=tmp_path / "a.npz")
