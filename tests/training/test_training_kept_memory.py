"""Memory stays with the process while training lasts, and no longer.

Each case in a process of its own: what other tests left free in this one's memory would be filled first.
"""

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


def left_by(use: int) -> int:
    """Bytes that are resident beyond those of before, after so many MiB, in pieces of 8, were filled and freed."""
    before = resident()
    pieces = [torch.ones(8 * MIB, dtype=torch.uint8) for _ in range(use // 8)]
    del pieces
    return resident() - before


def kept_until_the_end() -> list[int]:
    """What is left by a first use, by a second of the same size, and after the end."""
    before = resident()
    with kept_memory(CPU):
        left = [left_by(256), left_by(256)]
    return [*left, resident() - before]


def kept_until_an_error() -> list[int]:
    before = resident()
    try:
        with kept_memory(CPU):
            left = [left_by(256), left_by(256)]
            raise RuntimeError("diverged")
    except RuntimeError:
        return [*left, resident() - before]


def in_a_process(case, **environment: str) -> list[int]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    here = Path(__file__)
    work = f"import sys; sys.path.insert(0, {str(here.parent)!r}); import {here.stem} as tests; "
    command = [sys.executable, "-c", work + f"print(*tests.{case.__name__}())"]
    root = here.parents[2]
    result = subprocess.run(command, env=inherited | environment, cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [int(count) for count in result.stdout.split()]


@pytest.mark.parametrize("case", [kept_until_the_end, kept_until_an_error])
def test_it_is_kept_until_the_end(case):
    first, again, after = in_a_process(case)
    assert first > 200 * MIB
    assert again < 64 * MIB  # the same memory again
    assert after < 64 * MIB


def test_what_the_environment_sets_holds():
    """Large pieces go back at once."""
    left = in_a_process(kept_until_the_end, MALLOC_MMAP_THRESHOLD_="1000000")
    assert max(left) < 64 * MIB
