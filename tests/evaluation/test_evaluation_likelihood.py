"""Bits/dim against densities that are known, and whose noise belongs to whom."""

import json
import math

import pytest
import torch

from data import Quantizer, TensorDataset
from evaluation import evaluate_likelihood
from sde_lib import VPSDE, GaussianMixture, LikelihoodResult, log_likelihood


def result(log_prob, nfe=1):
    return LikelihoodResult(log_prob, log_prob, nfe, None)


def images(count=11, levels=17, shape=(1, 4, 4), labelled=False):
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(levels, (count, *shape), dtype=torch.uint8, generator=generator)
    y = torch.arange(count) % 3 if labelled else None
    return TensorDataset("images", x, y, quantizer=Quantizer(levels=levels), num_classes=3 if labelled else 0)


def uniform(x, y, generator):
    """The uniform density on [-1, 1]^D."""
    inside = (x.double().abs() <= 1).flatten(1).all(1).double()
    return result(inside.log() - x[0].numel() * math.log(2))


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 5, 4)])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_uniform_density_costs_all_bits_of_a_level(levels, shape):
    report = evaluate_likelihood(uniform, images(levels=levels, shape=shape), batch_size=4)
    assert report.bits_per_dim == pytest.approx(math.log2(levels), rel=1e-12)
    assert report.values == pytest.approx([math.log2(levels)] * 11, rel=1e-12)
    assert report.std_error == pytest.approx(0, abs=1e-12)
    assert report.images == 11


@pytest.mark.parametrize("interval", [(-1.0, 1.0), (0.0, 1.0), (-3.0, 5.0)])
def test_a_density_that_is_constant_on_each_level_costs_its_code_length(interval):
    """p(level v) = w_v: bits/dim of an image is the mean of -log2 w_v, whatever the noise inside the bins."""
    levels, data = 17, images()
    data.quantizer = Quantizer(levels, *interval)
    weights = torch.linspace(1, 3, levels, dtype=torch.float64)
    weights /= weights.sum()

    def log_prob(x, y, generator):
        place = (x.double() - interval[0]) / (interval[1] - interval[0]) * levels
        density = weights[place.long()] / data.quantizer.bin_width
        return result(density.log().flatten(1).sum(1))

    report = evaluate_likelihood(log_prob, data, batch_size=3, seed=5)
    expected = -weights[data.fetch(range(11)).x.long()].log2().flatten(1).mean(1)
    assert report.values == pytest.approx(expected.tolist(), rel=1e-12)
    assert report.bits_per_dim == pytest.approx(float(expected.mean()), rel=1e-12)
    assert report.std_error == pytest.approx(float(expected.std() / math.sqrt(11)), rel=1e-12)


def test_the_standard_error_is_that_of_the_mean():
    values = torch.tensor([0.3, -1.2, 5.0, 2.25], dtype=torch.float64)  # bits of each sample, one dimension
    points = TensorDataset("points", values.float().unsqueeze(1))

    def log_prob(x, y, generator):
        return result(-math.log(2) * x.double().squeeze(1))

    report = evaluate_likelihood(log_prob, points, batch_size=3)
    mean = 6.35 / 4
    variance = sum((value - mean) ** 2 for value in values.tolist()) / 3
    assert report.bits_per_dim == pytest.approx(mean)
    assert report.std_error == pytest.approx(math.sqrt(variance / 4))
    single = evaluate_likelihood(log_prob, points, num_images=1)
    assert single.values == pytest.approx([0.3])
    assert math.isnan(single.std_error)


def test_continuous_data_are_scored_by_their_density():
    sde = VPSDE()
    oracle = GaussianMixture(torch.ones(1), torch.zeros(1, 3), std=torch.ones(1))  # the process leaves it as it is
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))

    def log_prob(x, y, generator):
        return log_likelihood(sde, oracle.score_fn(sde), x, divergence="exact", rtol=1e-6, atol=1e-6)

    report = evaluate_likelihood(log_prob, TensorDataset("gaussian", x), batch_size=7)
    nats = 0.5 * x.double().square().sum(1) + 1.5 * math.log(2 * math.pi)
    assert report.values == pytest.approx((nats / 3 / math.log(2)).tolist(), abs=1e-4)  # tolerance of the solver


# Noise


def first_pixel(x, y, generator):
    """Depends on the noise inside the bin, and on nothing else of the batch."""
    return result(x.double().flatten(1)[:, 0])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_the_value_of_an_image_depends_on_no_other_and_not_on_the_batch(batch_size):
    data = images()
    whole = evaluate_likelihood(first_pixel, data, batch_size=11)
    assert evaluate_likelihood(first_pixel, data, batch_size=batch_size).values == whole.values
    assert evaluate_likelihood(first_pixel, data, batch_size=batch_size, num_images=5).values == whole.values[:5]
    assert evaluate_likelihood(first_pixel, data, batch_size=batch_size, seed=1).values != whole.values


def test_each_image_has_noise_of_its_own_that_fills_its_bins():
    data = TensorDataset("same", torch.full((500, 1, 2, 2), 4, dtype=torch.uint8), quantizer=Quantizer(levels=10))
    seen = []

    def log_prob(x, y, generator):
        seen.append(x)
        return result(torch.zeros(len(x)))

    evaluate_likelihood(log_prob, data, batch_size=64)
    place = (torch.cat(seen).double() + 1) / 0.2 - 4  # within the bin of level 4, uniform on [0, 1)
    assert place.shape == (500, 1, 2, 2)
    assert place.unique().numel() > 1990  # of 2000: float32 has 2^24 values here, and two may meet
    assert place.min() >= 0
    assert place.max() < 1
    assert abs(place.mean() - 0.5) < 5 * math.sqrt(1 / 12 / 2000)
    assert abs(place.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / 2000)


def test_probes_are_drawn_anew_for_each_batch_and_again_for_the_same_seed():
    def draws(seed):
        seen = []

        def log_prob(x, y, generator):
            seen.append(torch.rand(2, generator=generator).tolist())
            return result(torch.zeros(len(x)))

        evaluate_likelihood(log_prob, images(), batch_size=4, seed=seed)
        return seen

    assert draws(0) == draws(0)
    values = [value for batch in draws(0) + draws(1) for value in batch]
    assert len(set(values)) == 12


# What is scored


def test_images_come_in_order_with_their_labels():
    data, seen = images(labelled=True), []

    def log_prob(x, y, generator):
        seen.append((data.quantizer.decode(x), y))
        return result(torch.zeros(len(x)), nfe=len(x))

    report = evaluate_likelihood(log_prob, data, num_images=9, batch_size=4)
    assert [len(x) for x, _ in seen] == [4, 4, 1]
    expected = data.fetch(range(9))
    assert torch.equal(torch.cat([x for x, _ in seen]), expected.x)
    assert torch.equal(torch.cat([y for _, y in seen]), expected.y)
    assert report.nfe == 4
    assert report.images == 9


@pytest.mark.parametrize(("asked", "scored"), [(0, 11), (1, 1), (11, 11), (1000, 11)])
def test_the_number_of_images(asked, scored):
    report = evaluate_likelihood(first_pixel, images(), num_images=asked, batch_size=5)
    assert report.images == len(report.values) == scored


def test_numbers_that_make_no_sense():
    with pytest.raises(ValueError, match="num_images is -1; give 0 for all, or a positive number"):
        evaluate_likelihood(first_pixel, images(), num_images=-1)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        evaluate_likelihood(first_pixel, images(), batch_size=0)


def test_a_report_is_saved_whole(tmp_path):
    report = evaluate_likelihood(first_pixel, images(), batch_size=4)
    report.save(tmp_path / "new" / "folder" / "test.json")
    saved = json.loads((tmp_path / "new" / "folder" / "test.json").read_text())
    assert saved == {
        "bits_per_dim": report.bits_per_dim,
        "std_error": report.std_error,
        "images": 11,
        "nfe": 1,
        "seconds": report.seconds,
        "values": report.values,
    }
    assert report.seconds >= 0
