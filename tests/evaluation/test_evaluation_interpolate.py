"""Ways between codes, and between images through their codes, where all of it is known."""

import math

import oracles
import pytest
import torch

from evaluation import interpolate, slerp
from sde_lib import SDES, VPSDE, match_dims, transport

WEIGHTS = torch.linspace(0, 1, 7, dtype=torch.float64)
TIGHT = {"rtol": 1e-7, "atol": 1e-7}
SHAPE = (1, 2, 3)


def codes(count=5, shape=SHAPE, scale=1.0, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, count, *shape, generator=generator, dtype=torch.float64).to(dtype)


def angle(a, b):
    """Of flat vectors, by the half-angle formula, which keeps its digits near 0 and pi."""
    a, b = a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True)
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_are_exact(dtype):
    z0, z1 = codes(dtype=dtype)
    way = slerp(z0, z1, WEIGHTS)
    assert way.shape == (5, 7, *SHAPE)
    assert way.dtype == dtype
    assert torch.equal(way[:, 0], z0)
    torch.testing.assert_close(way[:, -1], z1, rtol=1e-15 if dtype == torch.float64 else 0, atol=0)


def test_codes_of_one_length_keep_it_and_turn_evenly():
    z0, z1 = codes()
    z1 = z1 * (z0.flatten(1).norm(dim=1) / z1.flatten(1).norm(dim=1)).reshape(-1, 1, 1, 1)
    way = slerp(z0, z1, WEIGHTS).flatten(2)
    lengths = way.norm(dim=2)
    torch.testing.assert_close(lengths, lengths[:, :1].expand(5, 7), rtol=1e-13, atol=0)
    whole = angle(way[:, 0], way[:, -1])
    torch.testing.assert_close(angle(way, way[:, :1]), whole[:, None] * WEIGHTS, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(angle(way, way[:, -1:]), whole[:, None] * (1 - WEIGHTS), rtol=1e-12, atol=1e-12)


def test_a_right_angle_is_a_quarter_of_a_circle_and_weights_may_lie_beyond():
    way = slerp(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([1 / 3, 0.5, 2.0]))
    expected = [[math.sqrt(3), 1.0], [math.sqrt(2), math.sqrt(2)], [-2.0, 0.0]]
    torch.testing.assert_close(way[0], torch.tensor(expected), rtol=0, atol=1e-6)


def test_each_pair_has_a_way_of_its_own():
    z0, z1 = codes()
    alone = torch.cat([slerp(z0[k : k + 1], z1[k : k + 1], WEIGHTS) for k in range(5)])
    assert torch.equal(slerp(z0, z1, WEIGHTS), alone)


@pytest.mark.parametrize("tilt", [0.0, 1e-9, 1e-7, 1e-5])
@pytest.mark.parametrize("factor", [1.0, 3.0, -1.0, -2.0])
def test_parallel_and_opposite_codes(factor, tilt):
    """Parallel ones go straight; from opposite ones there is no one way, but it is finite and has the right ends."""
    z0, across = codes(count=1)
    z1 = factor * z0 + tilt * across
    way = slerp(z0, z1, WEIGHTS)
    assert way.isfinite().all()
    torch.testing.assert_close(way[:, 0], z0, rtol=0, atol=1e-10)
    torch.testing.assert_close(way[:, -1], z1, rtol=0, atol=1e-9)
    if factor > 0:
        straight = z0 + match_dims(WEIGHTS, z0) * (z1 - z0)
        torch.testing.assert_close(way[0], straight, rtol=0, atol=1e-8)
    if tilt < 1e-6:
        assert way.flatten(2).norm(dim=2).max() <= 1.001 * max(z0.norm(), z1.norm())


def test_a_code_that_is_zero_has_no_angle_and_the_way_is_straight():
    zero, one = torch.zeros(1, 4), torch.ones(1, 4)
    torch.testing.assert_close(slerp(zero, one, WEIGHTS)[0], WEIGHTS[:, None].float().expand(7, 4))
    assert torch.equal(slerp(zero, zero, WEIGHTS), torch.zeros(1, 7, 4))


# Through the ODE


@pytest.mark.parametrize("name", SDES)
def test_the_ends_come_back_with_the_exact_score_of_a_mixture(name):
    sde, law = SDES[name](), oracles.mixture(SHAPE)
    x0, x1 = law.sample(8, generator=oracles.generator(3), dtype=torch.float64).chunk(2)
    found = interpolate(sde, law.score_fn(sde), x0, x1, 3, **TIGHT)
    assert found.path.shape == (4, 3, *SHAPE)
    torch.testing.assert_close(found.path[:, 0], x0, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.path[:, -1], x1, rtol=0, atol=1e-4)
    difference = torch.cat([found.path[:, 0] - x0, found.path[:, -1] - x1])
    assert found.round_trip == pytest.approx(float(difference.square().mean().sqrt()), rel=1e-12)
    assert 0 < found.round_trip < 1e-5


@pytest.mark.parametrize("name", SDES)
def test_the_way_of_a_gaussian_law_is_closed_form(name):
    """Codes, spherical way and images: each by the exact map of a linear flow."""
    sde = SDES[name]()
    law, mean, variance = oracles.gaussian(SHAPE)
    x0, x1 = law.sample(6, generator=oracles.generator(1), dtype=torch.float64).chunk(2)
    found = interpolate(sde, law.score_fn(sde), x0, x1, 5, **TIGHT)
    exact = [oracles.gaussian_flow(sde, x, sde.t_min, sde.T, mean, variance) for x in (x0, x1)]
    torch.testing.assert_close(found.codes, torch.stack(exact), rtol=0, atol=1e-5 * sde.prior_std)
    a, b = exact
    turn = angle(a.flatten(1), b.flatten(1)).reshape(-1, 1, 1, 1)
    middle = (a + b) * torch.sin(turn / 2) / torch.sin(turn)
    expected = oracles.gaussian_flow(sde, middle, sde.T, sde.t_min, mean, variance)
    torch.testing.assert_close(found.path[:, 2], expected, rtol=0, atol=1e-4)
    assert (found.path[:, 2] - (x0 + x1) / 2).abs().max() > 0.1  # not the mean of the images


def test_images_are_decoded_by_the_second_score_way_by_way():
    """Each moment has a score of its own (a label): a code decoded under another mean lands where that flow says."""
    sde = VPSDE()
    law, mean, variance = oracles.gaussian(SHAPE)
    x0, x1 = law.sample(4, generator=oracles.generator(1), dtype=torch.float64).chunk(2)
    moments, seen = 4, []
    shifts = torch.arange(2 * moments, dtype=torch.float64).reshape(-1, 1, 1, 1) / 4

    def first(x, t):
        seen.append(len(x))
        return law.score(x, sde, t)

    def second(x, t):
        alpha = sde.marginal(t)[0].reshape(-1, 1, 1, 1)
        seen.append(len(x))
        return law.score(x - alpha * shifts, sde, t)

    found = interpolate(sde, first, x0, x1, moments, decode_score_fn=second, **TIGHT)
    assert sorted(set(seen)) == [4, 8]
    assert len(seen) == found.nfe
    ways = slerp(*found.codes, torch.linspace(0, 1, moments, dtype=torch.float64)).flatten(0, 1)
    expected = oracles.gaussian_flow(sde, ways, sde.T, sde.t_min, mean + shifts, variance)
    torch.testing.assert_close(found.path.flatten(0, 1), expected, rtol=0, atol=1e-5)


def test_the_first_images_come_first_and_the_solver_gets_its_settings():
    sde, seen = VPSDE(), []
    x0, x1 = torch.zeros(2, 3), torch.ones(2, 3)

    def score(x, t):
        seen.append(x)
        return -x

    found = interpolate(sde, score, x0, x1, 2, method="euler", steps=3)
    assert found.nfe == len(seen) == 6
    torch.testing.assert_close(seen[0], torch.cat([x0, x1]))
    encoded = transport(sde, lambda x, t: -x, torch.cat([x0, x1]), sde.t_min, sde.T, method="euler", steps=3).x
    assert torch.equal(found.codes, encoded.reshape(2, 2, 3))


def test_messages():
    sde, x = VPSDE(), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="moments is 1; a way has at least its 2 ends"):
        interpolate(sde, lambda x, t: -x, x, x, 1)
    with pytest.raises(ValueError, match=r"shapes \(2, 3\) and \(1, 3\); pairs need equal ones"):
        interpolate(sde, lambda x, t: -x, x, x[:1])
