"""What callers of ``Sampler.sample`` rely on: counts, callbacks, randomness, times, dtypes, and states."""

from itertools import pairwise

import oracles
import pytest
import torch
from oracles import PROCESSES

from samplers import CORRECTORS, PREDICTORS, SAMPLERS, Progress, Score, get_sampler
from sde_lib import METHODS, VPSDE

LAW = oracles.mixture((3, 2))
STEPS = 6


class Recorder:
    """The exact score, with all that it was asked."""

    def __init__(self, sde, law=LAW):
        self.exact, self.calls = law.score_fn(sde), []

    def __call__(self, x, t):
        self.calls.append((x.shape, x.dtype, t.clone()))
        return self.exact(x, t)


def sample(name, sde, score, *, seed=0, x_init=None, generator=None, dtype=None, callback=None, n=5, **options):
    settings = {"steps": STEPS, "t_end": 0.05} | options
    generator = oracles.generator(seed) if generator is None else generator
    run = get_sampler(name, **settings)
    return run.sample(sde, score, (n, *LAW.shape), x_init=x_init, generator=generator, dtype=dtype, callback=callback)


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
    result = sample("ode", VPSDE(), score, method=method, rtol=1e-3, atol=1e-3, dtype=torch.float64)
    assert result.nfe == len(score.calls)


@pytest.mark.parametrize("name", ["ancestral", "reverse_diffusion", "euler_maruyama"])
def test_a_one_step_method_calls_once_a_step(name):
    assert sample(name, VPSDE(), LAW.score_fn(VPSDE()), denoise=False).nfe == STEPS
    assert sample(name, VPSDE(), LAW.score_fn(VPSDE()), denoise=True).nfe == STEPS + 1


@pytest.mark.parametrize("corrector", CORRECTORS)
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_pc_calls_once_for_each_prediction_and_correction(predictor, corrector):
    for corrections in (0, 1, 3):
        options = {"predictor": predictor, "corrector": corrector, "corrector_steps": corrections}
        result = sample("pc", VPSDE(), LAW.score_fn(VPSDE()), **options)
        assert result.nfe == STEPS * (1 + corrections) + 1


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
        assert (t == t[0]).all()
        assert end <= float(t[0]) <= last
    assert float(score.calls[0][2][0]) == last  # the first is at T,
    assert float(score.calls[-1][2][0]) == end  # and that of the denoising at t_end


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_callback_sees_every_step(name):
    seen = []
    result = sample(name, VPSDE(), LAW.score_fn(VPSDE()), denoise=False, callback=seen.append)
    times = get_sampler(name, steps=STEPS, t_end=0.05).time_grid(VPSDE())
    assert all(isinstance(progress, Progress) for progress in seen)
    assert [p.step for p in seen] == list(range(len(times) - 1))
    assert {p.steps for p in seen} == {len(times) - 1}
    assert [p.t for p in seen] == times[1:].tolist()
    assert all(p.x.shape == result.x.shape for p in seen)
    assert torch.equal(seen[-1].x, result.x)
    assert not any(torch.equal(a.x, b.x) for a, b in pairwise(seen))


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_steps_and_then_the_denoising_make_the_sample(name):
    """``sample`` is no more than init, step, step, ... and Tweedie's formula."""
    sde, sampler = VPSDE(), get_sampler(name, steps=STEPS, t_end=0.05)
    score = Score(sde, LAW.score_fn(sde), oracles.generator(4))
    x = sde.prior_sample((5, *LAW.shape), generator=score.generator)
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
    run = get_sampler(name, steps=STEPS)
    draws = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        draws.append(run.sample(sde, LAW.score_fn(sde), (2, *LAW.shape)).x)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_can_be_used_again_and_keeps_no_state(name):
    run, sde = get_sampler(name, steps=STEPS), VPSDE()
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

        result = get_sampler(name, steps=3).sample(sde, score, shape, generator=oracles.generator())
        assert result.x.shape == shape
        assert result.x.isfinite().all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_wrong_start_is_explained(name):
    run = get_sampler(name)
    with pytest.raises(ValueError, match=r"x_init has shape \(2, 3\), but samples of \(2, 2\) were asked for"):
        run.sample(VPSDE(), lambda x, t: -x, (2, 2), x_init=torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"would have dtype torch.int64; give x_init and dtype in floating point"):
        run.sample(VPSDE(), lambda x, t: -x, (2, 2), x_init=torch.ones(2, 2, dtype=torch.int64))


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "ode"])
@pytest.mark.parametrize("process", PROCESSES)
def test_steps_down_to_no_noise_need_no_score_there(process, name):
    """At t = 0 of a process without noise, a network's score -eps / sigma is 0 / 0: x is the sample already."""
    sde = PROCESSES[process]
    noiseless = float(sde.sigma(torch.tensor(0.0))) == 0
    times = []

    def score(x, t):
        times.append(float(t[0]))
        return -torch.tanh(x) / sde.sigma(t)[:, None, None]

    result = sample(name, sde, score, t_end=0.0)
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


class SharedNoise(Score):
    """Noise drawn in float64 whatever the dtype of x, so that runs in two precisions share it."""

    def noise_like(self, x):
        return torch.randn(x.shape, generator=self.generator, dtype=torch.float64).to(x.dtype)


@pytest.mark.parametrize("grid", ["uniform", "log_snr"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_float32_agrees_with_float64(name, grid):
    sde = VPSDE()
    sampler = get_sampler(name, steps=200, grid=grid)
    times = sampler.time_grid(sde)
    start = torch.randn(16, 4, generator=oracles.generator(1), dtype=torch.float64)
    ends = []
    for dtype in (torch.float32, torch.float64):
        score = SharedNoise(sde, network(dtype), oracles.generator(2))
        x = start.to(dtype)
        state = sampler.init(score, x, times)
        for t, s in pairwise(times):
            x, state = sampler.step(score, x, t, s, state)
        x = score.denoise(x, times[-1])
        assert x.dtype == dtype
        ends.append(x.double())
    assert ends[1].std() > 0.1
    assert (ends[0] - ends[1]).abs().max() < 1e-4 * ends[1].abs().max()
