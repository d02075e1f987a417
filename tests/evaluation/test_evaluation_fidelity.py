"""Metrics of features: those of torch-fidelity's own pipeline on the same images, to 1e-6."""

import sys

import numpy as np
import pytest
import torch
import torch_fidelity
from torch.utils.data import TensorDataset as Images
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from evaluation import Extractor, Features, Reference, bias_note, measure, metrics_of, moments


def network(images):
    """Features (N, 12) and logits (N, 5) of uint8 images (N, 3, 6, 6), by fixed random weights."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(108, 12, generator=generator) / 108**0.5, torch.randn(12, 5, generator=generator)
    features = torch.tanh((images.float() / 127.5 - 1).flatten(1) @ weights[0])
    return features, 2 * features @ weights[1]


class Tiny(FeatureExtractorBase):
    """The same for torch-fidelity."""

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list():
        return ("features", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "features"

    def forward(self, images):
        found = dict(zip(("features", "logits"), network(images), strict=True))
        return tuple(found[name] for name in self.features_list)


class Pictures(Images):
    """Images without a tuple around each, as torch-fidelity reads them."""

    def __getitem__(self, index):
        return super().__getitem__(index)[0]


def images(seed, count, spread):
    generator = torch.Generator().manual_seed(seed)
    return (128 + spread * torch.randn(count, 3, 6, 6, generator=generator)).clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def theirs():
    """torch-fidelity's own figures, from images to metrics."""
    torch_fidelity.register_feature_extractor("tiny", Tiny)
    return torch_fidelity.calculate_metrics(
        input1=Pictures(images(0, 120, 60)),
        input2=Pictures(images(1, 150, 50)),
        cuda=False,
        save_cpu_ram=True,
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        feature_extractor="tiny",
        kid_subset_size=120,
        cache=False,
        verbose=False,
    )


@pytest.mark.parametrize("fid", [True, False])
def test_they_are_those_of_torch_fidelity(theirs, fid):
    reference = Reference({}, network(images(1, 150, 50))[0])
    found = measure(Features(*network(images(0, 120, 60))), reference, fid=fid)
    names = ("fid", "inception_score", "kid") if fid else ("frechet_distance", "classifier_score", "kernel_distance")
    assert list(found) == [*names, "precision", "recall"]
    expected = {
        names[0]: theirs["frechet_inception_distance"],
        names[1]: theirs["inception_score_mean"],
        names[2]: theirs["kernel_inception_distance_mean"],
        "precision": theirs["precision"],
        "recall": theirs["recall"],
    }
    assert found == pytest.approx(expected, rel=1e-6)
    assert 0 < found["precision"] < 1
    assert 0 < found["recall"] < 1


def test_moments_that_are_given_are_those_of_the_features():
    samples, data = (network(images(seed, 60, 50))[0] for seed in (0, 1))
    whole, given = Reference({}, data), Reference({}, None, moments(data))
    for fid in (True, False):
        found = measure(Features(samples), given, fid=fid)
        name = "fid" if fid else "frechet_distance"
        assert found == pytest.approx({name: measure(Features(samples), whole, fid=fid)[name]}, rel=1e-5)


def test_precision_and_recall_tell_what_is_missing():
    """Samples of one of two clusters are all good, and cover half; the other way round half are good."""
    rng = np.random.default_rng(0)
    one, other = (torch.from_numpy(rng.normal(size=(100, 2)) + shift).float() for shift in (0, 100))
    both = torch.cat([one, other])
    again = torch.from_numpy(rng.normal(size=(100, 2))).float()
    found = measure(Features(again), Reference({}, both))
    assert found["precision"] > 0.85
    assert 0.4 < found["recall"] <= 0.5
    found = measure(Features(torch.cat([again, other + 300])), Reference({}, one))
    assert 0.4 < found["precision"] <= 0.5
    assert found["recall"] > 0.85


def test_the_score_of_sure_and_of_clueless_classifiers():
    """exp of the mutual information: the number of classes, or 1."""
    reference = Reference({}, torch.randn(80, 3))
    sure = 100 * torch.eye(4).repeat(20, 1)
    assert measure(Features(reference.features, sure), reference)["classifier_score"] == pytest.approx(
        4, rel=0.2
    )  # of 8 samples in each part
    assert measure(Features(reference.features, 0 * sure), reference)["classifier_score"] == pytest.approx(1)


def test_of_the_data_themselves():
    """Distance 0, all precise and all recalled; the unbiased kernel distance is below 0 by what it leaves out."""
    data = network(images(1, 60, 50))[0]
    found = measure(Features(data), Reference({}, data))
    assert found["frechet_distance"] == pytest.approx(0, abs=1e-10)
    assert (found["precision"], found["recall"]) == (1, 1)
    assert found["kernel_distance"] < 0


def test_without_torch_fidelity_the_distance_is_left(monkeypatch):
    data, samples = (network(images(seed, 50, 50))[0] for seed in (0, 1))
    whole = measure(Features(samples), Reference({}, data))
    for name in [module for module in sys.modules if module.startswith("torch_fidelity")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    reference, extractor = Reference({}, data), Extractor("own", "", Features)
    assert measure(Features(samples), reference) == {"frechet_distance": whole["frechet_distance"]}
    assert metrics_of(extractor, reference) == ["frechet_distance"]


@pytest.mark.parametrize("fid", [True, False])
@pytest.mark.parametrize("scores", [True, False])
@pytest.mark.parametrize("published", [True, False])
def test_the_names_are_known_beforehand(fid, scores, published):
    data = torch.randn(40, 3)
    reference = Reference({}, None, moments(data)) if published else Reference({}, data)
    extractor = Extractor("any", "", Features, fid=fid, scores=scores)
    found = measure(Features(data, torch.randn(40, 4) if scores else None), reference, fid=fid)
    assert list(found) == metrics_of(extractor, reference)


def test_features_of_another_kind():
    with pytest.raises(ValueError, match="the samples have 3 features, and the reference 4"):
        measure(Features(torch.randn(9, 3)), Reference({}, torch.randn(9, 4)))


@pytest.mark.parametrize(("images", "there"), [(40, 40), (40, 39), (39, 40), (40, None), (39, None)])
def test_few_samples_are_told(images, there):
    data = torch.randn(there or 50, 4)
    reference = Reference({}, None, moments(data)) if there is None else Reference({}, data)
    fewest = min(images, there or images)
    assert bias_note(images, reference) == (
        ""
        if fewest >= 40
        else f"note: {fewest} samples are few for 4 features: the Fréchet distance is biased upwards, so compare only "
        "with others of as many samples"
    )
