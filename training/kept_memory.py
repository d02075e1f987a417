"""Memory that a training step frees stays with the process for the next one."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# glibc's M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_MMAP_MAX, as malloc.h numbers them: man 3 mallopt
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
HIGHEST_MMAP_THRESHOLD = 32 * 2**20
"""Bytes: how far glibc lets its threshold rise by itself, which it no longer does once one of them was set."""
DEFAULT_MMAP_MAX = 65536


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """On a CPU, serve all sizes from memory that is given back to the system at the end only.

    Images of some megabytes come from the system otherwise, and go back to it: thousands of fresh pages in each step,
    zeroed one by one. A GPU's memory PyTorch keeps itself. Without glibc nothing changes, nor where its own environment
    variables set how it allocates.
    """
    libc = _glibc() if device.type == "cpu" and not _set_by_user() else None
    if libc is None:
        yield
        return
    libc.mallopt(MMAP_MAX, 0)
    libc.mallopt(TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        libc.mallopt(MMAP_MAX, DEFAULT_MMAP_MAX)
        libc.mallopt(MMAP_THRESHOLD, HIGHEST_MMAP_THRESHOLD)
        libc.mallopt(TRIM_THRESHOLD, 2 * HIGHEST_MMAP_THRESHOLD)
        libc.malloc_trim(0)


def _set_by_user() -> bool:
    return "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "malloc_trim") else None
