"""The wrapper: a network that is exact in the sense of its prediction type gives the exact score."""

import inspect
import math

import oracles
import pytest
import torch
from oracles import PROCESSES
from torch import nn

from models import CONDITIONINGS, EMA, MLP, MODELS, PRECISIONS, ScoreModel, UNet
from sde_lib import PREDICTIONS, VPSDE

LAW = oracles.mixture((2, 3))
SIGMA_DATA = 0.7


def what_it_predicts(prediction, x, score, alpha, sigma):
    """F for each type, written from its definition: the noise, the score, the data, v, and Karras's F."""
    eps, x0 = -sigma * score, (x + sigma**2 * score) / alpha
    if prediction == "edm":  # in Karras's coordinates x / alpha, with noise of size sigma / alpha
        noise = sigma / alpha
        skip = SIGMA_DATA**2 / (noise**2 + SIGMA_DATA**2)
        out = noise * SIGMA_DATA / (noise**2 + SIGMA_DATA**2).sqrt()
        return (x0 - skip * x / alpha) / out
    return {"eps": eps, "score": score, "x0": x0, "v": alpha * eps - sigma * x0}[prediction]


def what_it_is_given(prediction, x, alpha, sigma):
    """The network's input: x, but for EDM with unit variance for data of SIGMA_DATA."""
    if prediction == "edm":
        return x / alpha / ((sigma / alpha) ** 2 + SIGMA_DATA**2).sqrt()
    return x


class ExactNet(nn.Module):
    """A network that knows F exactly. It is told only its own input and c_noise = 999 t."""

    def __init__(self, sde, prediction):
        super().__init__()
        self.sde, self.prediction = sde, prediction

    def forward(self, x, c_noise, y=None):
        t = c_noise / 999
        alpha, sigma = (v.reshape(-1, 1, 1) for v in self.sde.marginal(t))
        x = x / what_it_is_given(self.prediction, torch.ones_like(x), alpha, sigma)
        return what_it_predicts(self.prediction, x, LAW.score(x, self.sde, t), alpha, sigma)


class Recorder(nn.Module):
    """A network that keeps what it was given."""

    def forward(self, x, c_noise, y=None):
        self.x, self.c_noise, self.y = x, c_noise, y
        return torch.tanh(x) + c_noise.reshape(-1, *[1] * (x.ndim - 1)) / 999


def states(sde, times=(1e-4, 0.01, 0.2, 0.5, 0.9, 1.0)):
    """x_t at several times, one for each sample, in float64."""
    t = torch.tensor(times, dtype=torch.float64)
    x0 = LAW.sample(len(t), generator=oracles.generator(1), dtype=torch.float64)
    eps = torch.randn(x0.shape, generator=oracles.generator(2), dtype=torch.float64)
    return sde.perturb(x0, t, eps), t


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("process", PROCESSES)
def test_an_exact_network_gives_the_exact_score(process, prediction):
    sde = PROCESSES[process]
    model = ScoreModel(ExactNet(sde, prediction), sde, prediction, sigma_data=SIGMA_DATA)
    x, t = states(sde)
    alpha, sigma = (v.reshape(-1, 1, 1) for v in sde.marginal(t))
    exact = LAW.score(x, sde, t)
    # The score is a difference over sigma^2, here from 1e-10 (sub-VP at 1e-4): 1e-16 becomes 1e-6 of rounding.
    assert ((model(x, t) - exact).abs() < 1e-8 * exact.abs() + 1e-15 / sigma**2 + 1e-9).all()
    torch.testing.assert_close(model.eps(x, t), -sigma * exact, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(model.denoise(x, t), (x + sigma**2 * exact) / alpha, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("process", PROCESSES)
def test_score_and_denoised_image_follow_from_the_noise(process, prediction):
    """For any network: score = -eps / sigma, and x = alpha D + sigma eps (Tweedie)."""
    sde = PROCESSES[process]
    model = ScoreModel(Recorder(), sde, prediction)
    x, t = states(sde)
    alpha, sigma = (v.reshape(-1, 1, 1) for v in sde.marginal(t))
    eps = model.eps(x, t)
    torch.testing.assert_close(model(x, t), -eps / sigma, rtol=1e-12, atol=0)
    torch.testing.assert_close(alpha * model.denoise(x, t) + sigma * eps, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES)
def test_a_silent_network_is_the_score_of_a_gaussian(process):
    """F = 0: no noise for eps, data of unit variance for v, and data of variance sigma_data^2 for EDM."""
    sde = PROCESSES[process]
    x, t = states(sde)
    alpha, sigma = (v.reshape(-1, 1, 1) for v in sde.marginal(t))

    class Silent(nn.Module):
        def forward(self, x, c_noise, y=None):
            return torch.zeros_like(x)

    def score(prediction):
        return ScoreModel(Silent(), sde, prediction, sigma_data=SIGMA_DATA)(x, t)

    assert not score("eps").any()
    assert not score("score").any()
    torch.testing.assert_close(score("v"), -x / (alpha**2 + sigma**2), rtol=1e-9, atol=0)
    torch.testing.assert_close(score("edm"), -x / (alpha**2 * SIGMA_DATA**2 + sigma**2), rtol=1e-9, atol=0)
    torch.testing.assert_close(score("x0"), -x / sigma**2, rtol=1e-9, atol=0)


@pytest.mark.parametrize("process", PROCESSES)
def test_an_edm_network_is_given_unit_variance(process):
    sde = PROCESSES[process]
    data = SIGMA_DATA * torch.randn(4000, 2, 3, generator=oracles.generator(1), dtype=torch.float64)
    for t in (0.01, 0.3, 1.0):
        net = Recorder()
        eps = torch.randn(data.shape, generator=oracles.generator(2), dtype=torch.float64)
        ScoreModel(net, sde, "edm", sigma_data=SIGMA_DATA)(sde.perturb(data, t, eps), t)
        assert float(net.x.var()) == pytest.approx(1, abs=4 * math.sqrt(2 / 24_000))


# What the network is told.


def told(sde, conditioning, t):
    net = Recorder()
    t = torch.as_tensor(t, dtype=torch.float64)
    ScoreModel(net, sde, conditioning=conditioning)(torch.zeros(len(t), 2, dtype=torch.float64), t)
    assert net.c_noise.shape == t.shape
    return net.c_noise


@pytest.mark.parametrize("process", PROCESSES)
def test_the_condition_time_is_ddpms_index(process):
    t = torch.linspace(0.001, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(told(PROCESSES[process], "time", t), 999 * t)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_condition_log_snr_is_its_place_between_the_ends(process):
    sde = PROCESSES[process]
    ends = told(sde, "log_snr", [sde.t_min, sde.T])
    torch.testing.assert_close(ends, torch.tensor([0.0, 999.0], dtype=torch.float64), rtol=0, atol=1e-6)
    c = told(sde, "log_snr", torch.linspace(sde.t_min, sde.T, 100, dtype=torch.float64))
    assert (c.diff() > 0).all()
    lam = torch.linspace(*(float(sde.log_snr(torch.tensor(t, dtype=torch.float64))) for t in (1e-3, 0.9)), 20)
    steps = told(sde, "log_snr", sde.time_from_log_snr(lam.double())).diff()
    torch.testing.assert_close(steps, steps.mean().expand(19), rtol=1e-4, atol=0)  # equal in the log-SNR


@pytest.mark.parametrize("process", PROCESSES)
def test_the_condition_log_sigma_is_that(process):
    sde = PROCESSES[process]
    t = torch.linspace(0.001, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(told(sde, "log_sigma", t), sde.marginal(t)[1].log())


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("process", PROCESSES)
def test_every_condition_is_finite_and_grows_with_the_noise(process, conditioning):
    """But for time_left, which falls; and but for chain beyond the ends of its chain, where it stays."""
    sde = PROCESSES[process]
    c = told(sde, conditioning, torch.linspace(sde.t_min, sde.T, 200, dtype=torch.float64))
    c = c.flip(0) if conditioning == "time_left" else c
    assert c.isfinite().all()
    assert (c.diff() > 0).all() or (conditioning in ("log_sigma", "chain") and (c.diff() >= 0).all())
    assert c.abs().max() < 1000


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_conditions_in_float32_keep_their_digits(conditioning):
    for sde in PROCESSES.values():
        for t in (1e-5, 1e-3, 0.5, 1.0):
            net, x = Recorder(), torch.zeros(1, 2)
            ScoreModel(net, sde, conditioning=conditioning)(x, t)
            assert net.c_noise.dtype == torch.float32
            exact = float(told(sde, conditioning, [t]))
            assert float(net.c_noise) == pytest.approx(exact, rel=1e-4, abs=1e-3)


# Arguments.


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_form_of_time_is_the_same(prediction, conditioning):
    model = ScoreModel(Recorder(), VPSDE(), prediction, conditioning)
    x = torch.randn(4, 3, 2)
    batch = torch.full((4,), 0.3)
    for call in (model, model.eps, model.denoise):
        expected = call(x, batch)
        assert expected.shape == x.shape
        for t in (0.3, torch.tensor(0.3), torch.tensor([0.3]), torch.tensor(0.3, dtype=torch.float64)):
            assert torch.equal(call(x, t), expected)
    assert model.net.c_noise.shape == (4,)


def test_every_sample_has_its_own_time():
    model, x = ScoreModel(Recorder(), VPSDE(), "v"), torch.randn(3, 2)
    t = torch.tensor([0.1, 0.5, 0.9])
    together = model(x, t)
    for i in range(3):
        torch.testing.assert_close(model(x[i : i + 1], float(t[i]))[0], together[i])


def test_a_time_of_a_wrong_shape_is_refused():
    model = ScoreModel(Recorder(), VPSDE())
    for t in (torch.ones(3), torch.ones(4, 1)):
        with pytest.raises(ValueError, match=r"time has shape .*; give \(\) or \(B,\) with B = 4, the batch of x"):
            model(torch.ones(4, 2), t)


def test_labels_reach_the_network():
    model, x, y = ScoreModel(Recorder(), VPSDE()), torch.ones(4, 2), torch.tensor([3, 1, 2, 0])
    for call in (model, model.eps, model.denoise):
        call(x, 0.5, y)
        assert model.net.y is y
        call(x, 0.5, y=y)
        assert model.net.y is y
        call(x, 0.5)
        assert model.net.y is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction": "epsilon"}, r"unknown prediction 'epsilon'; choose from 'edm', 'eps', 'score', 'v', 'x0'"),
        ({"conditioning": "log-snr"}, r"unknown conditioning 'log-snr'; choose from .*; did you mean 'log_snr'"),
        ({"precision": "bf16"}, r"unknown precision 'bf16'; choose from 'bfloat16', 'float32'"),
    ],
)
def test_unknown_names_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        ScoreModel(Recorder(), VPSDE(), **options)


# Precision, gradients, copies.


def awake_unet():
    torch.manual_seed(0)
    settings = {"channels": 32, "channel_mult": (1, 2), "res_blocks": 1, "attention_resolutions": (4,)}
    net = UNet(1, 8, dropout=0.0, **settings)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return net.eval()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_bfloat16_is_close_to_float32_and_returns_float32(prediction):
    """bfloat16 rounds to 2^-9 = 0.2%; over the dozen products in a row here that adds up to about 1%."""
    net, sde = awake_unet(), VPSDE()
    x, t = torch.randn(8, 1, 8, 8), torch.linspace(0.05, 0.95, 8)
    inside = []
    net.stem.register_forward_hook(lambda module, args, out: inside.append(out.dtype))
    with torch.no_grad():
        models = [ScoreModel(net, sde, prediction, precision=p) for p in ("float32", "bfloat16")]
        exact, found = (model.eps(x, t) for model in models)
    assert inside == [torch.float32, torch.bfloat16]
    assert found.dtype == torch.float32
    assert models[1](x, t).dtype == models[1].denoise(x, t).dtype == torch.float32
    error = float((found - exact).norm() / exact.norm())
    assert 1e-5 < error < 3e-2


def test_bfloat16_does_not_round_the_noise_level():
    net = Recorder()
    t = torch.tensor([0.5003, 0.9871])
    ScoreModel(net, VPSDE(), precision="bfloat16")(torch.ones(2, 3), t)
    assert net.c_noise.dtype == torch.float32
    torch.testing.assert_close(net.c_noise, 999 * t)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_the_score_of_every_network_is_differentiable(name, precision):
    settings = {key: p.default for key, p in inspect.signature(MODELS[name]).parameters.items()}
    small = {"channels": 8, "heads": 2, "width": 8, "dropout": 0.0}
    model = ScoreModel(
        MODELS[name](**{k: v for k, v in small.items() if k in settings}), VPSDE(), "v", precision=precision
    )
    size = settings.get("image_size")
    shape = (2, settings["in_channels"], size, size) if size else (2, settings["dim"])
    x = torch.randn(shape, requires_grad=True)
    model(x, 0.5).square().sum().backward()
    assert x.grad.dtype == torch.float32
    assert x.grad.any()
    assert next(p for p in model.net.head.parameters()).grad.dtype == torch.float32


def test_a_state_in_float64_runs_through_a_network_in_float32():
    torch.manual_seed(0)
    model = ScoreModel(MLP(3), VPSDE(), "edm")
    torch.nn.init.normal_(next(p for p in reversed(list(model.net.parameters())) if p.ndim == 2))
    x = torch.randn(4, 3, generator=oracles.generator(), dtype=torch.float64)
    for call in (model, model.eps, model.denoise):
        wide, narrow = call(x, 0.3), call(x.float(), 0.3)
        assert wide.dtype == torch.float64
        torch.testing.assert_close(wide.float(), narrow, rtol=1e-5, atol=1e-5)


def test_an_average_of_the_whole_model_is_a_model():
    model = ScoreModel(awake_unet(), VPSDE(), "v", "log_snr").train()
    ema = EMA(model, 0.9)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        before = model.eval()(x, 0.4)
        torch.testing.assert_close(ema.model(x, 0.4), before)
        for parameter in model.parameters():
            parameter.add_(0.05)
        ema.update(model)
        assert not torch.allclose(ema.model(x, 0.4), before)
    assert all(key.startswith("net.") for key in model.state_dict())
