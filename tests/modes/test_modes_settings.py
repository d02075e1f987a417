"""What samples and scores, and where: the objects that sampling, likelihood and the dequantiser work with."""

import math
from functools import partial

import pytest
import torch

from configs import default, digits, toy2d
from data import StepDraws
from modes.dequantizer_settings import (
    build_dequantizer_loss,
    build_dequantizer_options,
    build_dequantizer_state,
    trained_dequantizer,
)
from modes.likelihood_settings import (
    DEQUANTIZATIONS,
    check_likelihood,
    ddpm_chain,
    dequantization,
    likelihood_options,
)
from modes.sampler_settings import build_sampler
from samplers import SAMPLERS, sampler_options
from sde_lib import SDES, IntegrationError, elbo, log_likelihood
from training import CheckpointError, RunFolder, TrainOptions, builders


def changed(config, changes):
    """A recipe with changes, such as training_steps=3 for training.steps."""
    for name, value in changes.items():
        section, key = name.split("_", 1)
        config[section][key] = value
    return config


def tiny(**changes):
    """The toy recipe, small, with changes."""
    return changed(toy2d.get_config(), {"model_width": 8, "model_blocks": 1, "data_size": 50, **changes})


def tiny_digits(**changes):
    """The recipe of images, likewise."""
    small = {"model_channels": 8, "model_channel_mult": (1, 1), "dequantizer_channels": 4, "dequantizer_layers": 2}
    return changed(digits.get_config(), {**small, **changes})


# Samplers


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_gets_the_settings_that_it_has(name):
    values = {
        "steps": 17,
        "grid": "log_snr",
        "t_end": 0.02,
        "denoise": False,
        "snr": 0.3,
        "corrector_steps": 2,
        "rtol": 0.1,
        "atol": 0.2,
        "max_nfe": 99,
        "method": "rk4",
    }
    config = tiny(**{f"sampling_{key}": value for key, value in values.items()}, sampling_sampler=name)
    sde = builders.build_sde(config)
    sampler = build_sampler(config, sde)
    assert type(sampler) is SAMPLERS[name]
    own = {key: value for key, value in values.items() if key in sampler_options(name)}
    assert {"steps", "grid", "t_end", "denoise"} <= set(own)
    assert {key: getattr(sampler, key) for key in own} == own
    assert build_sampler(config, sde, steps=5, sampler="ancestral").steps == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "ancestrel"}, "unknown sampler 'ancestrel'.*did you mean 'ancestral'"),
        ({"grid": "linear"}, "unknown time grid 'linear'"),
        ({"sampler": "ancestral", "variance": "both"}, "unknown variance 'both'"),
        ({"sampler": "pc", "corrector": "mala"}, "unknown corrector 'mala'"),
        ({"sampler": "ode", "method": "rk9"}, "unknown ODE method 'rk9'"),
    ],
)
def test_a_sampler_that_does_not_exist(changes, message):
    config = tiny(**{f"sampling_{key}": value for key, value in changes.items()})
    with pytest.raises(ValueError, match=message):
        build_sampler(config, builders.build_sde(config))


# Likelihood


def gaussian_score(x, t):
    return -x / (1 + t.unsqueeze(1))


@pytest.mark.parametrize(
    "changes",
    [
        {"divergence": "exact"},
        {"divergence": "hutchinson", "probes": 3},
        {"divergence": "hutchinson", "noise": "gaussian"},
        {"method": "euler", "steps": 7},
        {"rtol": 1e-2, "atol": 1e-3},
    ],
)
def test_the_likelihood_gets_its_settings(changes):
    options = {"divergence": "exact", "rtol": 1e-4, "atol": 1e-4, **changes}
    config = tiny(**{f"likelihood_{key}": value for key, value in options.items()})
    sde = builders.build_sde(config)
    x = torch.randn(5, 2)
    ours = log_likelihood(
        sde, gaussian_score, x, **likelihood_options(config), generator=torch.Generator().manual_seed(1)
    )
    direct = log_likelihood(sde, gaussian_score, x, **options, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ours.log_prob, direct.log_prob)
    assert ours.nfe == direct.nfe


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"divergence": "trace"}, ValueError, "unknown divergence 'trace'"),
        ({"divergence": "hutchinson", "noise": "uniform"}, ValueError, "'uniform'"),
        ({"method": "rk9"}, ValueError, "unknown ODE method 'rk9'"),
        ({"max_nfe": 1}, IntegrationError, "raise max_nfe"),
        (
            {"estimate": "iwae"},
            ValueError,
            "unknown likelihood.estimate 'iwae'; choose from 'all', 'ddpm', 'elbo', 'ode'",
        ),
        ({"precision": "float16"}, ValueError, "unknown likelihood.precision 'float16'; choose from 'bfloat16', 'floa"),
        ({"dequantization": "normal"}, ValueError, "unknown likelihood.dequantization 'normal'; choose from 'trunc"),
        ({"codes": True, "estimate": "elbo"}, ValueError, "the estimate 'elbo' has no latent codes; use ode"),
        ({"codes": True, "estimate": "ddpm"}, ValueError, "the estimate 'ddpm' has no latent codes; use ode"),
    ],
)
def test_settings_of_the_likelihood_that_cannot_work_fail_when_they_are_checked(changes, error, message):
    config = tiny(**{f"likelihood_{key}": value for key, value in changes.items()})
    with pytest.raises(error, match=message):
        check_likelihood(config, builders.build_sde(config), default.get_config())


def test_settings_of_the_likelihood_that_work_pass():
    for changes in ({}, {"estimate": "all", "codes": True}, {"estimate": "ddpm"}, {"precision": "bfloat16"}):
        config = tiny(**{f"likelihood_{key}": value for key, value in changes.items()})
        check_likelihood(config, builders.build_sde(config), default.get_config())


@pytest.mark.parametrize("process", SDES)
def test_the_documented_settings_of_the_likelihood_work_for_every_process(process):
    """A configuration that has them is not tried."""
    x = torch.zeros(1, 1)
    assert log_likelihood(SDES[process](), lambda x, t: 0 * x, x, **likelihood_options(default.get_config())).nfe > 5


def test_a_chain_is_as_long_as_that_of_training_and_not_for_every_process():
    config = tiny(training_ddpm_steps=30, likelihood_estimate="ddpm")
    assert ddpm_chain(config, builders.build_sde(config)) == 30
    config.sde.name = "ve"
    sde = builders.build_sde(config)
    with pytest.raises(TypeError, match="a DDPM chain needs a variance-preserving process"):
        check_likelihood(config, sde, default.get_config())
    config.likelihood.estimate = "all"  # which leaves it out
    check_likelihood(config, sde, default.get_config())


def test_the_dequantisation_is_the_one_that_the_model_was_trained_with():
    assert dequantization(tiny()) == "uniform"
    assert dequantization(tiny(data_dequantize=False)) == "truncated_normal"
    for name in DEQUANTIZATIONS:
        assert dequantization(tiny(data_dequantize=False, likelihood_dequantization=name)) == name


# The dequantiser


def test_a_dequantiser_fits_the_data_and_has_its_settings():
    config = tiny_digits(dequantizer_channels=6, dequantizer_layers=3, dequantizer_ema_decay=0.5)
    data = builders.build_dataset(config, "train")
    state = build_dequantizer_state(config, data, torch.device("cpu"))
    network = state.model
    assert (network.shape, network.levels, network.low, network.high) == ((1, 8, 8), 17, -1, 1)
    assert len(network.couplings) == 3
    assert state.ema.decay == 0.5
    v, u = data.fetch(range(2)).x, torch.rand(2, 1, 8, 8)
    x, log_q = network(v, u)  # a new one is uniform
    torch.testing.assert_close(x, data.quantizer.place(v, u))
    torch.testing.assert_close(log_q, torch.full((2,), -64 * math.log(data.quantizer.bin_width)))


def test_options_of_the_dequantiser():
    config = tiny_digits(dequantizer_steps=9, dequantizer_batch_size=5, dequantizer_learning_rate=0.25)
    config.seed, config.data.workers, config.training.log_every = 3, 2, 4
    steps = {"steps": 9, "log_every": 4, "checkpoint_every": 9}
    assert build_dequantizer_options(config) == TrainOptions(
        **steps, batch_size=5, learning_rate=0.25, decay="linear", seed=3, workers=2, cuda_graph=False
    )


def test_the_loss_of_the_dequantiser_is_the_bound_of_levels_in_bits():
    """A model that predicts 0: the loss is that of the process and of the bins alone."""
    config = tiny_digits()
    sde, data = builders.build_sde(config), builders.build_dataset(config, "train")
    network = build_dequantizer_state(config, data, torch.device("cpu")).model
    v = data.fetch(range(3)).x
    told, draws = [], StepDraws(4, 0, 3, range(3))

    class Zero:
        @staticmethod
        def eps(x, t, y):
            told.append(y)
            return torch.zeros_like(x)

    for conditional in (False, True):
        config.model.conditional = conditional
        loss_fn = build_dequantizer_loss(config, sde, Zero(), data.quantizer)
        for encode in (data.quantizer.encode, data.quantizer.dequantize):  # the levels are read off again
            loss = loss_fn(network, encode(v), torch.arange(3), draws)
            x, log_q = network(v, draws.uniform("place", v.shape[1:]))
            noise = torch.stack([draws.normal_like(name, x) for name in ("noise", "reconstruction")])
            bound = elbo(sde, partial(Zero.eps, y=None), x, samples=1, u=draws.uniform("offset", ()), eps=noise)
            bound = bound.log_prob
            torch.testing.assert_close(loss, (log_q - bound) / (64 * math.log(2)))
            loss.mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert [y is None for y in told[:4]] == [True] * 4
    assert any(y is not None for y in told)


def test_a_dequantiser_that_is_not_there(tmp_path):
    config, folder = tiny_digits(), RunFolder(tmp_path)
    data = builders.build_dataset(config, "train")
    with pytest.raises(ValueError, match=r"no dequantiser in .*; train one first, by --mode=dequantizer on this run"):
        trained_dequantizer(config, data, folder, torch.device("cpu"))
    config = tiny()
    with pytest.raises(ValueError, match="'toy/checkerboard' has no levels to dequantise"):
        build_dequantizer_state(config, builders.build_dataset(config, "train"), torch.device("cpu"))


def test_a_dequantiser_of_another_size(tmp_path):
    config, folder, cpu = tiny_digits(), RunFolder(tmp_path), torch.device("cpu")
    data = builders.build_dataset(config, "train")
    state = build_dequantizer_state(config, data, cpu)
    state.save(folder.dequantizer)
    found = trained_dequantizer(config, data, folder, cpu)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), state.model.parameters(), strict=True))
    config.dequantizer.channels = 8
    with pytest.raises(CheckpointError, match="is of another architecture"):
        trained_dequantizer(config, data, folder, cpu)
