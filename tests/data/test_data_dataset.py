"""The in-memory data set and the checks on its parts."""

import numpy as np
import pytest
import torch

from data.dataset import Batch, Dataset, TensorDataset
from data.quantizer import Quantizer

LEVELS = torch.arange(5 * 12, dtype=torch.uint8).reshape(5, 1, 3, 4)
LABELS = torch.tensor([0, 1, 2, 1, 0])


def test_fetch_returns_the_samples_in_the_order_asked_for():
    dataset = TensorDataset("five", LEVELS, LABELS, quantizer=Quantizer(), num_classes=3)
    assert (len(dataset), dataset.shape, dataset.num_classes) == (5, (1, 3, 4), 3)
    batch = dataset.fetch([4, 0, np.int64(4)])
    assert isinstance(batch, Batch)
    assert torch.equal(batch.x, torch.stack([LEVELS[4], LEVELS[0], LEVELS[4]]))
    assert batch.y.tolist() == [0, 0, 0]
    assert dataset.fetch([]).x.shape == (0, 1, 3, 4)


def test_what_is_fetched_is_a_copy():
    dataset = TensorDataset("five", LEVELS.clone(), quantizer=Quantizer())
    dataset.fetch(range(5)).x.zero_()
    assert torch.equal(dataset.fetch(range(5)).x, LEVELS)


def test_continuous_unlabelled_data():
    x = torch.randn(4, 2)
    dataset = TensorDataset("plane", x)
    assert (dataset.quantizer, dataset.num_classes, dataset.shape) == (None, 0, (2,))
    assert dataset.fetch([2]).y is None
    assert torch.equal(dataset.fetch([2]).x, x[2:3])


@pytest.mark.parametrize("index", [5, -1, 10**12])
def test_index_out_of_range(index):
    dataset = TensorDataset("five", LEVELS, quantizer=Quantizer())
    with pytest.raises(
        IndexError, match=rf"index {index} is out of range for data set 'five': it has 5 samples, 0\.\.4"
    ):
        dataset.fetch([0, index])


def test_the_abstract_class_cannot_be_built():
    with pytest.raises(TypeError, match="abstract"):
        Dataset()


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (TypeError, "must be torch.uint8, got torch.float32", {"x": LEVELS.float(), "quantizer": Quantizer()}),
        (TypeError, "must be torch.float32, got torch.uint8", {"x": LEVELS}),
        (ValueError, r"N >= 1, got \(0, 2\)", {"x": torch.empty(0, 2)}),
        (ValueError, r"\(N, \*\)", {"x": torch.randn(3)}),
        (ValueError, "levels from 0 to 59 do not fit a quantizer of 17", {"x": LEVELS, "quantizer": Quantizer(17)}),
        (ValueError, "go together", {"x": torch.randn(5, 2), "y": LABELS}),
        (ValueError, "go together", {"x": torch.randn(5, 2), "num_classes": 3}),
        (TypeError, "must be torch.int64", {"x": torch.randn(5, 2), "y": LABELS.float(), "num_classes": 3}),
        (ValueError, r"shape \(5,\), got \(4,\)", {"x": torch.randn(5, 2), "y": LABELS[:4], "num_classes": 3}),
        (ValueError, r"0\.\.1, got values from 0 to 2", {"x": torch.randn(5, 2), "y": LABELS, "num_classes": 2}),
    ],
)
def test_parts_that_do_not_fit_are_refused(error, match, arguments):
    with pytest.raises(error, match=match):
        TensorDataset("bad", **arguments)
