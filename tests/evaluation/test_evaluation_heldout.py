"""The held-out loss against the denoising error of Gaussians, which is known at every log-SNR."""

import math

import pytest
import torch
from oracles import PROCESSES, generator

from data import Quantizer, TensorDataset
from evaluation import heldout_loss
from sde_lib import TIME_LAWS, VPSDE, WEIGHTINGS, match_dims

every_process = pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES.keys())
N, D, VARIANCE = 1000, 6, 0.3


def gaussian_data(n=N, d=D):
    return TensorDataset("gaussian", VARIANCE**0.5 * torch.randn(n, d, generator=generator(1)))


def exact(sde):
    """Predicted noise of N(0, v I): sigma x / (v alpha^2 + sigma^2)."""

    def eps_fn(x, t, y):
        alpha, sigma = sde.marginal(t.double())
        return (match_dims(sigma / (VARIANCE * alpha.square() + sigma.square()), x) * x).float()

    return eps_fn


def nothing(x, t, y):
    return torch.zeros_like(x)


def levels(n, level, shape=(1, 3, 3), count=16):
    x = torch.full((n, *shape), level, dtype=torch.uint8)
    return TensorDataset("levels", x, quantizer=Quantizer(count))


@every_process
def test_a_bin_of_gaussian_data_is_the_integral_over_it(sde):
    """v alpha^2 / (v alpha^2 + sigma^2) = sigmoid(lambda + log v), whose integral is softplus(lambda + log v)."""
    found = heldout_loss(sde, exact(sde), gaussian_data(), bins=5, draws=2)
    edges = torch.tensor(found.edges, dtype=torch.float64)
    assert found.edges[0] == pytest.approx(float(sde.log_snr(torch.tensor(sde.T).double())))
    assert found.edges[-1] == pytest.approx(float(sde.log_snr(torch.tensor(sde.t_min).double())))
    torch.testing.assert_close(edges.diff(), edges.diff().mean().expand(5))
    integral = torch.nn.functional.softplus(edges + math.log(VARIANCE))
    expected = integral.diff() / edges.diff()
    deviation = (torch.tensor(found.bins) - expected) / torch.tensor(found.errors)
    assert deviation.abs().max() < 4, deviation
    assert (torch.tensor(found.errors) < 0.05 * expected).all()  # so that the deviations can tell


@every_process
@pytest.mark.parametrize(
    ("law", "weighting"), [("uniform", "uniform"), ("log_snr", "uniform"), ("logistic", "likelihood")]
)
def test_the_loss_is_the_integral_over_time(sde, law, weighting):
    found = heldout_loss(sde, exact(sde), gaussian_data(), time_law=law, weighting=weighting)
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    t = TIME_LAWS["log_snr"](sde, u)
    lam = sde.log_snr(t)
    # dt = d lambda / |lambda'|, and |lambda'| = (g / sigma)^2
    density = TIME_LAWS[law].density(sde, t) * WEIGHTINGS[weighting](sde, t)
    integrand = torch.sigmoid(lam + math.log(VARIANCE)) * density / (sde.diffusion(t) / sde.sigma(t)).square()
    expected = float(integrand.mean()) * (found.edges[-1] - found.edges[0])
    assert abs(found.loss - expected) < 4 * found.std_error
    assert found.std_error < 0.03 * expected


@every_process
def test_a_network_that_says_nothing_has_one_in_every_bin_and_honest_errors(sde):
    found = heldout_loss(sde, nothing, gaussian_data(), draws=2)
    error = math.sqrt(2 / (2 * D * N))  # of the mean of 2 D N squares of normals
    assert len(found.bins) == 8
    assert (torch.tensor(found.bins) - 1).abs().max() < 4 * error
    assert found.errors == pytest.approx([error] * 8, rel=0.15)
    assert found.images == N


@every_process
def test_every_sample_has_as_many_draws_in_each_bin_and_all_of_them_lie_there(sde):
    seen = []

    def eps_fn(x, t, y):
        seen.append(sde.log_snr(t.double()))
        return nothing(x, t, y)

    edges = torch.tensor(heldout_loss(sde, eps_fn, gaussian_data(50), bins=4, draws=3).edges, dtype=torch.float64)
    lam = torch.stack(seen).reshape(4, 3, 50)
    width = edges.diff().mean() / 3  # of a stratum
    strata = edges[:-1, None] + width * torch.arange(3)
    place = (lam - strata[:, :, None]) / width
    slack = 1e-3  # float32 times
    assert (place > -slack).all()
    assert (place < 1 + slack).all()
    assert (place.mean(2) - 0.5).abs().max() < 4 * math.sqrt(1 / 12 / 50)


def test_the_bins_alone_tell_where_the_error_lies():
    """An error of h in one range of the log-SNR, of data whose noise is known: h^2 there, 0 elsewhere."""
    sde, data = VPSDE(), TensorDataset("zeros", torch.zeros(7, 3))
    edges = heldout_loss(sde, nothing, data).edges

    def eps_fn(x, t, y):
        inside = (sde.log_snr(t.double()) > edges[2]) & (sde.log_snr(t.double()) < edges[3])
        return x / match_dims(sde.sigma(t), x) + 0.5 * match_dims(inside, x)

    found = heldout_loss(sde, eps_fn, data)
    assert found.bins == pytest.approx([0, 0, 0.25, 0, 0, 0, 0, 0], abs=1e-5)


@pytest.mark.parametrize("dequantize", [False, True])
def test_levels_are_points_or_uniform_in_their_bins_as_in_training(dequantize):
    """A network that knows the middle m errs by alpha (x0 - m) / sigma: SNR w^2 / 12 for bins of width w."""
    sde, data = VPSDE(), levels(400, 5)
    width = data.quantizer.bin_width
    middle = data.quantizer.low + (5 + 0.5) * width if dequantize else float(data.quantizer.encode(torch.tensor(5)))

    def eps_fn(x, t, y):
        alpha, sigma = sde.marginal(t.double())
        return ((x - match_dims(alpha, x).double() * middle) / match_dims(sigma, x).double()).float()

    found = heldout_loss(sde, eps_fn, data, bins=3, draws=20, dequantize=dequantize)
    low, high = (torch.tensor(found.edges[side], dtype=torch.float64) for side in (slice(3), slice(1, 4)))
    expected = width**2 / 12 * (high.exp() - low.exp()) / (high - low) if dequantize else torch.zeros(3)
    slack = 1e-6 * high.exp()  # rounding in float32, relative to alpha / sigma
    deviation = (torch.tensor(found.bins) - expected).abs()
    assert (deviation <= 4 * torch.tensor(found.errors) + slack).all()


def test_labels_reach_the_network_with_their_sample():
    x = torch.arange(10).float().unsqueeze(1).expand(10, 2).contiguous()
    data = TensorDataset("labelled", x, torch.arange(10), num_classes=10)
    sde = VPSDE()

    def eps_fn(x, t, y):
        alpha, sigma = sde.marginal(t)
        return (x - match_dims(alpha * y, x)) / match_dims(sigma, x)

    assert heldout_loss(sde, eps_fn, data, bins=1, batch_size=4).loss < 1e-3
    assert heldout_loss(sde, lambda x, t, y: eps_fn(x, t, y * 0), data, bins=1, batch_size=4).loss > 1


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_the_batch_size_does_not_matter(batch_size):
    options = {"num_images": 40, "draws": 2, "seed": 4}
    data, sde = gaussian_data(60), VPSDE()
    found, expected = (heldout_loss(sde, exact(sde), data, batch_size=b, **options) for b in (batch_size, 40))
    assert found.bins == pytest.approx(expected.bins, rel=1e-6)
    assert found.errors == pytest.approx(expected.errors, rel=1e-6)
    assert (found.loss, found.std_error) == pytest.approx((expected.loss, expected.std_error), rel=1e-6)
    assert found.images == 40


@pytest.mark.parametrize("count", [2, 3, 9])
def test_processes_together_give_what_one_gives(count):
    """The last one adds what the others have handed in; 9 of them have more than there are batches."""
    data, sde, handed = gaussian_data(40), VPSDE(), []

    def hand_in(rows):
        handed.append(rows)
        return sum(handed)

    shared = [
        heldout_loss(sde, exact(sde), data, batch_size=7, rank=rank, world_size=count, total=hand_in)
        for rank in range(count)
    ]
    assert shared[-1] == heldout_loss(sde, exact(sde), data, batch_size=7)
    assert ((torch.stack(handed) != 0).any(2).sum(0) == 1).all()  # each sample was computed by one


def test_two_networks_see_the_same_noisy_data_whatever_else_is_drawn():
    data, sde = levels(12, 3), VPSDE()
    seen = []

    def recorder(x, t, y):
        seen.append((x, t))
        return nothing(x, t, y)

    before = torch.get_rng_state()
    heldout_loss(sde, recorder, data, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(5)
    heldout_loss(sde, recorder, data, seed=3)
    heldout_loss(sde, recorder, data, seed=4)
    first, again, other = (seen[part * 8 : part * 8 + 8] for part in range(3))
    for (x, t), (x_again, t_again), (x_other, t_other) in zip(first, again, other, strict=True):
        assert torch.equal(x, x_again)
        assert torch.equal(t, t_again)
        assert not torch.equal(x, x_other)
        assert not torch.equal(t, t_other)
    flat = torch.cat([x.flatten() for x, _ in first])
    assert len(flat.unique()) == len(flat)  # every draw has noise of its own


def test_the_names_of_a_record_tell_the_ranges():
    found = heldout_loss(VPSDE(), nothing, gaussian_data(9), bins=2)
    low, middle, high = (f"{edge:.1f}" for edge in found.edges)
    assert found.scalars() == {
        "heldout_loss": found.loss,
        f"heldout_loss/log_snr_{low}..{middle}": found.bins[0],
        f"heldout_loss/log_snr_{middle}..{high}": found.bins[1],
    }
    assert (low, high) == ("-10.0", "13.8")


def test_the_difference_of_two_networks_is_known_better_than_their_losses():
    """A network that errs by d more everywhere, against the best: E|e + d|^2 - E|e|^2 = d^2, e having mean 0."""
    sde, best = VPSDE(), exact(VPSDE())
    one = heldout_loss(sde, best, gaussian_data())
    other = heldout_loss(sde, lambda x, t, y: best(x, t, y) + 0.1, gaussian_data())
    gap, error = other.above(one)
    assert gap == pytest.approx(other.loss - one.loss, rel=1e-9)
    assert abs(gap - 0.1**2) < 4 * error
    assert error < 0.7 * one.std_error
    assert one.above(other) == (pytest.approx(-gap), pytest.approx(error))
    assert one.above(one) == (0.0, 0.0)
    assert sum(one.values) / one.images == pytest.approx(one.loss)


def test_one_sample_has_no_error_bar():
    found = heldout_loss(VPSDE(), nothing, gaussian_data(9), num_images=1, bins=2)
    assert (found.std_error, found.errors, found.images) == (None, (None, None), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": -1}, "num_images is -1; it must be at least 0"),
        ({"bins": 0}, "bins is 0; it must be at least 1"),
        ({"draws": 0}, "draws is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rank": 1}, "rank=1, world_size=1"),
        ({"world_size": 2}, "2 processes share the samples; give total"),
        ({"time_law": "even"}, "unknown time law 'even'; choose from 'log_snr', 'logistic', 'uniform'"),
        ({"weighting": "even"}, "unknown weighting 'even'"),
    ],
)
def test_what_makes_no_sense_is_told(options, message):
    with pytest.raises(ValueError, match=message):
        heldout_loss(VPSDE(), nothing, gaussian_data(3), **options)


def test_a_loss_that_is_not_finite_is_told():
    def eps_fn(x, t, y):
        return torch.where(x > 1, math.nan, x)

    with pytest.raises(ValueError, match=r"of 30 held-out samples is not finite \(the first is number \d+\)"):
        heldout_loss(VPSDE(), eps_fn, gaussian_data(30))
