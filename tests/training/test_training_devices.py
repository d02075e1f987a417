"""Which device and precision a configuration means."""

from pathlib import Path

import pytest
import torch

from training import builders
from training.device_memory import processes_on


def test_devices():
    assert builders.resolve_device("cpu") == torch.device("cpu")
    assert builders.resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_processes_take_turns_on_the_gpus_of_their_machine(monkeypatch):
    """Each GPU is taken by as many as the count says that share its memory; one that is named is taken by all."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    for name in ("auto", "cuda"):
        taken = [builders.resolve_device(name, local) for local in range(8)]
        assert [device.index for device in taken] == [0, 1, 2, 0, 1, 2, 0, 1]
        assert [processes_on(device, name) for device in taken] == [taken.count(device) for device in taken]
    assert processes_on(torch.device("cuda:1"), "cuda:1") == processes_on(torch.device("cpu"), "auto") == 8
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    alone = builders.resolve_device("auto")
    assert (alone, processes_on(alone, "auto")) == (torch.device("cuda"), 1)


@pytest.mark.parametrize("name", ["", "gpu", "cpu:cpu", "meta", "cuda:99"])
def test_a_device_that_is_not_there(name):
    with pytest.raises(ValueError, match=rf"device '{name}' cannot be used \(.*\); choose auto, cpu or cuda") as caught:
        builders.resolve_device(name)
    assert "\n" not in str(caught.value)


def test_the_precision_is_that_of_the_hardware():
    for name in ("float32", "bfloat16"):
        assert builders.resolve_precision(name, torch.device("cpu")) == name
    info = Path("/proc/cpuinfo")
    if not info.exists():
        pytest.skip("only Linux lists what its processor can do")
    units = {"amx_tile", "avx512_bf16"} & set(info.read_text().split())
    assert builders.resolve_precision("auto", torch.device("cpu")) == ("bfloat16" if units else "float32")
    assert builders.resolve_precision("auto", torch.device("meta")) == "float32"
