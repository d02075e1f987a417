"""Extractors see what a PNG would hold, and references are taken for nothing that they are not."""

import importlib
import json
import sys

import numpy as np
import pytest
import torch
from torch import nn

from data import Quantizer, TensorDataset
from evaluation import (
    Extractor,
    Features,
    Parts,
    as_seen,
    choose_extractor,
    classifier,
    describe_data,
    describe_reference,
    inception,
    is_published,
    make_reference,
    own_extractor,
    published_reference,
    read_reference,
    reference_name,
    trained_classifier,
)
from evaluation.inception import FILE


def pictures(count=230, levels=17, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(levels, (count, channels, 8, 8), dtype=torch.uint8, generator=generator)
    return TensorDataset("pictures", x, quantizer=Quantizer(levels))


MEANS = Extractor("means", "1234", lambda images: Features(images.float().mean((2, 3)) / 255))


def test_what_an_extractor_sees():
    grey, colour = pictures(5), pictures(5, 256, 3)
    levels = torch.arange(17, dtype=torch.uint8).view(17, 1, 1, 1)
    seen = as_seen(grey.quantizer.encode(levels), grey.quantizer)
    assert seen.dtype == torch.uint8
    assert seen.shape == (17, 3, 1, 1)
    assert seen[:, 2, 0, 0].tolist() == [round(255 * k / 16) for k in range(17)]
    x = colour.fetch(range(5)).x
    assert torch.equal(as_seen(colour.quantizer.encode(x), colour.quantizer), x)
    points = torch.randn(4, 2, dtype=torch.float64)
    assert torch.equal(as_seen(points, None), points.float())


def test_a_reference_is_of_these_pixels_and_goes_on(tmp_path):
    data = pictures()
    about = describe_reference(describe_data(data, 0, "train"), MEANS)
    path = tmp_path / reference_name(about)
    fails = [True]

    def failing(images):
        if len(images) == 30 and fails:
            fails.pop()
            raise RuntimeError("the power is gone")
        seen.append(len(images))
        return MEANS.extract(images)

    seen = []
    extractor = Extractor("means", "1234", failing)
    with pytest.raises(RuntimeError):
        make_reference(data, extractor, about, path, Parts(tmp_path / ".parts"))
    assert not path.exists()
    make_reference(data, extractor, about, path, Parts(tmp_path / ".parts"))
    assert seen == [100, 100, 30]
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    found = read_reference(path, about)
    expected = (data.fetch(range(230)).x.double() * 255 / 16).round().mean((2, 3)) / 255
    assert found.features == pytest.approx(expected.expand(-1, 3).float(), rel=1e-6)


def changed_level(data):
    data._x[-1, 0, 0, 0] = (data._x[-1, 0, 0, 0] + 1) % 17
    return data


@pytest.mark.parametrize(
    ("change", "images"),
    [
        (lambda data: data, 229),
        (lambda data: pictures(seed=1), 0),
        (changed_level, 0),
        (lambda data: TensorDataset("pictures", data._x.flip(0), quantizer=data.quantizer), 0),
        (lambda data: TensorDataset("pictures", data._x.view(-1, 1, 4, 16), quantizer=data.quantizer), 0),
        (lambda data: TensorDataset("pictures", data._x, quantizer=Quantizer(18)), 0),
    ],
)
def test_other_pixels_have_another_fingerprint(change, images):
    assert (
        describe_data(change(pictures()), images, "train")["pixels"] != describe_data(pictures(), 0, "train")["pixels"]
    )


def test_the_range_of_the_model_is_no_part_of_the_pixels():
    other = TensorDataset("pictures", pictures()._x, quantizer=Quantizer(17, 0.0, 1.0))
    assert describe_data(other, 0, "train") == describe_data(pictures(), 0, "train")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((230, 2), np.float64), "features as float64 of shape (230, 2), and not float32 (230, D)"),
        (np.zeros((229, 3), np.float32), "features as float32 of shape (229, 3), and not"),
        (np.zeros(230, np.float32), "features as float32 of shape (230,), and not"),
        (np.zeros((230, 0), np.float32), "features as float32 of shape (230, 0), and not"),
        (np.full((230, 3), np.nan, np.float32), "features that are not finite"),
    ],
)
def test_a_reference_that_holds_something_else(tmp_path, features, message):
    about = describe_reference(describe_data(pictures(), 0, "train"), MEANS)
    np.savez(tmp_path / "other.npz", features=features, about=json.dumps(about))
    with pytest.raises(ValueError, match=r"other\.npz holds ") as failed:
        read_reference(tmp_path / "other.npz", about)
    assert message in str(failed.value)


@pytest.mark.parametrize("about", ["{", "[1]", ""])
def test_a_reference_whose_description_is_damaged(tmp_path, about):
    np.savez(tmp_path / "other.npz", features=np.zeros((230, 3), np.float32), about=about)
    described = describe_reference(describe_data(pictures(), 0, "train"), MEANS)
    with pytest.raises(ValueError, match="is no reference for this evaluation: pixels None there"):
        read_reference(tmp_path / "other.npz", described)


def test_a_reference_of_another_order_of_bytes(tmp_path):
    about = describe_reference(describe_data(pictures(), 0, "train"), MEANS)
    features = np.random.default_rng(0).random((230, 3)).astype(np.float32)
    np.savez(tmp_path / "big.npz", features=features.astype(">f4"), about=json.dumps(about))
    assert torch.equal(read_reference(tmp_path / "big.npz", about).features, torch.from_numpy(features))


def test_published_moments(tmp_path):
    path = tmp_path / "stats.npz"
    np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048, dtype=np.float32))
    assert is_published(path)
    found = published_reference(path, Extractor("inception", "6726825d", Features))
    assert found.features is None
    assert found.about["file"] == "stats.npz"
    np.savez(path, mu=np.zeros(64), sigma=np.eye(64))
    with pytest.raises(ValueError, match=r"mu of shape \(64,\) and sigma of \(64, 64\); the FID has 2048 features"):
        published_reference(path, Extractor("inception", "6726825d", Features))


@pytest.mark.parametrize(
    ("shape", "quantizer", "labelled", "chosen"),
    [
        ((3, 32, 32), Quantizer(), True, "inception"),
        ((3, 64, 64), Quantizer(), False, "inception"),
        ((1, 64, 64), Quantizer(), True, "classifier"),
        ((3, 31, 32), Quantizer(), True, "classifier"),
        ((2,), None, False, "identity"),
    ],
)
def test_the_extractor_that_fits(shape, quantizer, labelled, chosen):
    assert choose_extractor("auto", shape, quantizer, labelled, "data") == chosen


@pytest.mark.parametrize(
    ("name", "labelled", "message"),
    [
        ("auto", False, r"the images of 'data' are grey or small \(1, 8, 8\) and have no labels"),
        ("classifier", False, "'data' has no labels to train one on"),
        ("identity", True, "'identity', which is for points; one sample of 'data' has shape"),
    ],
)
def test_an_extractor_that_does_not_fit(name, labelled, message):
    with pytest.raises(ValueError, match=message):
        choose_extractor(name, (1, 8, 8), Quantizer(), labelled, "data")


class Doubling(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout, self.factor = nn.Dropout(0.5), nn.Parameter(torch.tensor(2.0))

    def forward(self, images):
        return self.factor * self.dropout(images.float().mean((2, 3)))


def test_a_network_of_ones_own(monkeypatch):
    import fractions  # any module of which one attribute is ours for a while

    network = Doubling()
    monkeypatch.setattr(fractions, "network", network, raising=False)
    extractor = own_extractor("fractions:network")
    images = torch.full((3, 3, 4, 4), 10, dtype=torch.uint8)
    assert extractor(images).values.tolist() == [[20.0] * 3] * 3  # no dropout
    with torch.no_grad():
        network.factor.fill_(3)
    assert own_extractor("fractions:network").weights != extractor.weights
    monkeypatch.setattr(fractions, "network", lambda images: images, raising=False)
    with pytest.raises(ValueError, match=r"made torch.uint8 of shape \(3, 3, 4, 4\) of 3 samples; it must make"):
        own_extractor("fractions:network")(images)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("None", "made a NoneType; it must make a tensor (4, D)"),
        ("[1.0]", "made a list; it must make a tensor (4, D)"),
        ("x.flatten(1)[:, :0] / 1", "of shape (4, 0) of 4 samples"),
        ("x.flatten(1)[:2] / 1", "of shape (2, 192) of 4 samples"),
        ("x.flatten(1).double() * 1e300 + 1e300", "not finite as float32"),
        ("{}['key']", "failed on torch.uint8 of shape (4, 3, 8, 8): KeyError: 'key'"),
    ],
)
def test_a_function_that_makes_something_else(tmp_path, monkeypatch, made, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_features", raising=False)
    (tmp_path / "odd_features.py").write_text(f"def features(x): return {made}")
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match="the extractor odd_features:features ") as failed:
        own_extractor("odd_features:features")(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    assert message in str(failed.value)


def test_a_module_that_leaves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "leaves_at_once.py").write_text("import sys\nsys.exit(0)")
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match="cannot be imported \\(SystemExit: 0\\)"):
        own_extractor("leaves_at_once:features")


@pytest.mark.parametrize("content", [b"", b"rubbish"])
def test_weights_of_inception_that_are_none(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(ValueError, match=f"w.pth does not hold the weights of Inception .*; give {FILE}"):
        inception(tmp_path / "w.pth")


def test_the_classifier_learns_and_is_kept(tmp_path, monkeypatch):
    """Attributes that one pixel tells: it finds them; and its weights follow from data and seed alone."""
    monkeypatch.setattr(classifier, "STEPS", 60)
    x = pictures(300)._x
    x[:, :, :4, :4], x[:, :, 4:, 4:] = 0, 0
    y = torch.randint(2, (300, 2), generator=torch.Generator().manual_seed(1))
    x[:, 0, :4, :4] += (16 * y[:, 0]).to(torch.uint8).view(-1, 1, 1)
    x[:, 0, 4:, 4:] += (16 * y[:, 1]).to(torch.uint8).view(-1, 1, 1)
    data = TensorDataset("pictures", x, y, quantizer=Quantizer(17), num_attributes=2)
    state = torch.get_rng_state()
    one = trained_classifier(data, data, tmp_path / "a.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert float(one.about.split()[1]) > 0.95
    again, kept, other = (
        trained_classifier(data, data, tmp_path / name, seed=seed, first=first)
        for name, seed, first in (("b.safetensors", 0, True), ("a.safetensors", 0, False), ("c.safetensors", 1, True))
    )
    assert one.weights == again.weights == kept.weights != other.weights
    found = one(as_seen(data.quantizer.encode(x), data.quantizer))
    assert found.logits is None  # attributes are no classes
    assert float(found.values.square().mean()) == pytest.approx(1, rel=0.1)
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"a.safetensors is damaged .*: delete it, and the classifier is trained anew"):
        trained_classifier(data, data, tmp_path / "a.safetensors")


def test_inception_is_torch_fidelitys(tmp_path, monkeypatch):
    """With random weights, of torch hub's folder; what these give is no FID."""
    from torch_fidelity import feature_extractor_inceptionv3 as library

    kind = library.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(library, "load_state_dict_from_url", lambda *arguments, **options: {})
        patch.setattr(kind, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        network = kind("inception-v3-compat", ["2048", "logits_unbiased"])
    hub = tmp_path / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    torch.save(network.state_dict(), hub / FILE)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    images = torch.randint(256, (2, 1, 9, 9), dtype=torch.uint8).expand(-1, 3, -1, -1)
    extractor = inception()
    found = extractor(images)
    features, logits = network(images)
    assert torch.equal(found.values, features)
    assert torch.equal(found.logits, logits)
    assert not extractor.fid
    torch.save({"a": torch.ones(1)}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"bad.pth does not hold the weights of Inception"):
        inception(tmp_path / "bad.pth")
    (tmp_path / "text.pth").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"text.pth does not hold the weights of Inception"):
        inception(tmp_path / "text.pth")
