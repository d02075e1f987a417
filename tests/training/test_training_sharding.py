"""Weights in shares: the gradients, outputs and checkpoints of a network that is whole, in a part of its memory."""

import os
from pathlib import Path

import pytest
import shares
import torch

from training import Checkpoints, load_checkpoint
from training.sharding import is_sharded, like, local, shard, whole


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with the checkpoint of one process, after a step."""
    folder = tmp_path_factory.mktemp("shares")
    state = shares.new_state("unet")
    shares.step(state)
    state.save(Checkpoints(folder / "given"))
    shares.step(state)
    state.save(Checkpoints(folder / "next1"))
    return folder


@pytest.fixture(scope="module", params=[2, 3])
def found(request, launcher, given):
    """What each of two, and of three processes finds."""
    count = request.param
    logs = [given / f"{count}-{rank}.log" for rank in range(count)]
    code = shares.CODE.format(tests=str(Path(shares.__file__).parent), folder=str(given))
    pids = launcher.start_together(logs, before=code)
    assert [launcher.wait(pid) for pid in pids] == [0] * count, [log.read_text() for log in logs]
    return [torch.load(given / f"found{count}-{rank}.pt", weights_only=True) for rank in range(count)]


def test_the_gradient_of_shares_is_that_of_the_whole_batch(found):
    for name in shares.NETWORKS[len(found)]:
        model = shares.fresh_model(name)
        shares.loss(model, *shares.batch(name)).backward()
        for rank, process in enumerate(found):
            gradients = process["gradients"][name]
            assert gradients.keys() == dict(model.named_parameters()).keys()
            for key, parameter in model.named_parameters():
                error = float((gradients[key] - parameter.grad).abs().max())
                assert error <= 1e-5 * float(parameter.grad.abs().max()) + 1e-9, (name, key, rank)


def test_the_noise_level_is_told_in_full_though_weights_are_rounded(found):
    """bfloat16 keeps 8 bits: of c_noise = 999 t it would leave even numbers, and the network hears of each."""
    x, t = shares.batch("unet")
    with torch.no_grad():
        model = shares.fresh_model("unet", "bfloat16")
        plain, exact = model.eps(x, t), shares.fresh_model("unet").eps(x, t)
        rounded = model.eps(x, (999 * t).bfloat16().float() / 999)
    error = (found[0]["outputs"] - exact).norm() / exact.norm()
    assert error < 1.5 * (plain - exact).norm() / exact.norm()  # norms keep float32 gains under autocast alone
    assert error < 0.3 * (rounded - exact).norm() / exact.norm()


def test_a_checkpoint_is_taken_up_and_given_back_bit_for_bit(found, given, same_bits):
    before = load_checkpoint(given / "given" / "step_00000001")
    same_bits(load_checkpoint(given / f"again{len(found)}" / "step_00000001"), before)
    for process in found:
        for key, value in before[0]["ema"].items():
            assert torch.equal(process["averaged"][key], value)


def test_the_step_after_it_is_that_of_one_process(found, given):
    (tensors, values), (others, other_values) = (
        load_checkpoint(given / f"next{count}" / "step_00000002") for count in (1, len(found))
    )
    assert values == other_values
    for name, group in tensors.items():
        for key, value in group.items():
            torch.testing.assert_close(others[name][key], value, rtol=1e-4, atol=1e-6)


def test_each_process_keeps_its_share_of_weights_average_and_moments(found):
    """Of each weight some rows, as even as whole rows allow, so a half for two; a moment has a count beside it."""
    weights = list(shares.fresh_model("unet").parameters())
    for rank, process in enumerate(found):
        rows = [(*weight.chunk(len(found)), *[weight[:0]] * len(found))[rank] for weight in weights]
        held = sum(part.nbytes for part in rows)
        expected = {"model": held, "ema": held, "optimizer": 2 * held + 4 * len(rows)}
        assert {name: here for name, (here, _) in process["bytes"].items()} == expected
        assert len(found) == 3 or held < 0.502 * sum(weight.nbytes for weight in weights)


def test_one_share_that_is_not_finite_is_seen_by_all(found):
    assert [process["finite"] for process in found] == [(True, False)] * len(found)


def test_what_is_whole_stays_as_it_is():
    x = torch.randn(3, 4).t()
    assert whole(x) is local(x) is x
    copy = like(x, x + 1)
    assert copy.stride() == x.stride()
    assert torch.equal(copy, x + 1)
    assert not is_sharded(shares.fresh_model("mlp"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_in_bfloat16(monkeypatch):
    """One process alone, whose shares are everything: steps and copies are those of a plain model, within bfloat16."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531"}.items():
        monkeypatch.setitem(os.environ, name, value)
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl")
    try:
        x, t = (value.cuda() for value in shares.batch("unet"))
        plain = shares.fresh_model("unet", "bfloat16").cuda()
        model = shard(shares.fresh_model("unet", "bfloat16"), 1, torch.device("cuda"))
        assert {value.device.type for value in (*model.parameters(), *model.buffers())} == {"cuda"}
        for each in (plain, model):
            shares.loss(each, x, t).backward()
        for own, other in zip(model.parameters(), plain.parameters(), strict=True):
            assert whole(own.grad).dtype == torch.float32
            torch.testing.assert_close(whole(own.grad), other.grad, rtol=0, atol=0.05 * float(other.grad.abs().max()))
    finally:
        torch.distributed.destroy_process_group()
