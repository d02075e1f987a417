"""Averages by power functions, and those made of them afterwards, against sums and integrals done by brute force."""

import itertools

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn

from models import PowerEMA
from models.posthoc_ema import WIDEST, Profile, combine, fit, gamma_of, inner_products, std_of

STDS = [0.01, 0.03, 0.05, 0.1, 0.2, WIDEST]


def density(profile, tau):
    """p(tau), from its definition."""
    time, gamma = profile
    return np.where(tau <= time, (gamma + 1) * tau**gamma / time ** (gamma + 1), 0.0)


class Weights(nn.Module):
    """A vector of numbers, which a test moves as it likes."""

    def __init__(self, values):
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(values))

    def put(self, values):
        with torch.no_grad():
            self.w.copy_(torch.as_tensor(values))


def follow(stds, path, every=None):
    """Averages of a path (steps, n) in float64: std -> its last values, and {(std, step): values} of snapshots."""
    model = Weights(np.full_like(path[0], 1e6))  # what was before the first step must not count
    averages = {std: PowerEMA(model, std) for std in stds}
    snapshots = {}
    for step, values in enumerate(path, start=1):
        model.put(values)
        for std, average in averages.items():
            average.update(model)
            if every and step % every == 0:
                snapshots[std, step] = average.model.w.detach().numpy().copy()
    return {std: average.model.w.detach().numpy().copy() for std, average in averages.items()}, snapshots


# Profiles


def test_the_exponents_are_those_of_the_paper():
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)
    assert gamma_of(WIDEST) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("std", STDS)
def test_the_width_is_the_standard_deviation_of_the_profile(std):
    profile = Profile(1.0, gamma_of(std))
    mass, mean, square = (
        quad(lambda tau, k=k: tau**k * density(profile, tau), 0, 1, epsabs=1e-13)[0] for k in range(3)
    )
    assert mass == pytest.approx(1, abs=1e-10)
    assert (square - mean**2) ** 0.5 == pytest.approx(std, rel=1e-6)
    assert std_of(profile.gamma) == pytest.approx(std, rel=1e-9)


@pytest.mark.parametrize("std", [0.0, -0.1, 0.3, float("nan"), float("inf")])
def test_a_width_outside_of_the_range_is_refused(std):
    with pytest.raises(ValueError, match=rf"the width of an average is {std:g}; it must lie in \(0, 0\.28867\]"):
        gamma_of(std)


# The recursion


@pytest.mark.parametrize("std", STDS)
def test_the_recursion_weighs_the_steps_by_the_integral_of_the_profile_over_each(std):
    """Seen on the weights e_1, e_2, ...: their average is the list of the weights in the average."""
    steps = 300
    average, _ = follow([std], np.eye(steps))
    edges = np.arange(steps + 1) / steps
    np.testing.assert_allclose(average[std], np.diff(edges ** (gamma_of(std) + 1)), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.2])
def test_the_steps_that_count_have_the_width_asked_for(std):
    steps = 1000
    weights = follow([std], np.eye(steps))[0][std]
    place = (np.arange(steps) + 0.5) / steps
    mean = weights @ place
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    # a step is one place, where the profile is spread over 1 / steps: 1 / (12 steps^2 std^2) of the variance, or less
    assert (weights @ (place - mean) ** 2) ** 0.5 == pytest.approx(std, rel=1e-4)


def test_the_average_of_a_line_is_its_closed_form_in_float32():
    """Of weights k at step k: sum of k times its weight, which is n - sum_{k<n} (k / n)^(gamma + 1)."""
    n, std = 500, 0.1
    model = Weights(torch.zeros(1))
    average = PowerEMA(model, std)
    for k in range(1, n + 1):
        model.put([float(k)])
        average.update(model)
    exact = n - ((np.arange(n) / n) ** (gamma_of(std) + 1)).sum()
    assert average.model.w.dtype == torch.float32
    assert float(average.model.w) == pytest.approx(exact, rel=1e-5)


# Other widths


def test_inner_products_are_integrals():
    profiles = [Profile(time, gamma_of(std)) for time in (0.4, 1.0, 1.7) for std in (0.05, 0.1, WIDEST)]
    found = inner_products(profiles, profiles[:4])
    for i, one in enumerate(profiles):
        for j, other in enumerate(profiles[:4]):
            exact = quad(lambda tau, a=one, b=other: density(a, tau) * density(b, tau), 0, min(one.time, other.time))[0]
            assert found[i, j] == pytest.approx(exact, rel=1e-8)


def basis(snapshots, time=1.0):
    return [Profile(time * k / snapshots, gamma_of(std)) for k in range(1, snapshots + 1) for std in (0.05, 0.1)]


@pytest.mark.parametrize("std", [0.02, 0.07, 0.15, 0.25])
def test_coefficients_are_those_of_numerical_least_squares(std):
    """On a fine grid, with the last coefficient eliminated by the others: c_n = 1 - their sum."""
    stored, wanted = basis(4), Profile(1.0, gamma_of(std))
    cells = 40_000
    tau = (np.arange(cells) + 0.5) / cells
    columns = np.stack([density(profile, tau) for profile in stored], 1)
    target = density(wanted, tau)
    free = np.linalg.lstsq(columns[:, :-1] - columns[:, -1:], target - columns[:, -1], rcond=None)[0]
    expected = np.append(free, 1 - free.sum())
    found = fit(stored, wanted)
    np.testing.assert_allclose(found.coefficients, expected, rtol=1e-3, atol=1e-4)
    rest = columns @ expected - target
    assert found.misfit == pytest.approx(((rest**2).mean() / (target**2).mean()) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("time", [1.0, 5e5])
def test_a_stored_profile_is_itself(time):
    stored = basis(30, time)
    for i in (0, 1, 17, 58, 59):
        found = fit(stored, stored[i])
        np.testing.assert_allclose(found.coefficients, np.eye(60)[i], atol=1e-9)
        assert found.misfit < 1e-6


@pytest.mark.parametrize("snapshots", [3, 22, 200])
def test_the_coefficients_sum_to_one(snapshots):
    for std in (0.01, 0.07, 0.2, 0.28):
        assert fit(basis(snapshots), Profile(1.0, gamma_of(std))).coefficients.sum() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("std", [0.03, 0.07, 0.15, 0.2])
def test_the_misfit_falls_with_the_number_of_snapshots(std):
    misfits = [fit(basis(n), Profile(1.0, gamma_of(std))).misfit for n in (5, 10, 20, 40, 80)]
    assert all(later < 0.6 * earlier for earlier, later in itertools.pairwise(misfits)), misfits
    assert misfits[-1] < 0.3 * misfits[-2]  # in the end by the square of their distance


@pytest.mark.parametrize("std", [0.03, 0.07, 0.15, 0.2])
def test_what_is_made_afterwards_is_what_was_tracked_within_the_misfit(std):
    """The steps are constant between times, so the error is an integral of the misfit: Cauchy-Schwarz bounds it."""
    steps = 240
    path = 30 + np.random.default_rng(0).standard_normal((steps, 40)).cumsum(0)
    errors = []
    for every in (48, 24, 12, 6):
        tracked, snapshots = follow([0.05, 0.1, std], path, every)
        stored = {(s, step): values for (s, step), values in snapshots.items() if s != std}
        wanted = Profile(float(steps), gamma_of(std))
        found = fit([Profile(float(step), gamma_of(s)) for s, step in stored], wanted)
        (made,) = combine(({"w": torch.from_numpy(v)} for v in stored.values()), [[c] for c in found.coefficients])
        error = made["w"].numpy() - tracked[std]
        norm = inner_products([wanted], [wanted])[0, 0] ** 0.5
        spread = np.linalg.norm(path - path.mean(0), axis=0)  # the sum of coefficients is 1: a constant is no error
        assert (abs(error) <= found.misfit * norm * spread + 1e-9).all()
        errors.append(np.linalg.norm(error))
    assert all(later < 0.7 * earlier for earlier, later in itertools.pairwise(errors)), errors
    assert errors[-1] < 0.02 * np.linalg.norm(path[-1] - tracked[std])


def test_weights_that_do_not_move_are_given_back():
    found = fit(basis(22), Profile(1.0, gamma_of(0.25)))
    value = {"w": torch.tensor([0.3, -200.0, 1e-4])}
    (made,) = combine([value] * 44, [[c] for c in found.coefficients])
    torch.testing.assert_close(made["w"], value["w"], rtol=1e-5, atol=0)


def test_several_sums_at_once_are_each_alone_and_the_parts_stay_as_they_are():
    parts = [{"a": torch.randn(3), "b": torch.randn(2, 2)} for _ in range(4)]
    before = [{name: value.clone() for name, value in part.items()} for part in parts]
    rows = [[1.0, 0.5], [-2.0, 0.25], [0.0, 1.0], [3.0, -1.0]]
    both = combine(iter(parts), rows)
    for i, found in enumerate(both):
        (alone,) = combine(iter(parts), [[row[i]] for row in rows])
        for name, value in found.items():
            assert torch.equal(value, alone[name])
            exact = sum(row[i] * part[name].double() for row, part in zip(rows, parts, strict=True))
            torch.testing.assert_close(value, exact.float())
    for part, old in zip(parts, before, strict=True):
        assert all(torch.equal(value, old[name]) for name, value in part.items())
