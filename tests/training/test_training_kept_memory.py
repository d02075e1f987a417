"""Memory stays with the process while training lasts, and no longer."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.kept_memory import _glibc, kept_memory

CPU = torch.device("cpu")
MIB = 2**20
pytestmark = pytest.mark.skipif(_glibc() is None, reason="needs glibc")


def resident() -> int:
    """Bytes of this process that are in memory."""
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch):
    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)


def left_by(use: int) -> int:
    """Bytes that are resident beyond those of before, after so many MiB, in pieces of 8, were filled and freed."""
    before = resident()
    pieces = [torch.ones(8 * MIB, dtype=torch.uint8) for _ in range(use // 8)]
    del pieces
    return resident() - before


def test_it_is_kept_until_the_end():
    before = resident()
    with kept_memory(CPU):
        assert left_by(256) > 200 * MIB
        assert left_by(256) < 64 * MIB  # the same memory again
    assert resident() - before < 64 * MIB


def test_it_is_given_back_after_an_error_too():
    before = resident()

    def diverge():
        with kept_memory(CPU):
            assert left_by(256) > 200 * MIB
            raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        diverge()
    assert resident() - before < 64 * MIB


def test_what_the_environment_sets_holds():
    """In a process of its own, which reads it when it begins: large pieces go back."""
    work = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_training_kept_memory import CPU, kept_memory, left_by
with kept_memory(CPU):
    print(left_by(256))
"""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    left = subprocess.run([sys.executable, "-c", work], env=environment, capture_output=True, text=True, check=True)
    assert int(left.stdout) < 64 * MIB
