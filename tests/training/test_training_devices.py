"""Which device and precision a configuration means."""

from pathlib import Path

import pytest
import torch

from training import builders


def test_devices():
    assert builders.resolve_device("cpu") == torch.device("cpu")
    assert builders.resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


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
