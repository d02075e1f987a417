"""Linear inverse problems with a normal law of the data, where the posterior is known.

The guided score is affine in x then, and so is its flow: it is followed for the origin and for each basis vector, and
carries the exact p_T(x | y) to a normal law whose mean and covariance are compared without any Monte Carlo error.
"""

import numpy as np
import oracles
import pytest
import torch
from scipy.integrate import solve_ivp

from guidance import DPS, INVERSE_METHODS, Deblurring, FunctionOperator, Inpainting, Matrix, SuperResolution
from guidance.dps import TINY
from samplers import SAMPLERS, get_sampler
from sde_lib import GaussianMixture

GENERATOR = torch.Generator().manual_seed(0)
SHAPE, SIZE, T_END = (1, 2, 4), 8, 0.01
OPERATORS = {
    "inpainting": Inpainting(torch.tensor([[True, False, True, True], [False, True, False, False]])),
    "super_resolution": SuperResolution(2),
    "deblurring": Deblurring(torch.tensor([[0.2, 0.7, 0.1]])),
    "matrix": Matrix(torch.randn(3, SIZE, generator=GENERATOR), SHAPE),
    "function": FunctionOperator(lambda x: x[..., 1:] - x[..., :-1], SHAPE, iterations=30),
}
NOISE = 0.1
every_operator = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
every_process = pytest.mark.parametrize("sde", oracles.PROCESSES.values(), ids=oracles.PROCESSES.keys())


def normal(*shape):
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def prior(kind):
    """A normal law of the data: neighbours alike, independent pixels, or one variance for all."""
    mean = 0.3 * normal(1, *SHAPE)
    places = torch.arange(SIZE, dtype=torch.float64)
    covariance = {
        "correlated": 0.25 * torch.exp(-(places - places.unsqueeze(1)).abs() / 3),
        "independent": torch.diag(0.05 + 0.3 * torch.rand(SIZE, generator=GENERATOR, dtype=torch.float64)),
        "isotropic": 0.25 * torch.eye(SIZE, dtype=torch.float64),
    }[kind]
    return GaussianMixture([1.0], mean, covariance)


def dense(operator):
    return operator.apply(torch.eye(SIZE, dtype=torch.float64).reshape(SIZE, *SHAPE)).flatten(1).T


def posterior(law, matrix, y, noise):
    """Mean and covariance of x0 given y = A x0 + noise n."""
    m, c = law.mean.flatten(), law.covariance
    gain = c @ matrix.T @ torch.linalg.pinv(matrix @ c @ matrix.T + noise**2 * torch.eye(len(matrix)), hermitian=True)
    return m + gain @ (y.flatten() - matrix @ m), c - gain @ matrix @ c


def measure(law, operator, noise):
    y = operator.apply(law.sample(1, generator=GENERATOR, dtype=torch.float64))
    return y + noise * operator.apply(normal(1, *SHAPE)).sign() if noise else y  # any y will do


def noised(mean, covariance, sde, t):
    alpha, sigma = sde.marginal(torch.tensor(t, dtype=torch.float64))
    return alpha * mean, alpha**2 * covariance + sigma**2 * torch.eye(SIZE, dtype=torch.float64)


def flow_law(sampler, sde, score_fn, mean, covariance):
    """Mean and covariance at the end of the flow of an affine score from N(mean, covariance)."""
    starts = torch.cat([torch.zeros(1, SIZE, dtype=torch.float64), torch.eye(SIZE, dtype=torch.float64)])
    ends = sampler.sample(sde, score_fn, (SIZE + 1, *SHAPE), x_init=starts.reshape(-1, *SHAPE)).x.flatten(1)
    origin, linear = ends[0], (ends[1:] - ends[0]).T
    return linear @ mean + origin, linear @ covariance @ linear.T


def exact_flow():
    return get_sampler("ode", rtol=1e-7, atol=1e-7, t_end=T_END, denoise=False)


def result_of(name, sde, law, operator, y, noise, **options):
    """What a method makes of the exact p_T(x | y), at T_END."""
    mean, covariance = noised(*posterior(law, dense(operator), y, noise), sde, sde.T)
    method = INVERSE_METHODS[name](sde, law.score_fn(sde), operator, y, noise, **options)
    return flow_law(exact_flow(), sde, method, mean, covariance)


def assert_close(law, expected, tolerance):
    """In units of the standard deviation at the end."""
    (mean, covariance), (m, c) = law, expected
    scale = c.diagonal().sqrt()
    assert ((mean - m).abs() / scale).max() < tolerance
    assert ((covariance - c).abs() / (scale * scale.unsqueeze(1))).max() < tolerance


def conditional_score(sde, law, operator, y, noise, x, t):
    """Of p_t(x | y), which is normal."""
    mean, covariance = posterior(law, dense(operator), y, noise)
    result = []
    for value, time in zip(x.flatten(1), t.tolist(), strict=True):
        m, c = noised(mean, covariance, sde, time)
        result.append(torch.linalg.solve(c, m - value))
    return torch.stack(result).reshape(x.shape)


def points(sde):
    """Noisy images at four times from the end to the data."""
    t = torch.tensor([1.0, 0.6, 0.2, 0.03], dtype=torch.float64)
    return normal(4, *SHAPE) * sde.sigma(t).clamp(min=0.3).view(-1, 1, 1, 1), t


EXACT = [
    pytest.param("moment_matching", "correlated", {"iterations": 2 * SIZE}, OPERATORS, id="moment_matching"),
    pytest.param("pseudo_inverse", "isotropic", {"sigma_data": 0.5}, OPERATORS, id="pseudo_inverse"),
    pytest.param("replacement", "independent", {}, ["inpainting"], id="replacement"),
]
"""Method, the laws of the data for which it is exact, and the operators."""


@pytest.mark.parametrize("noise", [0.0, NOISE])
@pytest.mark.parametrize(("name", "kind", "options", "operators"), EXACT)
@every_process
def test_the_guided_score_is_the_conditional_score(sde, name, kind, options, operators, noise):
    law = prior(kind)
    for operator in (OPERATORS[key] for key in operators):
        y = measure(law, operator, noise)
        x, t = points(sde)
        guided = INVERSE_METHODS[name](sde, law.score_fn(sde), operator, y, noise, **options)(x, t)
        expected = conditional_score(sde, law, operator, y, noise, x, t)
        if (
            name == "replacement" and noise
        ):  # known pixels have the law of the measurement alone: the prior is not asked
            with pytest.raises(AssertionError):
                torch.testing.assert_close(guided, expected, rtol=1e-2, atol=1e-2)
            guided, expected = (value * ~operator.mask for value in (guided, expected))
        torch.testing.assert_close(guided, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "kind", "options", "operators"), EXACT)
def test_the_flow_ends_at_the_posterior(name, kind, options, operators):
    law, operator, sde = prior(kind), OPERATORS["inpainting"], oracles.PROCESSES["vp"]
    y = measure(law, operator, 0.0)
    result = result_of(name, sde, law, operator, y, 0.0, **options)
    assert_close(result, noised(*posterior(law, dense(operator), y, 0.0), sde, T_END), 2e-4)


# Each method's formula in matrices, followed by another solver


def dense_score(name, sde, law, matrix, y, noise, t, sigma_data=0.5):
    """(S, c) of the guided score S x + c, by the formula of the method."""
    t = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = (float(v) for v in sde.marginal(t))
    identity = torch.eye(SIZE, dtype=torch.float64)
    m, c = law.mean.flatten(), law.covariance
    precision = torch.linalg.inv(alpha**2 * c + sigma**2 * identity)
    s, s0 = -precision, alpha * precision @ m
    jacobian, x0 = (identity + sigma**2 * s) / alpha, sigma**2 * s0 / alpha
    gram, y = matrix @ matrix.T, y.flatten()

    def inverse(values):
        return torch.linalg.pinv(values, hermitian=True, rtol=1e-9)

    ones = torch.eye(len(matrix), dtype=torch.float64)
    if name == "replacement":
        others = identity - torch.linalg.pinv(matrix) @ matrix
        known = matrix.T @ inverse(sigma**2 * gram + alpha**2 * noise**2 * ones)
        return others @ s - known @ matrix, others @ s0 + alpha * known @ y
    if name == "pseudo_inverse":
        variance = sigma_data**2 * sigma**2 / (alpha**2 * sigma_data**2 + sigma**2)
        spread = variance * gram
    else:
        spread = sigma**2 / alpha * matrix @ jacobian @ matrix.T
    pull = jacobian.T @ matrix.T @ inverse(spread + noise**2 * ones)
    return s - pull @ matrix @ jacobian, s0 + pull @ (y - matrix @ x0)


@pytest.mark.parametrize("noise", [0.0, NOISE])
@every_operator
@pytest.mark.parametrize("name", ["replacement", "pseudo_inverse", "moment_matching"])
def test_a_method_is_its_formula(name, operator, noise):
    """At all times, points, and for correlated data, where two of them are biased."""
    law, matrix = prior("correlated"), dense(operator)
    y = measure(law, operator, noise)
    options = {"iterations": 2 * SIZE} if name == "moment_matching" else {}
    for sde in oracles.PROCESSES.values():
        method = INVERSE_METHODS[name](sde, law.score_fn(sde), operator, y, noise, **options)
        x, t = points(sde)
        for k, value in enumerate(method(x, t)):
            s, c = dense_score(name, sde, law, matrix, y, noise, float(t[k]))
            torch.testing.assert_close(value.flatten(), s @ x[k].flatten() + c, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["replacement", "pseudo_inverse"])
def test_the_bias_of_a_method_is_that_of_its_formula(name):
    """Followed as a matrix equation by scipy, the formula ends where the sampler ends, which is not p(x0 | y)."""
    law, operator, sde = prior("correlated"), OPERATORS["inpainting"], oracles.PROCESSES["vp"]
    matrix, y = dense(operator), measure(law, operator, NOISE)
    exact = posterior(law, matrix, y, NOISE)
    mean, covariance = noised(*exact, sde, sde.T)

    def change(t, state):
        table = torch.from_numpy(state.reshape(SIZE, SIZE + 1))
        time = torch.tensor(t, dtype=torch.float64)
        s, c = dense_score(name, sde, law, matrix, y, NOISE, t)
        drift = float(sde.drift_coeff(time)) * table - 0.5 * float(sde.diffusion(time)) ** 2 * (s @ table)
        drift[:, -1] -= 0.5 * float(sde.diffusion(time)) ** 2 * c
        return drift.numpy().ravel()

    start = np.hstack([np.eye(SIZE), np.zeros((SIZE, 1))]).ravel()
    end = solve_ivp(change, (sde.T, T_END), start, method="DOP853", rtol=1e-10, atol=1e-12).y[:, -1]
    table = torch.from_numpy(end.reshape(SIZE, SIZE + 1))
    linear, origin = table[:, :-1], table[:, -1]
    expected = (linear @ mean + origin, linear @ covariance @ linear.T)
    assert_close(result_of(name, sde, law, operator, y, NOISE), expected, 1e-5)
    with pytest.raises(AssertionError):
        assert_close(expected, noised(*exact, sde, T_END), 0.02)


@pytest.mark.parametrize("noise", [0.0, NOISE])
@every_operator
def test_dps_is_its_formula(operator, noise):
    law, sde, matrix = prior("correlated"), oracles.PROCESSES["vp"], dense(operator)
    y = measure(law, operator, noise)
    t = torch.tensor([0.9, 0.4, 0.05], dtype=torch.float64)
    x = normal(3, *SHAPE)
    guided = DPS(sde, law.score_fn(sde), operator, y, noise, scale=0.7)(x, t)
    for k in range(3):
        alpha, sigma = (float(v) for v in sde.marginal(t[k]))
        precision = torch.linalg.inv(alpha**2 * law.covariance + sigma**2 * torch.eye(SIZE, dtype=torch.float64))
        s = -precision @ (x[k].flatten() - alpha * law.mean.flatten())
        jacobian = (torch.eye(SIZE, dtype=torch.float64) - sigma**2 * precision) / alpha
        residual = y.flatten() - matrix @ (x[k].flatten() + sigma**2 * s) / alpha
        count = int((matrix.abs().sum(1) > 0).sum())
        v = max(float(residual @ residual) / count, noise**2, TINY)
        expected = s + 0.7 * jacobian.T @ matrix.T @ residual / v
        torch.testing.assert_close(guided[k].flatten(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_dps_does_not_depend_on_units(scale):
    """Data, measurement and noise in other units give the same samples in those units."""
    law, operator = prior("correlated"), OPERATORS["inpainting"]
    y = measure(law, operator, NOISE)
    sde = oracles.PROCESSES["ve"]
    t, x, unit = torch.full((5,), 0.4, dtype=torch.float64), normal(5, *SHAPE), 3.0
    # the same noise level, in the other units, is at another time of the same process
    later = sde.time_from_log_snr(sde.log_snr(t) - 2 * torch.log(torch.tensor(unit, dtype=torch.float64)))
    other = GaussianMixture([1.0], unit * law.mean.unsqueeze(0), unit**2 * law.covariance)
    one = DPS(sde, law.score_fn(sde), operator, y, NOISE, scale=scale)(x, t)
    two = DPS(sde, other.score_fn(sde), operator, unit * y, unit * NOISE, scale=scale)(unit * x, later)
    torch.testing.assert_close(two * unit, one, rtol=1e-6, atol=1e-8)


# Any sampler


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_from_the_posterior(name):
    """Mean and covariance of the samples within five standard errors, and the bias of 60 steps."""
    law, operator, sde = prior("correlated"), OPERATORS["super_resolution"], oracles.PROCESSES["vp"]
    y = measure(law, operator, NOISE)
    method = INVERSE_METHODS["moment_matching"](sde, law.score_fn(sde), operator, y, NOISE, iterations=4)
    options = {} if name in ("adaptive_sde", "ode") else {"steps": 60, "grid": "log_snr", "t_end": 2e-3}
    options |= {"rtol": 0.02, "atol": 0.01} if name == "adaptive_sde" else {}
    n = 1000 if name == "adaptive_sde" else 4000
    x = get_sampler(name, **options).sample(
        sde, method, (n, *SHAPE), generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    mean, covariance = posterior(law, dense(operator), y, NOISE)
    samples, scale = x.x.flatten(1), covariance.diagonal().sqrt()
    assert ((samples.mean(0) - mean).abs() / scale).max() < 5 / n**0.5 + 0.05
    spread = (torch.cov(samples.T) - covariance) / (scale * scale.unsqueeze(1))
    assert spread.abs().max() < 5 * (2 / n) ** 0.5 + 0.1


@pytest.mark.parametrize("name", INVERSE_METHODS)
def test_precision_shape_and_graph(name):
    law, operator, sde = prior("correlated"), OPERATORS["inpainting"], oracles.PROCESSES["vp"]
    y = measure(law, operator, NOISE)
    t, x = torch.tensor([0.5, 0.1], dtype=torch.float64), normal(2, *SHAPE)
    double = INVERSE_METHODS[name](sde, law.score_fn(sde), operator, y, NOISE)(x, t)
    single = INVERSE_METHODS[name](sde, law.score_fn(sde), operator, y.float(), NOISE)(x.float(), t.float())
    assert (single.dtype, single.shape, single.requires_grad) == (torch.float32, x.shape, False)
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)
    each = torch.cat(
        [
            INVERSE_METHODS[name](sde, law.score_fn(sde), operator, y, NOISE)(x[k : k + 1], t[k : k + 1])
            for k in range(2)
        ]
    )
    torch.testing.assert_close(double, each)


@pytest.mark.parametrize("name", INVERSE_METHODS)
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"noise_std": -0.1}, "the noise of the measurement is -0.1; give a standard deviation from 0 on"),
        ({"noise_std": float("nan")}, "the noise of the measurement is nan"),
        ({"y": torch.full((1, *SHAPE), torch.inf)}, "the measurement is not finite"),
        (
            {"y": torch.zeros(1, 1, 2, 3)},
            r"has shape \(1, 1, 2, 3\); images \(2, 1, 2, 4\) are measured as \(2, 1, 2, 4\)",
        ),
        ({"y": torch.zeros(3, *SHAPE)}, r"has shape \(3, 1, 2, 4\); images"),
    ],
)
def test_measurements_that_make_no_sense(name, changes, match):
    law, sde = prior("correlated"), oracles.PROCESSES["vp"]
    options = {"operator": OPERATORS["inpainting"], "y": torch.zeros(1, *SHAPE), "noise_std": 0.0} | changes
    with pytest.raises(ValueError, match=match):
        INVERSE_METHODS[name](sde, law.score_fn(sde), **options)(normal(2, *SHAPE), torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("dps", {"scale": -1.0}, "the scale of the guidance is -1.0"),
        ("pseudo_inverse", {"sigma_data": 0.0}, "sigma_data is 0.0; give the standard deviation of the data"),
        ("moment_matching", {"iterations": 0}, "0 iterations of conjugate gradients; give at least 1"),
    ],
)
def test_options_that_make_no_sense(name, options, match):
    law, sde = prior("correlated"), oracles.PROCESSES["vp"]
    with pytest.raises(ValueError, match=match):
        INVERSE_METHODS[name](sde, law.score_fn(sde), OPERATORS["inpainting"], torch.zeros(1, *SHAPE), **options)
