"""What callers of ``Sampler.sample`` rely on: counts, callbacks, randomness, times, dtypes, and states."""

from itertools import pairwise

import oracles
import pytest
import torch
from oracles import PROCESSES

from samplers import (
    CORRECTORS,
    PREDICTORS,
    SAMPLERS,
    GeneratorNoise,
    PathNoise,
    Progress,
    SamplingError,
    Score,
    get_sampler,
)
from sde_lib import METHODS, VPSDE

LAW = oracles.mixture((3, 2))
STEPS = 6
OPTIONS = {
    # Tolerances that it meets in some ten steps: each costs Python time for every image.
    "adaptive_sde": {"rtol": 0.5, "atol": 0.5, "first_step": 0.1},
}
OWN_STEPS = ("ode", "adaptive_sde")  # the methods whose defaults find their steps as they go
CALLS = {"pc": 2, "stochastic_heun": 2, "heun": 2, "dpm_solver": 3}  # evaluations in a step where it is not one


class Recorder:
    """The exact score, with all that it was asked."""

    def __init__(self, sde, law=LAW):
        self.sde, self.exact, self.calls = sde, law.score_fn(sde), []

    def __call__(self, x, t):
        self.calls.append((x.shape, x.dtype, t.clone()))
        value = self.exact(x, t)
        self.last = (x, t, value)
        return value

    def denoised(self):
        """Tweedie's formula at the last evaluation, written out."""
        x, t, value = (v.double() for v in self.last)
        alpha, sigma = (c.reshape(-1, *[1] * (x.ndim - 1)) for c in (self.sde.log_alpha(t).exp(), self.sde.sigma(t)))
        return (x + sigma**2 * value) / alpha


def build(name, **options):
    return get_sampler(name, **{"steps": STEPS, "t_end": 0.05} | OPTIONS.get(name, {}) | options)


def sample(name, sde, score, *, seed=0, x_init=None, dtype=None, callback=None, n=5, **options):
    given = {"x_init": x_init, "generator": oracles.generator(seed), "dtype": dtype, "callback": callback}
    return build(name, **options).sample(sde, score, (n, *LAW.shape), **given)


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("process", PROCESSES)
def test_nfe_is_the_number_of_calls(process, name, denoise):
    score = Recorder(PROCESSES[process])
    result = sample(name, PROCESSES[process], score, denoise=denoise)
    assert isinstance(result.nfe, int)
    assert result.nfe == len(score.calls)
    assert result.x.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_nfe_of_every_ode_method_is_the_number_of_calls(method):
    score = Recorder(VPSDE())
    # Where implicit Adams starts, its iteration converges for steps of some 1/30 (it says so otherwise).
    result = sample("ode", VPSDE(), score, steps=40, method=method, rtol=1e-3, atol=1e-3, dtype=torch.float64)
    assert result.nfe == len(score.calls)


@pytest.mark.parametrize("steps", [1, 2, STEPS])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in OWN_STEPS])
def test_a_step_calls_as_often_as_its_method_says(name, steps):
    """The starts and the corrections of multistep methods cost nothing: they are what the next step begins with."""
    for denoise in (False, True):
        result = sample(name, VPSDE(), LAW.score_fn(VPSDE()), steps=steps, denoise=denoise)
        assert result.nfe == steps * CALLS.get(name, 1) + denoise


@pytest.mark.parametrize("corrector", CORRECTORS)
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_pc_calls_once_for_each_prediction_and_correction(predictor, corrector):
    alone = 0 if predictor == "none" else CALLS.get(predictor, 1)
    for corrections in (0, 1, 3):
        options = {"predictor": predictor, "corrector": corrector, "corrector_steps": corrections}
        for first in (False, True):
            result = sample("pc", VPSDE(), LAW.score_fn(VPSDE()), corrector_first=first, **options)
            assert result.nfe == STEPS * (alone + corrections) + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("process", PROCESSES)
def test_the_score_is_asked_in_the_dtype_of_x_at_times_of_the_grid(process, name, dtype):
    sde = PROCESSES[process]
    score = Recorder(sde)
    result = sample(name, sde, score, dtype=dtype)
    assert result.x.dtype == dtype
    assert result.x.shape == (5, *LAW.shape)
    end, last = (float(torch.tensor(t, dtype=dtype)) for t in (0.05, sde.T))
    for shape, kind, t in score.calls:
        assert shape == (5, *LAW.shape)
        assert kind == t.dtype == dtype
        assert t.shape == (5,)
        assert name == "adaptive_sde" or (t == t[0]).all()  # there every image has its own time
        assert end <= float(t.min())
        assert float(t.max()) <= last
    assert (score.calls[0][2] == last).all()  # the first is at T (churn does not lead beyond it),
    assert (score.calls[-1][2] == end).all()  # and that of the denoising at t_end


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("process", ["vp", "ve", "user"])
def test_the_callback_sees_every_step(process, name):
    seen, sde = [], PROCESSES[process]
    score = Recorder(sde)

    def callback(progress):
        assert isinstance(progress, Progress)
        seen.append(progress)
        torch.testing.assert_close(progress.denoised.double(), score.denoised(), rtol=1e-4, atol=1e-4)

    result = sample(name, sde, score, denoise=False, callback=callback)
    assert [p.step for p in seen] == list(range(len(seen)))
    assert all(p.x.shape == result.x.shape for p in seen)
    assert torch.equal(seen[-1].x, result.x)
    assert seen[-1].t == 0.05
    times = [p.t for p in seen]
    if name in OWN_STEPS:
        assert {p.steps for p in seen} == {None}
        assert len(seen) > 3
        assert times == sorted(times, reverse=True)  # that of the last image may wait while its step is repeated
        assert max(times) <= 1
    else:
        assert times == build(name).time_grid(sde)[1:].tolist()
        assert {p.steps for p in seen} == {STEPS} == {len(seen)}
        assert not any(torch.equal(a.x, b.x) for a, b in pairwise(seen))


@pytest.mark.parametrize("method", [name for name, kind in METHODS.items() if kind == "fixed"])
def test_the_callback_sees_every_step_of_a_fixed_ode_method(method):
    seen = []
    result = sample("ode", VPSDE(), LAW.score_fn(VPSDE()), method=method, steps=40, denoise=False, callback=seen.append)
    assert [p.t for p in seen] == build("ode", method=method, steps=40).time_grid(VPSDE())[1:].tolist()
    assert {p.steps for p in seen} == {40} == {len(seen)}
    assert torch.equal(seen[-1].x, result.x)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_steps_and_then_the_denoising_make_the_sample(name):
    """``sample`` is no more than init, step, step, ... and Tweedie's formula."""
    sde, sampler = VPSDE(), build(name)
    score = Score(sde, LAW.score_fn(sde), GeneratorNoise(oracles.generator(4)))
    x = score.source.start(sde, (5, *LAW.shape), None, None)
    times = sampler.time_grid(sde)
    state = sampler.init(score, x, times)
    for t, s in pairwise(times):
        x, state = sampler.step(score, x, t, s, state)
    expected = score.denoise(x, times[-1])
    result = sample(name, sde, LAW.score_fn(sde), seed=4)
    assert torch.equal(result.x, expected)
    assert result.nfe == score.nfe
    raw = sample(name, sde, LAW.score_fn(sde), seed=4, denoise=False)
    assert torch.equal(raw.x, x)
    assert raw.nfe == score.nfe - 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_x_init_is_where_it_starts_and_is_left_alone(name):
    seen, sde = [], VPSDE()

    def score(x, t):
        seen.append(x.clone())
        return LAW.score(x, sde, t)

    x = torch.randn(5, *LAW.shape, generator=oracles.generator(1))
    kept = x.clone()
    first = sample(name, sde, score, x_init=x).x
    assert torch.equal(seen[0], kept)
    assert torch.equal(x, kept)
    assert torch.equal(first, sample(name, sde, score, x_init=x).x)
    assert not torch.equal(first, sample(name, sde, score, x_init=x + 1).x)
    assert sample(name, sde, score, x_init=x, dtype=torch.float64).x.dtype == torch.float64


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_seed_fixes_the_samples_and_nothing_else_does(name):
    sde = VPSDE()
    score = LAW.score_fn(sde)
    once = sample(name, sde, score, seed=3).x
    torch.manual_seed(99)
    assert torch.equal(once, sample(name, sde, score, seed=3).x)
    assert not torch.equal(once, sample(name, sde, score, seed=4).x)
    state = torch.get_rng_state()
    sample(name, sde, score, seed=3)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", SAMPLERS)
def test_without_a_generator_the_global_one_is_used(name):
    sde = VPSDE()
    run = build(name)
    draws = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        draws.append(run.sample(sde, LAW.score_fn(sde), (2, *LAW.shape)).x)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_can_be_used_again_and_keeps_no_state(name):
    run, sde = build(name), VPSDE()
    results = []
    for process in (sde, PROCESSES["ve"], sde):
        generator = oracles.generator(2)
        results.append(run.sample(process, LAW.score_fn(process), (3, *LAW.shape), generator=generator))
    assert torch.equal(results[0].x, results[2].x)
    assert results[0].nfe == results[2].nfe


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_graph_is_kept(name):
    weight = torch.tensor(1.0, requires_grad=True)
    result = sample(name, VPSDE(), lambda x, t: -x * weight)
    assert not result.x.requires_grad


@pytest.mark.parametrize("shape", [(4, 1), (1, 7), (2, 3, 8, 8), (2, 1, 4, 4, 4)])
@pytest.mark.parametrize("name", SAMPLERS)
def test_any_trailing_shape_is_sampled(name, shape):
    for sde in (PROCESSES["vp"], PROCESSES["ve"]):

        def score(x, t, sde=sde):
            alpha, sigma = sde.marginal(t)
            return -x / (alpha**2 + sigma**2).reshape(-1, *[1] * (x.ndim - 1))

        result = build(name, steps=3).sample(sde, score, shape, generator=oracles.generator())
        assert result.x.shape == shape
        assert result.x.isfinite().all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_wrong_start_is_explained(name):
    run = get_sampler(name)
    with pytest.raises(ValueError, match=r"x_init has shape \(2, 3\), but samples of \(2, 2\) were asked for"):
        run.sample(VPSDE(), lambda x, t: -x, (2, 2), x_init=torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"would have dtype torch.int64; give x_init and dtype in floating point"):
        run.sample(VPSDE(), lambda x, t: -x, (2, 2), x_init=torch.ones(2, 2, dtype=torch.int64))


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in OWN_STEPS])  # they look at both ends
@pytest.mark.parametrize("process", PROCESSES)
def test_steps_down_to_no_noise_need_no_score_there(process, name):
    """At t = 0 of a process without noise, a network's score -eps / sigma is 0 / 0: x is the sample already."""
    sde = PROCESSES[process]
    noiseless = float(sde.sigma(torch.tensor(0.0))) == 0
    times = []

    def score(x, t):
        times.append(float(t[0]))
        return -torch.tanh(x) / sde.sigma(t)[:, None, None]

    result = sample(name, sde, score, t_end=0.0, grid="uniform")
    assert result.x.isfinite().all()
    assert (0.0 in times) != noiseless
    assert result.nfe == len(times)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_last_ancestral_step_to_no_noise_is_the_denoised_image(process):
    """With s = 0 and sigma = 0 there, the step is Tweedie's formula: what ``denoise`` would give, and no noise."""
    sde = PROCESSES[process]
    if float(sde.sigma(torch.tensor(0.0))):
        return
    down = sample("ancestral", sde, LAW.score_fn(sde), grid=[1.0, 0.4, 0.0], dtype=torch.float64)
    stop = sample("ancestral", sde, LAW.score_fn(sde), grid=[1.0, 0.4], dtype=torch.float64)
    torch.testing.assert_close(down.x, stop.x, rtol=1e-9, atol=1e-9)
    assert down.nfe == stop.nfe == 2


# Failures.


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "ode"])  # which stops at once: test_sampler_ode
def test_a_score_that_is_not_finite_is_explained(name):
    def score(x, t):
        return torch.where(t < 0.6, torch.nan, -1.0)[:, None, None] * x

    # Where every image has its own time, the latest of the batch is named.
    digits = r"\d+" if name == "adaptive_sde" else r"[0-5]\d*"
    with pytest.raises(SamplingError, match=rf"^the score is not finite at t = 0\.{digits}: an untrained or diverged"):
        sample(name, VPSDE(), score)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_score_of_another_shape_is_explained(name):
    for wrong in (lambda x, t: x.sum(-1), lambda x, t: x[:1], lambda x, t: x[..., None] * x[..., None, :]):
        with pytest.raises(ValueError, match=r"^the score of x \(5, 3, 2\) has shape \(.*\); a score function"):
            sample(name, VPSDE(), wrong)


def test_steps_that_are_too_large_are_explained():
    """Every score is finite, and the integral of g^2 s, about 10 s, leads beyond float32."""
    where = "(at the end|before t = .*)"
    message = rf"^1 of 1 samples are not finite {where} though their scores were: the steps are too large; use more"
    with pytest.raises(SamplingError, match=message):
        sample("euler_maruyama", VPSDE(), lambda x, t: 5e37 * torch.ones_like(x), denoise=False, n=1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_two_sources_of_noise_or_one_for_other_images_are_refused(name):
    run, score = build(name), LAW.score_fn(VPSDE())
    with pytest.raises(ValueError, match="give generator or noise as the source of noise, not both"):
        run.sample(VPSDE(), score, (2, 3, 2), generator=oracles.generator(), noise=PathNoise([1, 2]))
    with pytest.raises(ValueError, match="noise for 3 images, but 2 samples were asked for"):
        run.sample(VPSDE(), score, (2, 3, 2), noise=PathNoise([1, 2, 3]))


# Precision.


def network(dtype):
    """A score as of a trained network, smooth but not linear, with weights of this dtype."""
    draw = oracles.generator(11)
    first, second = (torch.randn(4, 32, generator=draw, dtype=torch.float64) for _ in range(2))
    sde = VPSDE()

    def score(x, t):
        hidden = torch.tanh(0.5 * x @ first.to(dtype) + 3 * t[:, None])
        return -(0.7 * x + 0.1 * hidden @ second.to(dtype).T) / sde.sigma(t)[:, None]

    return score


class SharedNoise(GeneratorNoise):
    """Noise drawn in float64 whatever the dtype of x, so that runs in two precisions share it."""

    def fresh(self, x):
        return torch.randn(x.shape, generator=self.generator, dtype=torch.float64).to(x.dtype)


@pytest.mark.parametrize("grid", ["uniform", "log_snr"])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "adaptive_sde"])  # rounding decides its steps
def test_float32_agrees_with_float64(name, grid):
    sde = VPSDE()
    sampler = get_sampler(name, steps=100, grid=grid)
    times = sampler.time_grid(sde)
    start = torch.randn(16, 4, generator=oracles.generator(1), dtype=torch.float64)
    ends = []
    for dtype in (torch.float32, torch.float64):
        score = Score(sde, network(dtype), SharedNoise(oracles.generator(2)))
        x = start.to(dtype)
        state = sampler.init(score, x, times)
        for t, s in pairwise(times):
            x, state = sampler.step(score, x, t, s, state)
        x = score.denoise(x, times[-1])
        assert x.dtype == dtype
        ends.append(x.double())
    assert ends[1].std() > 0.1
    assert (ends[0] - ends[1]).abs().max() < 1e-4 * ends[1].abs().max()
