"""The variational dequantiser against autograd, quadrature, the quantizer's bins, and bounds with a known optimum."""

import itertools
import math

import oracles
import pytest
import torch
from scipy import stats

from data.quantizer import Quantizer
from models import VariationalDequantizer

SHAPES = [(1, 2, 3), (3, 2, 2), (2, 1, 1), (1, 1, 2)]


def build(shape=(3, 2, 2), levels=4, std=0.1, *, low=-1.0, high=1.0):
    """A small flow, its silent weights awakened by N(0, std^2) noise on all of them; std = 0 leaves it new."""
    torch.manual_seed(0)
    flow = VariationalDequantizer(shape, levels=levels, low=low, high=high, channels=8, blocks=1)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(std * torch.randn(parameter.shape))
    return flow


def draw(flow, n=5, dtype=torch.float32):
    """Levels and uniform numbers, (n, C, H, W) each."""
    g = oracles.generator(1)
    v = torch.randint(flow.levels, (n, *flow.shape), generator=g)
    return v, torch.rand(n, *flow.shape, generator=g, dtype=dtype)


# The density.


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", [2, 256])
def test_log_q_is_the_jacobian_of_autograd(shape, levels):
    """u is uniform, so q(x) = 1 / |det dx/du|; the whole matrix is taken, in float64."""
    flow = build(shape, levels).double()
    v, u = draw(flow, dtype=torch.float64)
    log_q = flow(v, u)[1]
    for i in range(len(v)):
        jacobian = torch.autograd.functional.jacobian(lambda w, i=i: flow(v[i : i + 1], w[None])[0], u[i])
        size = math.prod(shape)
        expected = -torch.linalg.slogdet(jacobian.reshape(size, size)).logabsdet
        torch.testing.assert_close(log_q[i], expected, rtol=1e-8, atol=1e-8)
    uniform = size * math.log(levels / 2)
    assert (log_q - uniform).abs().max() > 0.1  # the flow is far from uniform, or nothing would have been tested


@pytest.mark.parametrize("levels", [2, 17])
def test_the_density_integrates_to_one_over_the_bin(levels):
    """Trapezoids in h = Phi^-1(share), where everything is smooth and decays as a Gaussian: rounding error is left."""
    flow = build((1, 1, 2), levels, low=0.0, high=float(levels)).double()
    h = torch.linspace(-7.5, 7.5, 151, dtype=torch.float64)
    points = torch.cartesian_prod(h, h).reshape(-1, 1, 1, 2)
    v = torch.tensor([0, levels - 1]).expand(len(points), 1, 1, 2)
    with torch.no_grad():
        log_q = flow.inverse(v + torch.special.ndtr(points), v)[1]
    weight = (log_q - points.square().flatten(1).sum(1) / 2).exp() / (2 * math.pi)  # q dx = q phi(h) dh
    # Beyond |h| = 7.5 (float64 has no share much nearer to 1) lies 1e-6 of a flow that widens the noise 1.5 times.
    assert float(weight.sum()) * (h[1] - h[0]) ** 2 == pytest.approx(1, abs=1e-5)


def test_the_mean_density_of_uniform_points_is_one_over_the_volume():
    """The same on 2 x 2 pixels, by Monte Carlo: E[q(x)] w^4 = 1 for x uniform in the bin."""
    flow = build((1, 2, 2), 4, std=0.1).double()
    v, u = draw(flow, 10_000, torch.float64)
    v = v[:1].expand_as(v)
    with torch.no_grad():
        log_q = flow.inverse(-1 + 0.5 * (v + u), v)[1]
    ratio = (log_q + 4 * math.log(0.5)).exp()
    error = float(ratio.std()) / math.sqrt(len(ratio))
    assert error < 0.02
    assert abs(float(ratio.mean()) - 1) < 4 * error
    assert float(ratio.std()) > 0.2


@pytest.mark.parametrize("shape", [*SHAPES, (3, 32, 32)])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_a_new_flow_is_uniform_dequantisation(shape, levels):
    flow = build(shape, levels, std=0)
    v, u = draw(flow)
    x, log_q = flow(v, u)
    assert torch.equal(log_q, torch.full((5,), -math.prod(shape) * math.log(2 / levels)))
    share = (x.double() + 1) * levels / 2 - v
    # Half a float32 spacing of x, 3e-8, times 1 / w; and 4e-7 for Phi(Phi^-1(u)) in float32.
    torch.testing.assert_close(share, u.double(), rtol=0, atol=1e-6 + 3e-8 * levels)


def test_a_small_share_keeps_its_digits_in_float32():
    """Near 0 float32 resolves x to any depth; torch.special.ndtr would round the share to steps of 3e-8."""
    flow = build((1, 2, 2), 2, std=0, low=0.0, high=2.0)
    u = torch.tensor([2.0**-25, 5e-8, 1e-7, 1e-6]).reshape(1, 1, 2, 2)
    # Phi^-1(u), about -5.4, is rounded at 3e-7, and |dPhi / Phi| is 5.6 times that.
    torch.testing.assert_close(flow(torch.zeros_like(u, dtype=torch.uint8), u)[0], u, rtol=1e-5, atol=0)


def test_float32_agrees_with_float64():
    flow = build((3, 8, 8), 256, std=0.05)
    v, u = draw(flow)
    x, log_q = flow(v, u)
    exact_x, exact_log_q = flow.double()(v, u.double())
    assert x.dtype == log_q.dtype == torch.float32
    torch.testing.assert_close(x.double(), exact_x, rtol=0, atol=1.5e-7)  # a spacing of x near 1, and one of the sum
    torch.testing.assert_close(log_q.double(), exact_log_q, rtol=0, atol=1e-3)  # 192 terms of about 5 (1e-6 of them)


# The inverse.


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_inverse_undoes_the_flow(shape, levels):
    flow = build(shape, levels, std=0.1).double()
    v, u = draw(flow, 50, torch.float64)
    u = 0.02 + 0.96 * u  # so that no x is drawn back to the last float32 of its bin
    x, log_q = flow(v, u)
    found_u, found_log_q = flow.inverse(x, v)
    # x near 1 keeps 1e-16 / w = 1e-14 of its share, which the tails of this flow stretch by a thousand or so.
    torch.testing.assert_close(found_u, u, rtol=0, atol=1e-10)
    torch.testing.assert_close(found_log_q, log_q, rtol=0, atol=1e-8)


def test_the_inverse_in_float32():
    """x keeps 3e-8 / w = 4e-6 of its share of a bin of 256 levels; this flow stretches that by some tens."""
    flow = build((3, 4, 4), 256, std=0.05)
    v, u = draw(flow, 50)
    u = 0.02 + 0.96 * u
    x, log_q = flow(v, u)
    found_u, found_log_q = flow.inverse(x, v)
    torch.testing.assert_close(found_u, u, rtol=0, atol=1e-3)
    torch.testing.assert_close(found_log_q, log_q, rtol=0, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [2, 256])
def test_the_inverse_is_finite_on_the_edges_of_a_bin(levels, dtype):
    flow = build((1, 2, 2), levels).to(dtype)
    v = torch.arange(levels).reshape(-1, 1, 1, 1).repeat(1, 1, 2, 2)
    edges = torch.linspace(-1, 1, levels + 1, dtype=torch.float64).float()
    first, last = edges[v], torch.nextafter(edges[v + 1], edges[v])
    for x in (first, last):
        u, log_q = flow.inverse(x.to(dtype), v)
        assert log_q.isfinite().all()
        assert ((u >= 0) & (u < 1)).all()
        assert flow(v, u)[0].isfinite().all()


# The bins.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (-0.3, 2.9)])
@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("std", [0, 0.3, 30.0])
def test_x_stays_in_the_bin_of_its_level(levels, low, high, std, dtype):
    """Whatever the weights and however extreme u; and log q stays a number."""
    flow = build((1, 4, 4), levels, std, low=low, high=high)
    quantizer = Quantizer(levels, low, high)
    v = torch.arange(levels).repeat_interleave(16).reshape(-1, 1, 4, 4)
    last = 1 - torch.finfo(dtype).eps / 2
    ends = torch.tensor([0, 1e-30, 2.0**-25, 2.0**-24, 0.5, 1 - 2.0**-23, 1 - 2.0**-24, last], dtype=dtype)
    mixed = ends[torch.randint(len(ends), v.shape, generator=oracles.generator())]
    for u in (mixed, torch.rand(v.shape, dtype=dtype), torch.zeros(v.shape, dtype=dtype), torch.full_like(mixed, last)):
        with torch.no_grad():
            x, log_q = flow(v.to(torch.uint8), u)
        assert x.dtype == dtype
        assert torch.equal(quantizer.decode(x).long(), v)
        assert log_q.isfinite().all()


def test_zero_is_read_as_half_a_step():
    flow = build(std=0)
    v, u = draw(flow)
    assert torch.equal(flow(v, 0 * u)[0], flow(v, 0 * u + 2.0**-25)[0])


def test_images_of_a_batch_do_not_meet():
    flow = build((3, 4, 4), 17)
    v, u = draw(flow)
    x, log_q = flow(v, u)
    for i in range(len(v)):
        alone = flow(v[i : i + 1], u[i : i + 1])
        torch.testing.assert_close((alone[0][0], alone[1][0]), (x[i], log_q[i]), rtol=1e-5, atol=1e-5)
    assert [len(part) for part in flow(v[:0], u[:0])] == [0, 0]


# Learning.


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 1, 1)])
def test_every_parameter_gets_a_gradient_through_x_and_log_q(shape):
    for part in (0, 1):
        flow = build(shape)
        flow(*draw(flow, 20))[part].square().sum().backward()
        sizes = {name: float(p.grad.abs().max()) for name, p in flow.named_parameters()}
        assert min(sizes.values()) > 1e-5 * max(sizes.values()), sizes


def learnt_gap(levels, log_p, log_mass):
    """log P(v) - E_q[log p(x) - log q(x | v)], nats per image (mean, standard error), before and after 100 steps."""
    torch.manual_seed(0)
    flow = VariationalDequantizer((1, 1, 2), levels=levels, low=-1.0, high=1.0, channels=8, layers=2, blocks=1)
    v = torch.tensor(list(itertools.product(range(levels), repeat=2))).reshape(-1, 1, 1, 2)
    truth = torch.tensor([log_mass(*pair) for pair in v.flatten(1).tolist()])

    def gap(repeats):
        images = v.repeat(repeats, 1, 1, 1)
        x, log_q = flow(images, torch.rand(images.shape))
        return truth.repeat(repeats) - log_p(x) + log_q

    def measured():
        with torch.no_grad():
            values = gap(4000 // len(v)).double()
        return float(values.mean()), float(values.std()) / math.sqrt(len(values))

    before = measured()
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    for _ in range(100):
        optimizer.zero_grad()
        gap(128 // len(v)).mean().backward()
        optimizer.step()
        schedule.step()
    return before, measured()


def test_the_bound_comes_close_to_the_mass_under_a_tent():
    """Two pixels of density 1 - |x|, 0 at the ends of the range: mass 1/8 in an outer bin, 3/8 in an inner one.

    Uniform noise loses KL(uniform, p in the bin) = 1 - log 2 in an outer bin and 1 - log 2 - log(4/3) in an inner one;
    0.326 nats for two pixels on average over the levels. Learnt noise was measured to lose 0.011 to 0.015 in 100 steps
    (four seeds, standard error 0.003); no q of this family loses nothing, 2 s on (0, 1) not being Phi of a Gaussian.
    """
    mass = [1 / 8, 3 / 8, 3 / 8, 1 / 8]
    before, after = learnt_gap(
        4,
        lambda x: (1 - x.abs()).clamp(min=1e-9).log().flatten(1).sum(1),
        lambda a, b: math.log(mass[a] * mass[b]),
    )
    assert before[0] == pytest.approx(2 * (1 - math.log(2)) - math.log(4 / 3), abs=4 * before[1])
    assert -4 * after[1] < after[0] < 0.03


def test_the_bound_comes_close_to_the_mass_under_a_correlated_gaussian():
    """Two pixels with correlation 0.8 and two levels: within the bins the pixels depend on each other too.

    Uniform noise loses 1.3 nats; learnt noise was measured to lose 0.012 to 0.017 (four seeds, standard error 0.003).
    """
    mean, covariance = [0.2, -0.1], [[0.36, 0.288], [0.288, 0.36]]
    gauss = torch.distributions.MultivariateNormal(torch.tensor(mean), torch.tensor(covariance))
    box = stats.multivariate_normal(mean, covariance)
    before, after = learnt_gap(
        2,
        lambda x: gauss.log_prob(x.flatten(1)),
        lambda a, b: math.log(box.cdf([a, b], lower_limit=[a - 1, b - 1])),
    )
    assert before[0] > 1
    assert -4 * after[1] < after[0] < 0.03


# Faults.


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"v": torch.zeros(2, 1, 2, 2)}, TypeError, "integers, got a tensor of torch.float32"),
        ({"v": torch.zeros(2, 1, 2, 2, dtype=torch.bool)}, TypeError, "integers, got a tensor of torch.bool"),
        ({"v": torch.full((2, 1, 2, 2), 4)}, ValueError, r"levels v must lie in 0\.\.3, but 8 of 8 entries do not"),
        ({"v": torch.full((2, 1, 2, 2), -1)}, ValueError, "number of levels"),
        ({"v": torch.zeros(2, 3, 2, 2).long()}, ValueError, r"must both be \(B, 1, 2, 2\), got \(2, 3, 2, 2\)"),
        ({"v": torch.zeros(1, 2, 2).long()}, ValueError, "must both be"),
        ({"other": torch.rand(3, 1, 2, 2)}, ValueError, r"and \(3, 1, 2, 2\)"),
        ({"other": torch.rand(2, 1, 2, 2).half()}, TypeError, "float32 or float64, got torch.float16; convert"),
        ({"other": torch.full((2, 1, 2, 2), 1.0)}, ValueError, "8 of 8 entries do not"),
        ({"other": torch.full((2, 1, 2, 2), -1e-9)}, ValueError, "must lie in"),
        ({"other": torch.full((2, 1, 2, 2), math.nan)}, ValueError, "must lie in"),
    ],
)
@pytest.mark.parametrize("way", ["forward", "inverse"])
def test_a_wrong_input_is_refused(way, change, error, words):
    """Levels 0 .. 3 on [0, 4), so that level 0 has the bin [0, 1) and u and x may serve as each other."""
    flow = build((1, 2, 2), 4, low=0.0, high=4.0)
    given = {"v": torch.zeros(2, 1, 2, 2, dtype=torch.uint8), "other": torch.rand(2, 1, 2, 2)} | change
    arguments = (given["v"], given["other"]) if way == "forward" else (given["other"], given["v"])
    with pytest.raises(error, match=words):
        getattr(flow, way)(*arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": (1, 1, 1)}, r"two entries or more, got \(1, 1, 1\)"),
        ({"shape": (3, 8)}, r"must be \(C, H, W\)"),
        ({"shape": (3, 0, 8)}, "two entries"),
        ({"levels": 1}, "levels must be an integer of at least 2, got 1"),
        ({"levels": 2.5}, "levels must be an integer of at least 2, got 2.5"),
        ({"channels": 3}, "channels must be an integer of at least 4"),
        ({"layers": 1}, "layers must be an integer of at least 2"),
        ({"blocks": -1}, "blocks must be an integer of at least 0"),
        ({"low": 1.0}, "low < high"),
        ({"high": math.inf}, "finite"),
        ({"low": 1000.0, "high": 1000.01}, "no room inside 256 bins"),
    ],
)
def test_a_wrong_setting_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        VariationalDequantizer(**{"shape": (3, 8, 8), "levels": 256, "low": -1.0, "high": 1.0} | change)
