"""Bits/dim against densities that are known, and whose noise belongs to whom."""

import json
import math

import numpy as np
import pytest
import torch

from data import Quantizer, TensorDataset, UniformDequantizer
from evaluation import Estimate, evaluate_likelihood
from evaluation.estimators import dequantized


def images(count=11, levels=17, shape=(1, 4, 4), labelled=False, interval=(-1.0, 1.0)):
    generator = torch.Generator().manual_seed(3)
    quantizer = Quantizer(levels, *interval)
    x = torch.randint(levels, (count, *shape), dtype=quantizer.dtype, generator=generator)
    y = torch.arange(count) % 3 if labelled else None
    return TensorDataset("images", x, y, quantizer=quantizer, num_classes=3 if labelled else 0)


def by_density(log_p, data, nfe=1):
    """The estimator of a known log-density (x: (B, *)) -> (B,), of uniformly dequantised levels."""
    dequantizer = data.quantizer and UniformDequantizer(data.quantizer)

    def estimator(raw, draws):
        x, log_q = dequantized(raw, dequantizer, draws)
        return Estimate(log_p(x.double()) - log_q, None, nfe)

    return estimator


def uniform(x):
    """The uniform density on [-1, 1]^D."""
    inside = (x.abs() <= 1).flatten(1).all(1).double()
    return inside.log() - x[0].numel() * math.log(2)


def score(estimator, data, **options):
    report, codes = evaluate_likelihood(estimator, data, **options)
    assert codes is None
    return report


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 5, 4)])
@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
def test_the_uniform_density_costs_all_bits_of_a_level(levels, shape):
    data = images(levels=levels, shape=shape)
    report = score(by_density(uniform, data), data, batch_size=4, repeats=3, weighted=True)
    assert report.bits_per_dim == pytest.approx(math.log2(levels), rel=1e-12)
    assert report.importance_weighted == pytest.approx(math.log2(levels), rel=1e-12)
    assert report.values == pytest.approx([math.log2(levels)] * 11, rel=1e-12)
    assert report.std_error == pytest.approx(0, abs=1e-12)
    assert report.repeat_error == pytest.approx(0, abs=1e-12)
    assert report.images == 11


@pytest.mark.parametrize("interval", [(-1.0, 1.0), (0.0, 1.0), (-3.0, 5.0)])
def test_a_density_that_is_constant_on_each_level_costs_its_code_length(interval):
    """p(level v) = w_v: bits/dim of an image is the mean of -log2 w_v, whatever the noise inside the bins."""
    levels, data = 17, images(interval=interval)
    weights = torch.linspace(1, 3, levels, dtype=torch.float64)
    weights /= weights.sum()

    def log_p(x):
        place = (x - interval[0]) / (interval[1] - interval[0]) * levels
        return (weights[place.long()] / data.quantizer.bin_width).log().flatten(1).sum(1)

    report = score(by_density(log_p, data), data, batch_size=3, seed=5)
    expected = -weights[data.fetch(range(11)).x.long()].log2().flatten(1).mean(1)
    assert report.values == pytest.approx(expected.tolist(), rel=1e-12)
    assert report.bits_per_dim == pytest.approx(float(expected.mean()), rel=1e-12)
    assert report.std_error == pytest.approx(float(expected.std() / math.sqrt(11)), rel=1e-12)


def test_a_constant_image_that_is_certain_costs_nothing():
    """All the mass lies in the bin of level 4."""
    data = TensorDataset("same", torch.full((5, 1, 2, 2), 4, dtype=torch.uint8), quantizer=Quantizer(levels=10))

    def log_p(x):
        inside = ((x >= -0.2 - 1e-6) & (x < 0)).flatten(1).all(1).double()
        return inside.log() - 4 * math.log(0.2)

    assert score(by_density(log_p, data), data).values == pytest.approx([0] * 5, abs=1e-12)


def test_the_standard_error_is_that_of_the_mean():
    values = torch.tensor([0.3, -1.2, 5.0, 2.25], dtype=torch.float64)  # bits of each sample, one dimension
    points = TensorDataset("points", values.float().unsqueeze(1))
    estimator = by_density(lambda x: -math.log(2) * x.squeeze(1), points)
    report = score(estimator, points, batch_size=3)
    mean = 6.35 / 4
    variance = sum((value - mean) ** 2 for value in values.tolist()) / 3
    assert report.bits_per_dim == pytest.approx(mean)
    assert report.std_error == pytest.approx(math.sqrt(variance / 4))
    single = score(estimator, points, num_images=1)
    assert single.values == pytest.approx([0.3])
    assert single.std_error is None


def table(log_prob, variance=None):
    """The estimator that reads log_prob (images, repeats), and variance likewise, from a table."""

    def estimator(raw, draws):
        chosen = list(draws.indices), draws.repeat
        variances = None if variance is None else torch.tensor(variance, dtype=torch.float64)[chosen]
        return Estimate(torch.tensor(log_prob, dtype=torch.float64)[chosen], variances, 7)

    return estimator


def test_what_the_error_is_made_of():
    """Two images in two dimensions, three draws each; everything by hand, in units of 2 log 2 nats."""
    data = TensorDataset("two", torch.randn(2, 2))
    unit = 2 * math.log(2)
    log_prob = [[-1.0, -2.0, -6.0], [-5.0, -4.0, -3.0]]
    variance = [[0.01, 0.04, 0.09], [0.16, 0.25, 0.36]]
    report = score(table(log_prob, variance), data, batch_size=1, repeats=3, weighted=True)
    assert report.values == pytest.approx([3 / unit, 4 / unit])
    assert report.bits_per_dim == pytest.approx(3.5 / unit)
    assert report.std_error == pytest.approx(0.5 / unit)  # sqrt(0.5) / sqrt(2)
    assert report.probe_error == pytest.approx(math.sqrt(0.14 / 3 + 0.77 / 3) / 2 / unit)
    assert report.repeat_error == pytest.approx(math.sqrt(7 / 3 + 1 / 3) / 2 / unit)  # variances of the draws: 7 and 1
    weighted = [-math.log(sum(math.exp(value) for value in row) / 3) / unit for row in log_prob]
    assert report.importance_weighted_values == pytest.approx(weighted)
    assert report.importance_weighted == pytest.approx(sum(weighted) / 2)
    assert report.importance_weighted_error == pytest.approx(abs(weighted[0] - weighted[1]) / 2)
    assert (report.repeats, report.images, report.nfe) == (3, 2, 7)
    bits = f"{3.5 / unit:.4f} ± {0.5 / unit:.4f} bits/dim on 2 samples, importance-weighted over 3 draws "
    assert str(report).startswith(bits + f"{report.importance_weighted:.4f} ± ")
    assert str(report).endswith(f"(of the error: probes {report.probe_error:.1e}, draws {report.repeat_error:.1e})")


def test_what_is_not_known_is_none():
    report = score(table([[-1.0], [-5.0]]), TensorDataset("two", torch.randn(2, 2)), weighted=True)
    assert report.probe_error is report.repeat_error is None
    assert report.importance_weighted is report.importance_weighted_error is report.importance_weighted_values is None
    assert str(report) == f"{3 / 2 / math.log(2):.4f} ± {1 / math.log(2):.4f} bits/dim on 2 samples"
    unweighted = score(table([[-1.0, -2.0]]), TensorDataset("one", torch.randn(1, 2)), repeats=2)
    assert unweighted.importance_weighted is None
    assert " ± " not in str(unweighted)
    assert "on 1 sample (" in str(unweighted)


def test_importance_weights_far_apart_do_not_overflow():
    report = score(table([[-90_000.0, -40_000.0]]), TensorDataset("one", torch.randn(1, 2)), repeats=2, weighted=True)
    assert report.importance_weighted == pytest.approx((40_000 + math.log(2)) / 2 / math.log(2), rel=1e-14)


# Do the error bars cover?


def of_images(raw, draws):
    """Images of which each is a draw of its own: the error over the images covers."""
    return Estimate(-3 - draws.normal("value", ()).double(), None, 1)


def of_probes(raw, draws):
    """Images that are unlike, and known but for the noise of four probes each, which is unlike too."""
    k = torch.tensor(draws.indices, dtype=torch.float64)
    probes = (1 + k / 8)[:, None] * draws.of_image().normal("value", (4,)).double()
    return Estimate(-k / 8 - probes.mean(1), probes.var(1) / 4, 1)


def of_draws(raw, draws):
    """The same, the noise being that of the draws."""
    k = torch.tensor(draws.indices, dtype=torch.float64)
    return Estimate(-k / 8 - (1 + k / 8) * draws.normal("value", ()).double(), None, 1)


@pytest.mark.parametrize(
    ("estimator", "repeats", "error", "truth"),
    [
        (of_images, 1, "std_error", 3.0),
        (of_images, 2, "std_error", 3.0),
        (of_probes, 1, "probe_error", 49 / 16),
        (of_probes, 3, "probe_error", 49 / 16),
        (of_draws, 4, "repeat_error", 49 / 16),
    ],
)
def test_the_error_bar_covers_the_truth_in_95_of_100_cases(estimator, repeats, error, truth):
    data = TensorDataset("points", torch.randn(50, 1))
    deviations = []
    for seed in range(400):
        report = score(estimator, data, seed=seed, repeats=repeats)
        deviations.append((report.bits_per_dim - truth / math.log(2)) / getattr(report, error))
    covered = np.mean(np.abs(deviations) <= 1.96)
    assert 0.92 <= covered <= 0.98
    assert abs(np.mean(deviations)) < 4 / math.sqrt(400)


# Noise


def first_pixel(data):
    """Depends on the noise inside the bin, and on nothing else of the batch."""
    return by_density(lambda x: x.flatten(1)[:, 0], data)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_the_value_of_an_image_depends_on_no_other_and_not_on_the_batch(batch_size):
    data = images()
    whole = score(first_pixel(data), data, batch_size=11, repeats=2)
    options = {"batch_size": batch_size, "repeats": 2}
    assert score(first_pixel(data), data, **options).values == whole.values
    assert score(first_pixel(data), data, **options, num_images=5).values == whole.values[:5]
    other = score(first_pixel(data), data, **options, seed=1).values
    assert all(a != b for a, b in zip(other, whole.values, strict=True))


def test_each_image_and_repeat_has_noise_of_its_own_that_fills_its_bins():
    data = TensorDataset("same", torch.full((500, 1, 2, 2), 4, dtype=torch.uint8), quantizer=Quantizer(levels=10))
    seen = []

    def log_p(x):
        seen.append(x)
        return torch.zeros(len(x))

    score(by_density(log_p, data), data, batch_size=64, repeats=2)
    place = (torch.cat(seen) + 1) / 0.2 - 4  # within the bin of level 4, uniform on [0, 1)
    assert place.shape == (1000, 1, 2, 2)
    assert place.unique().numel() > 3980  # of 4000: float32 has 2^24 values here, and two may meet
    assert place.min() >= -1e-6
    assert place.max() < 1
    assert abs(place.mean() - 0.5) < 5 * math.sqrt(1 / 12 / 4000)
    assert abs(place.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / 4000)


# What is scored


def test_images_come_in_order_with_their_labels():
    data, seen = images(labelled=True), []

    def estimator(raw, draws):
        seen.append((raw, draws))
        return Estimate(torch.zeros(len(raw.x)), None, len(raw.x))

    report = score(estimator, data, num_images=9, batch_size=4, seed=8)
    assert [len(raw.x) for raw, _ in seen] == [4, 4, 1]
    assert [list(draws.indices) for _, draws in seen] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert {(draws.seed, draws.repeat) for _, draws in seen} == {(8, 0)}
    expected = data.fetch(range(9))
    assert torch.equal(torch.cat([raw.x for raw, _ in seen]), expected.x)
    assert torch.equal(torch.cat([raw.y for raw, _ in seen]), expected.y)
    assert report.nfe == 4
    assert report.images == 9


def test_codes_are_those_of_the_first_draw_in_order():
    data = images()

    def estimator(raw, draws):
        code = torch.tensor(draws.indices)[:, None] + 100 * draws.repeat
        return Estimate(torch.zeros(len(raw.x)), None, 5 - draws.repeat, code.float())

    report, codes = evaluate_likelihood(estimator, data, batch_size=4, repeats=2, codes=True)
    assert codes[:, 0].tolist() == list(range(11))
    assert report.nfe == 5  # the most of any draw


@pytest.mark.parametrize(("asked", "scored"), [(0, 11), (1, 1), (11, 11), (1000, 11)])
def test_the_number_of_images(asked, scored):
    data = images()
    report = score(first_pixel(data), data, num_images=asked, batch_size=5)
    assert report.images == len(report.values) == scored


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": -1}, "num_images is -1; it must be at least 0"),
        ({"repeats": 0}, "repeats is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"batch_size": -4}, "batch_size is -4; it must be at least 1"),
        ({"rank": 1}, "rank must lie in 0..world_size - 1, got rank=1, world_size=1"),
        ({"rank": -1}, "rank must lie in 0..world_size - 1, got rank=-1"),
        ({"world_size": 2}, "2 processes share the images through a folder; give parts"),
        ({"codes": True}, "no latent codes"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    data = images()
    with pytest.raises(ValueError, match=message):
        evaluate_likelihood(first_pixel(data), data, **options)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_estimate_that_is_not_finite_names_its_image(bad):
    log_prob = [[0.0]] * 11
    log_prob[6] = log_prob[7] = [bad]
    with pytest.raises(ValueError, match=r"of 2 samples is not finite \(the first is 6\): check the score there"):
        evaluate_likelihood(table(log_prob), images(), batch_size=4)


def test_levels_that_come_as_continuous_data_are_refused():
    levels = torch.randint(256, (40, 30)).float() / 255
    message = "'pixels' has no quantizer, but its 1200 values are only .* these are levels"
    with pytest.raises(ValueError, match=message):
        evaluate_likelihood(table([[0.0]] * 40), TensorDataset("pixels", levels))
    few = levels[:34]  # of so few values it cannot be told
    assert score(table([[0.0]] * 40), TensorDataset("pixels", few)).images == 34
    noisy = TensorDataset("noisy", levels + torch.rand(40, 30) / 255)
    assert score(table([[0.0]] * 40), noisy).images == 40


def test_a_report_is_saved_whole(tmp_path):
    data = images()
    report = score(first_pixel(data), data, batch_size=4, repeats=2, weighted=True)
    report.save(tmp_path / "new" / "folder" / "test.json", estimate="ode", settings={"seed": 0})
    saved = json.loads((tmp_path / "new" / "folder" / "test.json").read_text())
    assert saved == {
        "bits_per_dim": report.bits_per_dim,
        "std_error": report.std_error,
        "images": 11,
        "repeats": 2,
        "probe_error": None,
        "repeat_error": report.repeat_error,
        "importance_weighted": report.importance_weighted,
        "importance_weighted_error": report.importance_weighted_error,
        "nfe": 1,
        "seconds": report.seconds,
        "values": report.values,
        "importance_weighted_values": report.importance_weighted_values,
        "estimate": "ode",
        "settings": {"seed": 0},
    }
    assert report.seconds >= 0
