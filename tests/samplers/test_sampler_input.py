"""What does not fit: shapes, seeds, precisions, scores, processes; each gets one clear message, nothing is lost."""

import numpy as np
import pytest
import torch
from oracles import PROCESSES

from samplers import SAMPLERS, PathNoise, get_sampler
from sde_lib import VPSDE

LOOSE = {"adaptive_sde": {"rtol": 0.5, "atol": 0.2}}
"""Options of a method whose default takes many steps."""


def run_of(name, **changes):
    arguments = {"score": lambda x, t: -x, "shape": (4, 2)} | changes
    score, shape = arguments.pop("score"), arguments.pop("shape")
    return get_sampler(name, steps=4, **LOOSE.get(name, {})).sample(VPSDE(), score, shape, **arguments)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_source_of_paths_can_be_used_again_and_for_other_shapes(name):
    noise = PathNoise(range(4))
    first = run_of(name, noise=noise).x
    assert torch.equal(run_of(name, noise=noise).x, first)
    for shape in ((4, 1), (4, 5)):
        again, fresh = run_of(name, noise=noise, shape=shape).x, run_of(name, noise=PathNoise(range(4)), shape=shape).x
        assert again.shape == shape
        assert torch.equal(again, fresh)


@pytest.mark.parametrize("seeds", [[-1, 0], [1.5, 2], [True, 2], [2**63, 1], ["a", 1]])
def test_wrong_seeds_are_explained(seeds):
    with pytest.raises(ValueError, match=r"give a whole number in \[0, 2\^63\) for each image"):
        PathNoise(seeds)


def test_seeds_may_be_numbers_of_numpy():
    assert torch.equal(PathNoise(np.array([3, 1])).seeds, PathNoise([3, 1]).seeds)


@pytest.mark.parametrize("shape", [(), (0, 3), (8, -1), (8, 0), 8, (2.0, 3), (True, 3)])
def test_wrong_shapes_are_explained(shape):
    for noise in (None, PathNoise(range(8))):
        with pytest.raises(ValueError, match=r"the shape of the samples is .*; give \(B, \*\), whole numbers above 0"):
            run_of("ddim", shape=shape, noise=noise)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_number_for_each_sample_is_enough(name):
    assert run_of(name, shape=(5,)).x.shape == (5,)


def test_one_number_for_each_sample_is_enough_for_every_option():
    for sampler in (
        get_sampler("pc", corrector="langevin", steps=4),
        get_sampler("ddim", threshold="dynamic", steps=4),
    ):
        assert sampler.sample(VPSDE(), lambda x, t: -x, (5,)).x.shape == (5,)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_state_keeps_its_dtype(name, dtype):
    assert run_of(name, dtype=dtype, noise=PathNoise(range(4))).x.dtype == dtype


@pytest.mark.parametrize("name", ["ancestral", "deis", "ode", "adaptive_sde"])
def test_a_score_of_another_precision_does_not_change_the_state(name):
    plain, wide = (
        run_of(name, score=s, noise=PathNoise(range(4))).x for s in (lambda x, t: -x, lambda x, t: -x.double())
    )
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [lambda x, t: (x, t), lambda x, t: None, lambda x, t: x.int()])
def test_a_score_that_is_no_tensor_of_numbers_is_explained(value):
    with pytest.raises(TypeError, match=r"the score is .*; a score function \(x, t\) returns a floating-point tensor"):
        run_of("ddim", score=value)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "scipy_rk45"])
def test_the_scores_own_error_is_not_taken_for_the_solvers(method):
    def score(x, t):
        raise AssertionError("mine")

    with pytest.raises(AssertionError, match="mine"):
        get_sampler("ode", method=method, steps=3).sample(VPSDE(), score, (2, 2))


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_start_survives_a_score_that_works_in_place(name):
    x = torch.ones(4, 2)
    run_of(name, score=lambda x, t: x.mul_(0.5).neg(), x_init=x)
    assert torch.equal(x, torch.ones(4, 2))


def test_a_start_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="x_init is not finite"):
        run_of("ddim", x_init=torch.full((4, 2), float("nan")))


class NoSignal(type(PROCESSES["user"])):
    """alpha = 1 - t, sigma = t: nothing is left of the data at T."""

    def log_alpha(self, t):
        return torch.log1p(-t)

    def sigma(self, t):
        return t

    def drift_coeff(self, t):
        return -1 / (1 - t)

    def diffusion(self, t):
        return (2 * t / (1 - t)).sqrt()


@pytest.mark.parametrize("name", ["ancestral", "deis", "dpmpp", "heun", "ddim", "stochastic_heun", "exponential_sde"])
def test_a_process_that_leaves_no_signal_is_explained(name):
    with pytest.raises(ValueError, match=r"at t = 1 .*(no|of the) signal.*begin.*later"):
        get_sampler(name, steps=4).sample(NoSignal(), lambda x, t: -x, (4, 2))
    later = [0.99, 0.8, 0.5, 0.2, 0.01]
    assert get_sampler(name, grid=later).sample(NoSignal(), lambda x, t: -x, (4, 2)).x.isfinite().all()


@pytest.mark.parametrize("name", ["ode", "adaptive_sde"])
def test_methods_that_need_the_score_at_the_end_say_so(name):
    with pytest.raises(
        ValueError, match=r"t_end is 0, where VPSDE.* has no noise, and this method needs the score there"
    ):
        get_sampler(name, t_end=0.0).sample(VPSDE(), lambda x, t: -x, (4, 2))
