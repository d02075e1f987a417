"""The moving average against an independent recursion."""

import numpy as np
import pytest
import torch
from torch import nn

from models import EMA, MLP, PowerEMA, parse_averages, power_std
from models.posthoc_ema import gamma_of


def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    return net


def test_it_begins_as_a_copy_that_is_independent():
    net = model()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    ema = EMA(net)
    assert ema.updates == 0
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in ema.model.state_dict().items())


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.9999])
def test_after_n_updates_it_is_the_recursion_with_its_warm_up(decay):
    """ema_n = d_n ema_{n-1} + (1 - d_n) w_n with d_n = min(decay, (1 + n) / (10 + n)), in float64 and by hand."""
    net = model()
    ema = EMA(net, decay)
    expected = [p.detach().double().numpy().copy() for p in net.parameters()]
    draw = np.random.default_rng(1)
    for n in range(1, 41):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(torch.from_numpy(draw.standard_normal(parameter.shape)))
        ema.update(net)
        d = min(decay, (1 + n) / (10 + n))
        expected = [
            d * old + (1 - d) * p.detach().double().numpy() for old, p in zip(expected, net.parameters(), strict=True)
        ]
        assert ema.updates == n
        for found, exact in zip(ema.model.parameters(), expected, strict=True):
            np.testing.assert_allclose(found.numpy(), exact, rtol=1e-5, atol=1e-6)


def test_without_a_warm_up_left_constant_weights_are_approached_geometrically():
    """From a to b at decay d: b + (a - b) * product of d_n, and the first four d_n are 2/11, 3/12, 4/13, 5/14."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    ema = EMA(net, 0.3)
    nn.init.constant_(net.weight, 5.0)
    product = 1.0
    for d in (2 / 11, 3 / 12, 0.3, 0.3, 0.3):
        ema.update(net)
        product *= d
        assert float(ema.model.weight) == pytest.approx(5 - 4 * product, rel=1e-6)


def test_buffers_are_copied_and_not_averaged():
    net = model()
    ema = EMA(net, 0.9)
    net.train()(torch.randn(16, 3) * 3 + 1)
    assert not torch.equal(ema.model[1].running_mean, net[1].running_mean)
    ema.update(net)
    for name, buffer in net.named_buffers():
        assert torch.equal(ema.model.get_buffer(name), buffer)
    assert int(ema.model[1].num_batches_tracked) == 1


def test_the_average_is_ready_for_use():
    net = model().train()
    ema = EMA(net)
    for _ in range(2):
        assert all(not module.training for module in ema.model.modules())
        assert all(not p.requires_grad for p in ema.model.parameters())
        ema.update(net)
    assert all(module.training for module in net.modules())  # and the model is left as it was
    assert all(p.requires_grad for p in net.parameters())
    x = torch.randn(4, 3)
    assert torch.equal(ema.model(x), ema.model(x))


def test_the_model_still_learns_after_an_update():
    net = MLP(2, width=8, blocks=1)
    ema = EMA(net)
    net(torch.randn(3, 2), torch.ones(3)).sum().backward()
    before = {key: p.detach().clone() for key, p in net.named_parameters()}
    ema.update(net)
    assert all(torch.equal(before[key], p) for key, p in net.named_parameters())
    assert net.head.bias.grad is not None


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_a_decay_outside_of_its_range_is_refused(decay):
    with pytest.raises(ValueError, match=rf"EMA decay is {decay}; it must lie in \[0, 1\)"):
        EMA(model(), decay)


def test_another_model_is_refused():
    ema = EMA(nn.Linear(2, 3))
    with pytest.raises(RuntimeError, match="size"):
        ema.update(nn.Linear(2, 4))
    with pytest.raises(RuntimeError, match="same number"):
        ema.update(nn.Linear(2, 3, bias=False))


# By name


def test_averages_by_name():
    makers = parse_averages(" 0.999, power:0.10,0,power:0.05 ")
    assert list(makers) == ["ema_0.999", "ema_power_0.1", "ema_0.0", "ema_power_0.05"]
    assert [power_std(name) for name in makers] == [None, 0.1, None, 0.05]
    assert power_std("ema") is None
    net = model()
    first, second, third, fourth = (make(net) for make in makers.values())
    assert [type(first), type(second), type(third), type(fourth)] == [EMA, PowerEMA, EMA, PowerEMA]
    assert (first.decay, third.decay) == (0.999, 0.0)
    assert (second.gamma, fourth.gamma) == (gamma_of(0.1), gamma_of(0.05))
    assert parse_averages("") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast", "'fast' is no average; give decays in "),
        ("1.0", "'1.0' is no average"),
        ("0.9,,0.99", "'' is no average"),
        ("0.9,", "'' is no average"),
        ("-0.1", "'-0.1' is no average"),
        ("nan", "'nan' is no average"),
        ("0.9,power:", "'power:' is no average"),
        ("power:0.1:0.2", "'power:0.1:0.2' is no average"),
        ("std:0.1", "'std:0.1' is no average"),
        ("power:0", "the width of an average is 0; it must lie in"),
        ("power:0.5", r"the width of an average is 0\.5; it must lie in"),
        ("0.9,0.90", r"the average '0\.90' stands twice in '0\.9,0\.90'"),
        ("power:0.05,power:0.050", "the average 'power:0.050' stands twice"),
    ],
)
def test_texts_that_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_averages(text)
