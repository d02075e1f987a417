"""Data sets by name."""

import tarfile

import pytest
import torch
from PIL import Image

from data import DATASETS, Dataset, dataset_options, get_dataset


def test_the_names():
    names = {"digits", "toy", "folder", "celeba", "shards", "arrays", "cifar10", "mnist", "fashion_mnist", "none"}
    assert set(DATASETS) == names


@pytest.mark.parametrize(("name", "options"), [("digits", {}), ("toy", {"distribution": "rings", "size": 50})])
def test_a_data_set_keeps_the_contract(name, options):
    train, test = (get_dataset(name, split, **options) for split in ("train", "test"))
    assert isinstance(train, Dataset)
    assert torch.equal(train.fetch([0]).x, get_dataset(name, **options).fetch([0]).x)
    for dataset in (train, test):
        batch = dataset.fetch([len(dataset) - 1, 0])
        assert batch.x.shape == (2, *dataset.shape)
        assert batch.x.dtype == (torch.float32 if dataset.quantizer is None else torch.uint8)
        assert (batch.y is None) == (dataset.num_classes == 0)


def test_options_are_listed_with_their_defaults():
    options = dataset_options("celeba")
    assert list(options) == ["root", "image_size", "crop", "attributes", "low", "high", "corrupt", "cache"]
    assert (options["image_size"].default, options["crop"].default) == (64, "celeba140")
    assert list(dataset_options("digits")) == ["low", "high"]


def test_unknown_name():
    with pytest.raises(
        ValueError, match=r"unknown data set 'celebA'; choose from .*'celeba', .*; did you mean 'celeba'"
    ):
        get_dataset("celebA")


@pytest.mark.parametrize(
    ("match", "name", "options"),
    [
        ("unknown option size for data set 'digits'; 'digits' takes low, high", "digits", {"size": 3}),
        ("unknown option sizes .*; 'toy' takes distribution, size, seed", "toy", {"sizes": 3}),
        ("'celeba' needs the option root; 'celeba' takes root, image_size, crop", "celeba", {}),
        ("'folder' needs the option image_size; ", "folder", {"root": "."}),
    ],
)
def test_wrong_options_list_the_accepted_ones(match, name, options):
    with pytest.raises(TypeError, match=match):
        get_dataset(name, **options)


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_unknown_split_lists_the_splits(name, tmp_path):
    required = {
        option: tmp_path / "a.npy" if (name, option) == ("arrays", "root") else tmp_path if option == "root" else 8
        for option, p in dataset_options(name).items()
        if p.default is p.empty
    }
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
    with pytest.raises(ValueError, match=r"unknown split of .* 'dev'; choose from 'test', 'train'"):
        get_dataset(name, "dev", **required)
