"""The handwritten digits and their fixed split."""

import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from data.digits import Digits, split_indices

TEST_INDICES_SHA256 = "1d5d813b610838c5fa62ef6126ba0034dcb83c4b9406072a88f3d333bf923c40"


@pytest.fixture(scope="module")
def source():
    return load_digits()


def test_split_is_a_partition():
    train, test = (split_indices(split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1500, 297)
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(1797))


def test_split_is_stratified(source):
    test = split_indices("test")
    fair_share = np.bincount(source.target) * 297 / 1797
    assert np.all(np.abs(np.bincount(source.target[test]) - fair_share) <= 1)


def test_split_is_pinned_for_ever():
    test = split_indices("test")
    assert hashlib.sha256(test.astype("<i8").tobytes()).hexdigest() == TEST_INDICES_SHA256


@pytest.mark.parametrize("split", ["train", "test"])
def test_samples_are_the_images_of_scikit_learn(source, split):
    digits = Digits(split)
    chosen = split_indices(split)
    batch = digits.fetch(range(len(digits)))
    assert (digits.shape, digits.num_classes, digits.quantizer.levels) == ((1, 8, 8), 10, 17)
    assert batch.x.dtype == torch.uint8
    np.testing.assert_array_equal(batch.x.squeeze(1).numpy(), source.images[chosen])
    np.testing.assert_array_equal(batch.y.numpy(), source.target[chosen])
    assert (int(batch.x.min()), int(batch.x.max())) == (0, 16)


def test_unknown_split():
    with pytest.raises(ValueError, match="unknown split of digits 'valid'; choose from 'test', 'train'"):
        Digits("valid")
