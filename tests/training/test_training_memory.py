"""The estimate of memory against what PyTorch's own allocator hands out in a real step."""

import json

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from models import EMA, MODELS, ScoreModel, recompute_blocks
from sde_lib import VPSDE
from training import MemoryEstimate, TrainState, estimate_memory
from training.memory import WORK

UNETS = {"image_size": 8, "channels": 32, "channel_mult": (1, 2), "res_blocks": 1, "attention_resolutions": (4,)}
NETWORKS = {
    "unet": ((3, 8, 8), UNETS),
    "unet with classes": ((1, 8, 8), {**UNETS, "in_channels": 1, "num_classes": 10}),
    "ncsnpp": ((3, 8, 8), {**UNETS, "progressive_input": "residual"}),
    "adm": ((3, 8, 8), UNETS),
    "dit": ((3, 8, 8), {"image_size": 8, "channels": 24, "depth": 3, "heads": 2}),
    "mlp": ((2,), {"dim": 2, "width": 32, "blocks": 2}),
}


def build(name):
    shape, options = NETWORKS[name]
    torch.manual_seed(0)
    net = MODELS[name.split()[0]](**{"dropout": 0.1, **options}).to(memory_format=torch.channels_last)
    return shape, ScoreModel(net, VPSDE(), "edm", "log_snr")


every_network = pytest.mark.parametrize("name", NETWORKS)
two_networks = pytest.mark.parametrize("name", ["unet with classes", "dit"])


def real_pass(model, shape, batch_size, work):
    x = torch.randn(batch_size, *shape, requires_grad=work == "likelihood")
    with torch.set_grad_enabled(work != "sampling"):
        out = model.eps(x, torch.linspace(0.1, 0.9, batch_size))
    if work != "sampling":
        out.square().mean().backward()


def most_allocated(model, shape, batch_size, work, path):
    """The largest sum of bytes that PyTorch's allocator had handed out in a pass, beyond what it had before."""
    model.train(work == "training").requires_grad_(work == "training")
    real_pass(model, shape, batch_size, work)  # what is made once only is there then
    model.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        real_pass(model, shape, batch_size, work)
    profiler.export_chrome_trace(str(path))
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    now, most = 0, 0
    for event in sorted(events, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        most = max(most, now)
    return most


@every_network
@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_most_that_lives_is_what_the_allocator_hands_out(name, work, checkpointing, tmp_path):
    if checkpointing and work != "training":
        pytest.skip("nothing is computed again")
    shape, model = build(name)
    recompute_blocks(model.net, checkpointing)
    gradients = sum(4 * p.numel() for p in model.parameters()) if work == "training" else 0
    estimate = estimate_memory(model, shape, 64, work=work).activations + gradients
    real = most_allocated(model, shape, 64, work, tmp_path / "trace.json")
    # 5 %: the batch and its noise levels, small in real networks, and what a kernel takes for its own use. In ncsnpp
    # convolutions copy a quarter into another layout, where the filters of its resampling stand alone at the top
    lowest = 0.72 if name == "ncsnpp" and (checkpointing or work == "sampling") else 0.95
    assert lowest * real < estimate < 1.01 * real


@two_networks
def test_the_estimate_is_that_of_the_precision(name):
    shape, model = build(name)
    halves = estimate_memory(model, shape, 64, precision="bfloat16")
    whole = estimate_memory(model, shape, 64)
    model.precision = "bfloat16"
    assert estimate_memory(model, shape, 64) == halves
    assert (whole.precision, halves.precision) == ("float32", "bfloat16")
    assert halves.resident == whole.resident
    assert 0.45 * whole.activations < halves.activations < 0.75 * whole.activations


@two_networks
def test_checkpointing_can_be_supposed(name):
    shape, model = build(name)
    supposed = estimate_memory(model, shape, 64, checkpointing=True)
    assert supposed.activations < estimate_memory(model, shape, 64).activations
    recompute_blocks(model.net)
    assert estimate_memory(model, shape, 64) == supposed
    assert estimate_memory(model, shape, 64, checkpointing=False).activations > supposed.activations


@two_networks
def test_a_passing_batch_needs_memory_in_proportion(name):
    shape, model = build(name)
    for work in ("sampling", "likelihood"):
        one, four = (estimate_memory(model, shape, size, work=work) for size in (16, 64))
        assert four.activations == pytest.approx(4 * one.activations, rel=0.02)
        assert four.resident == one.resident == sum(4 * p.numel() for p in model.parameters())


@two_networks
@pytest.mark.parametrize("averages", [1, 3])
def test_what_stays_is_weights_gradient_two_moments_and_averages(name, averages):
    shape, model = build(name)
    state = TrainState(model, torch.optim.AdamW(model.parameters(), fused=True), EMA(model))
    real_pass(model, shape, 2, "training")
    state.optimizer.step()
    moments = [
        value for entry in state.optimizer.state_dict()["state"].values() for k, value in entry.items() if k != "step"
    ]
    weights = sum(p.numel() for p in model.parameters())
    gradients = sum(p.numel() for p in model.parameters() if p.grad is not None)
    expected = 4 * (weights * (1 + averages) + gradients + sum(moment.numel() for moment in moments))
    alone, shared = (estimate_memory(model, shape, 1, averages=averages, shares=shares) for shares in (1, 2))
    assert alone.resident == expected
    assert (shared.resident, shared.activations) == (expected // 2, alone.activations)


@two_networks
def test_the_model_and_the_random_numbers_are_left_as_they_were(name):
    shape, model = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    for training in (False, True):
        model.train(training)
        estimate_memory(model, shape, 4, checkpointing=True, precision="bfloat16")
        assert model.training is training
    assert model.precision == "float32"
    assert all(type(p) is torch.nn.Parameter and p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_work_and_precision():
    shape, model = build("mlp")
    with pytest.raises(ValueError, match="unknown work 'training_'"):
        estimate_memory(model, shape, 1, work="training_")
    with pytest.raises(ValueError, match="unknown precision 'float16'"):
        estimate_memory(model, shape, 1, precision="float16")


def test_the_text():
    estimate = MemoryEstimate(5 * 2**20, 37 * 2**20, 8, "float32", 1)
    assert str(estimate) == (
        "42 MiB: 5 MiB for weights, gradients, optimizer and average, 37 MiB for the activations of 8 samples in "
        "float32"
    )
    large = estimate._replace(activations=30 * 2**30, samples=1, averages=2)
    assert str(large) == (
        "30.0 GiB: 5 MiB for weights, gradients, optimizer and averages, 30.0 GiB for the activations of one sample in "
        "float32"
    )
    assert str(estimate._replace(averages=None)).startswith("42 MiB: 5 MiB for weights, 37 MiB for")
