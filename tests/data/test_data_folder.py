"""A folder of images: what is found, in which order, how it is split and labelled."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from data.files import open_files
from data.folder import ImageFolder, find_images
from data.holdout import hash_names, held_out
from data.loader import train_batches


def fill(root, files):
    """Write 6 x 6 images of one grey each: image i has level 3 i."""
    for number, file in enumerate(files):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((6, 6, 3), 3 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(path, format="PNG")
    return root


def split_by_name(files, holdout):
    mask = held_out(hash_names(files), holdout)
    return [file for file, out in zip(files, mask, strict=True) if not out], [
        file for file, out in zip(files, mask, strict=True) if out
    ]


def both(root, **options):
    return [ImageFolder(split, root=root, image_size=4, **options) for split in ("train", "test")]


FLAT = [f"{number:02d}.png" for number in range(40)]


def test_images_are_found_nested_sorted_and_in_any_case(tmp_path):
    files = ["b.PNG", "a/z.Jpeg", "a/y/x.webp", "c.tif", "a.jpg"]
    fill(tmp_path, [*files, ".hidden.png", ".cache/d.png", "a/._z.png"])
    (tmp_path / "notes.txt").write_text("no image")
    assert find_images(open_files(tmp_path)) == sorted(files)


def test_splits_part_the_folder_and_keep_its_order(tmp_path):
    train, test = both(fill(tmp_path, FLAT), holdout=0.3)
    assert sorted(train.names + test.names) == FLAT
    assert train.names == sorted(train.names)
    assert test.names == sorted(test.names)
    for dataset in (train, test):
        x = dataset.fetch(range(len(dataset))).x
        assert x.shape == (len(dataset), 3, 4, 4)
        expected = torch.tensor([3 * FLAT.index(file) for file in dataset.names], dtype=torch.uint8)
        assert torch.equal(x, expected.view(-1, 1, 1, 1).expand_as(x))


def test_the_split_is_the_stated_hash():
    files = [f"a/{number}.png" for number in range(2000)]
    train, test = split_by_name(files, 0.1)

    def position(file):
        name = json.dumps(["holdout", file]).encode()
        return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") / 2**64

    assert test == [file for file in files if position(file) < 0.1]
    assert abs(len(test) - 200) < 5 * np.sqrt(2000 * 0.1 * 0.9)
    assert sorted(train + test) == sorted(files)
    assert set(test) >= set(split_by_name(files[::3], 0.1)[1])  # an image keeps its side when others are added


@pytest.mark.parametrize("holdout", [1e-9, 0.1, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_no_split_is_empty_from_two_images_on(holdout, count):
    train, test = split_by_name(FLAT[:count], holdout)
    assert train
    assert test
    assert sorted(train + test) == FLAT[:count]


def test_without_holdout_all_images_are_for_training(tmp_path):
    root = fill(tmp_path, FLAT)
    assert ImageFolder("train", root=root, image_size=4, holdout=0.0).names == FLAT
    with pytest.raises(ValueError, match=r"the test split of .* is empty: 40 image\(s\) in all, holdout=0\.0"):
        ImageFolder("test", root=root, image_size=4, holdout=0.0)


def test_first_level_subfolders_are_classes(tmp_path):
    files = [f"{kind}/{number}.png" for kind in ("cat", "dog/young", "owl") for number in range(8)]
    for dataset in both(fill(tmp_path, files), holdout=0.3):
        assert dataset.label_names == ("cat", "dog", "owl")
        assert dataset.num_classes == 3
        y = dataset.fetch(range(len(dataset))).y
        assert y.dtype == torch.int64
        assert [dataset.label_names[label] for label in y] == [file.split("/")[0] for file in dataset.names]


@pytest.mark.parametrize("files", [["a/1.png", "b/1.png", "1.png"], ["only/1.png", "only/2.png"], ["1.png", "2.png"]])
def test_other_folders_are_unlabelled(tmp_path, files):
    for dataset in both(fill(tmp_path, files)):
        assert (dataset.num_classes, dataset.label_names) == (0, ())
        assert dataset.fetch([0]).y is None


def test_shape_and_channels(tmp_path):
    train, _ = both(fill(tmp_path, FLAT[:4]), channels=1, crop="none")
    assert train.shape == (1, 4, 4)
    assert train.fetch([0, 0]).x.shape == (2, 1, 4, 4)
    assert train.fetch([]).x.shape == (0, 1, 4, 4)
    with pytest.raises(IndexError, match="index 99 is out of range"):
        train.fetch([99])


def test_a_damaged_file_is_met_when_it_is_read_also_in_the_background(tmp_path):
    root = fill(tmp_path, FLAT)
    train, _ = both(root)
    (root / train.names[0]).write_bytes(b"damaged")
    assert train.fetch([1]).x.shape == (1, 3, 4, 4)
    with pytest.raises(ValueError, match=train.names[0]):
        train.fetch([1, 0])
    batches = train_batches(train, len(train), seed=0, dequantize=True, flip=True, workers=2)
    with pytest.raises(ValueError, match=train.names[0]):
        next(batches)


def test_no_folder_and_no_images(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is nothing at .*nowhere: give an existing folder, or a \.zip"):
        ImageFolder(root=tmp_path / "nowhere", image_size=4)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match=r"no images in .*: looked for \*\.bmp, .*\*\.webp in it"):
        ImageFolder(root=tmp_path, image_size=4)


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("unknown split of .* 'valid'; choose from 'test', 'train'", {"split": "valid"}),
        (r"holdout must be a fraction in \[0, 1\), got 1", {"holdout": 1}),
        ("unknown crop 'middle'", {"crop": "middle"}),
        ("channels must be 1", {"channels": 2}),
        ("image_size must be at least 1, got -4", {"image_size": -4}),
    ],
)
def test_wrong_options(tmp_path, match, options):
    fill(tmp_path, FLAT[:3])
    with pytest.raises(ValueError, match=match):
        ImageFolder(**{"root": tmp_path, "image_size": 4} | options)
