"""The range of the data in model units, as every data set of images takes it."""

import pytest
import torch
from stored_images import write_celeba, write_cifar10, write_folder

from data import StepDraws, get_dataset, prepare


@pytest.fixture(params=["digits", "folder", "celeba", "cifar10"])
def build(request, tmp_path, monkeypatch):
    """low, high -> the data set."""
    options = {
        "digits": lambda: {},
        "folder": lambda: {"root": write_folder(tmp_path), "image_size": 8},
        "celeba": lambda: {"root": write_celeba(tmp_path), "image_size": 8},
        "cifar10": lambda: {"root": write_cifar10(tmp_path, monkeypatch)},
    }[request.param]()
    return lambda **limits: get_dataset(request.param, **options, **limits)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (-0.5, 3.0)])
def test_the_endpoints_are_those_asked_for_and_the_levels_come_back(build, low, high):
    dataset = build(low=low, high=high)
    ends = torch.tensor([0, dataset.quantizer.levels - 1])
    assert dataset.quantizer.encode(ends).tolist() == [low, high]
    raw = dataset.fetch([0])
    for dequantize in (False, True):
        x = prepare(
            raw, dataset.quantizer, StepDraws(0, 0, len(raw.x), range(len(raw.x))), dequantize=dequantize, flip=False
        ).x
        assert x.min() >= low
        assert x.max() <= high
        assert torch.equal(dataset.quantizer.decode(x), raw.x)


def test_the_usual_range(build):
    quantizer = build().quantizer
    assert (quantizer.low, quantizer.high) == (-1.0, 1.0)


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (0.5, 0.5), (0.0, float("inf"))])
def test_ends_that_make_no_range(build, low, high):
    with pytest.raises(ValueError, match=f"a range needs finite low < high, got low={low}, high={high}"):
        build(low=low, high=high)
