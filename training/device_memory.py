"""Memory that a device can still give, and whether an error says that it could not."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path("/")
RESERVED = 256 * 2**20
"""Addresses that threads and allocators reserve and do not use, which a limit of the address space counts too."""
_RAN_OUT = re.compile(
    "out of memory|not enough memory|can't allocate memory|bad_alloc|ALLOC_FAILED"
    "|could not create a (primitive|memory)"  # oneDNN's
)


SPREAD = ("auto", "cuda")
"""Names of devices of which the processes of a machine take the next GPU each."""


def processes_on(device: torch.device, name: str) -> int:
    """How many of those that torchrun has started on this machine use a device, this one among them.

    Args:
        device: that of this process.
        name: what was asked for.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if device.type == "cuda" and name in SPREAD:
        return max(len(range(device.index or 0, processes, torch.cuda.device_count())), 1)
    return processes


def ran_out(error: BaseException) -> bool:
    """Whether an error means that memory ran out; on a CPU, PyTorch says so by the text of a RuntimeError."""
    told = isinstance(error, RuntimeError) and _RAN_OUT.search(str(error)) is not None
    return told or isinstance(error, MemoryError | torch.OutOfMemoryError)


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process can still allocate on a device; None where the system does not tell.

    Of a CPU, the least of what the machine has available, its control groups, and the process's own limit allow.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return max(min(_allowed(ROOT)), 0) if device.type == "cpu" and (ROOT / "proc/meminfo").is_file() else None


def _allowed(root: Path) -> Iterator[int]:
    """What each of the limits of this process still leaves, under a root of a Linux system."""
    yield 1024 * _number(root / "proc/meminfo", "MemAvailable:")
    yield from _control_groups(root)
    yield from _address_space(root)


def _control_groups(root: Path) -> Iterator[int]:
    """By version 2 (a line "0::/PATH") or 1 ("N:memory:/PATH"), for the group and all above it."""
    base = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, kinds, path = line.split(":", 2)
        if kinds == "":
            top, limit, used, cache = base, "memory.max", "memory.current", "inactive_file"
        elif "memory" in kinds.split(","):
            top, limit, used = base / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top) and (folder / used).is_file():
                most = "".join(_lines(folder / limit))
                if most.isdecimal():  # else "max"
                    held = _number(folder / used) - _number(folder / "memory.stat", cache)  # files are dropped at need
                    yield int(most) - held


def _address_space(root: Path) -> Iterator[int]:
    import resource  # not on Windows

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        yield limit - 1024 * _number(root / "proc/self/status", "VmSize:") - RESERVED


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def _number(path: Path, name: str = "") -> int:
    """The number after a name that begins a line of a file; 0 where there is none."""
    found = (line.removeprefix(name).split() for line in _lines(path) if line.startswith(name))
    return next((int(words[0]) for words in found if words), 0)
