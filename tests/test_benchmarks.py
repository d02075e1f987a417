"""The races of benchmarks/: their contestants are one network and the steps that they claim to be, counted right."""

import argparse
import itertools
import sys
from contextlib import nullcontext
from pathlib import Path

import diffusers
import pytest
import torch
from torch import nn

from configs import cifar10
from sde_lib import chain_alphas_cumprod

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

from around_products import Recorded, known
from contestants import configure
from peers import CHAIN, Diffusers, Ours
from race import Way, alternate, count_flop
from rounded_products import RoundedProducts

CPU = torch.device("cpu")
TINY = ["model.channels=8", "model.channel_mult=(1,2)", "model.res_blocks=1", "model.dropout=0.0"]


@pytest.fixture
def config():
    return configure(cifar10.get_config(), TINY, batch=4)


@pytest.fixture
def x0():
    return torch.rand(4, 3, 32, 32) * 2 - 1


def stirred(peer):
    """The contestant after an update of all weights, so that nothing in the network is silent."""
    with torch.no_grad():
        for parameter in peer.net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    peer.ema.shadow_params = [parameter.clone().detach() for parameter in peer.net.parameters()]
    return peer


def test_both_begin_with_the_same_weights(config, x0):
    ours, theirs = Ours(config, "float32", CPU), Diffusers(config, "float32", CPU)
    assert ours.parameters() == theirs.parameters()
    nets = ours.state.model.net, theirs.net
    with torch.no_grad():
        norms = [sorted(float(p.norm()) for p in net.parameters() if p.shape[2:] == (3, 3) and p.any()) for net in nets]
    assert len(norms[0]) > 5
    assert norms[0] == pytest.approx(norms[1])


def test_what_diffusers_trains_is_scored_as_what_it_is(config):
    peer = stirred(Diffusers(config, "float32", CPU))
    model = peer.averaged()
    index = torch.tensor([0, 10, 500, 999])
    kept = chain_alphas_cumprod(*(CHAIN[key] for key in ("chain", "steps", "first", "last")))
    t = model.sde.time_from_log_snr(kept.log() - torch.log1p(-kept))[index].float()
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        mine, theirs = model.eps(x, t), peer.net.eval()(x, index).sample
    assert theirs.std() > 0.1
    # float32 times: the last bit of t moves the step that the network is told by 1e-4
    torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-4)


def test_the_step_of_diffusers_is_that_of_its_script(config, x0):
    peer = stirred(Diffusers(config, "float32", CPU))
    torch.manual_seed(1)
    noise, index = torch.randn(x0.shape), torch.randint(0, 1000, (4,))
    kept = diffusers.DDPMScheduler().alphas_cumprod[index].view(-1, 1, 1, 1)
    with torch.no_grad():
        out = peer.net(kept.sqrt() * x0 + (1 - kept).sqrt() * noise, index).sample
    torch.manual_seed(1)
    assert float(peer.step(x0)) == pytest.approx(float((out - noise).square().mean()), rel=1e-5)


def test_the_rates_of_diffusers_are_those_of_its_script(config):
    peer = Diffusers(config, "float32", CPU)
    peer.plan(2000)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = diffusers.optimization.get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=2000)
    for peer.done in range(2001):
        assert peer._schedule() == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("kind", [Ours, Diffusers])
def test_a_contestant_that_was_saved_goes_on_to_the_bit(kind, config, x0, tmp_path):
    def step(peer, number):
        torch.manual_seed(number)
        return float(peer.step(x0))

    whole, first, second = (kind(config, "float32", CPU) for _ in range(3))
    losses = [step(whole, number) for number in range(4)]
    assert [step(first, number) for number in range(2)] == losses[:2]
    first.save(tmp_path)
    second.load(tmp_path, CPU)
    assert [step(second, number) for number in (2, 3)] == losses[2:]


def test_operations_are_counted_by_their_formulas():
    conv, linear = nn.Conv2d(4, 6, 3, padding=1), nn.Linear(5, 7)
    x, z = torch.randn(2, 4, 8, 8, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    once = 2 * 9 * 4 * 6 * 2 * 64
    assert count_flop(lambda: conv(x)) == once
    assert count_flop(lambda: conv(x).sum().backward()) == 3 * once
    assert count_flop(lambda: torch.autograd.grad(linear(z).sum(), z)) == 2 * (2 * 3 * 5 * 7)
    q = torch.randn(1, 1, 10, 4)
    assert count_flop(lambda: nn.functional.scaled_dot_product_attention(q, q, q)) == 2 * (2 * 10 * 10 * 4)


def test_ways_take_turns_there_and_back():
    seen = []
    ways = [Way(name, lambda name=name: seen.append(name), 1, 1.0) for name in "abc"]
    options = argparse.Namespace(device="cpu", rounds=3, seconds=1e9, clock="wall")
    alternate(ways, options)
    warm_up_and_rounds = "abcabccbaabc"
    assert [name for name, _ in itertools.groupby(seen)] == [name for name, _ in itertools.groupby(warm_up_and_rounds)]
    assert [len(way.seconds) for way in ways] == [3, 3, 3]


def test_a_way_that_has_used_its_seconds_sits_out():
    ways = [Way(name, lambda: None, 1, 1.0) for name in "ab"]
    alternate(ways, argparse.Namespace(device="cpu", rounds=5, seconds=0.0, clock="wall"))
    assert [len(way.seconds) for way in ways] == [1, 1]


def test_rounded_products_are_those_of_bfloat16():
    """Sums of 64 products of numbers with few digits are exact in float32: nothing but the rounding is left."""
    few = torch.randint(-15, 16, (2, 64, 64)).bfloat16()
    exact = few[0].double() @ few[1].double()
    with RoundedProducts() as products:
        found = few[0] @ few[1]
    assert products.count == 1
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())


def test_rounded_products_have_the_gradients_of_bfloat16():
    """PyTorch's own differ by the order of their sums, and within attention: by a few units of the last of 8 bits."""

    def work(x, kernel):
        y = nn.functional.conv2d(x, kernel, padding=1)
        tokens = y.flatten(2).transpose(1, 2)[:, None]
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

    x, kernel, weight = torch.randn(2, 8, 6, 6), torch.randn(8, 8, 3, 3) / 8, torch.randn(2, 1, 36, 8)
    found = []
    for context in (nullcontext(), RoundedProducts()):
        leaves = [value.bfloat16().requires_grad_() for value in (x, kernel)]
        with context:
            y = work(*leaves)
            found.append([y, *torch.autograd.grad((y * weight.bfloat16()).sum(), leaves)])
    for own, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.bfloat16
        assert float((rounded - own).detach().float().norm() / own.detach().float().norm()) < 2**-7


def test_known_products_are_those_of_before_and_all_else_is_computed():
    kernel = torch.randn(8, 8, 3, 3, requires_grad=True)

    def work(x):
        y = nn.functional.conv2d(x, kernel, padding=1)
        loss = (nn.functional.silu(y) * x).sum()
        return y.detach(), loss.detach(), *torch.autograd.grad(loss, kernel)

    x, other = torch.randn(2, 2, 8, 6, 6)
    with Recorded() as recorded:
        plain = work(x)
    with known(recorded.results):
        y, loss, gradient = work(other)
    assert torch.equal(y, plain[0])  # of x, not of the other
    assert torch.equal(gradient, plain[2])
    torch.testing.assert_close(loss, (nn.functional.silu(plain[0]) * other).sum())
    for own, true in zip(work(x), plain, strict=True):
        torch.testing.assert_close(own, true)


def test_a_step_beside_its_products_runs_for_all(config, x0):
    for peer in (Ours(config, "bfloat16", CPU), Diffusers(config, "bfloat16", CPU)):
        with Recorded() as recorded:
            peer.step(x0)
        with known(recorded.results):
            assert peer.step(x0).isfinite()
        with known({}), pytest.raises(KeyError):  # a product is asked for, and not computed
            peer.step(x0)
