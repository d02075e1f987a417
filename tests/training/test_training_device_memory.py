"""What a device can still give, read off systems that are made up, and what an error means."""

import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from training import device_memory
from training.device_memory import free_memory, ran_out

MIB = 2**20


def system(root, files):
    """A root with these files; 8000 MiB are available, and the process has no limit of its own."""
    files = {"proc/meminfo": f"MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:  {8000 * 1024} kB\n", **files}
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def version2(folder, limit, used, cache):
    folder = f"sys/fs/cgroup/{folder}".rstrip("/")
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{used * MIB}\n",
        f"{folder}/memory.stat": f"anon 77\nfile 5\ninactive_file {cache * MIB}\nactive_file 8\n",
    }


def version1(folder, limit, used, cache):
    folder = f"sys/fs/cgroup/memory/{folder}".rstrip("/")
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{used * MIB}\n",
        f"{folder}/memory.stat": f"inactive_file 1\ntotal_inactive_file {cache * MIB}\n",
    }


SYSTEMS = {
    "no groups": ({}, 8000),
    "version 2, the process's own": (
        {"proc/self/cgroup": "0::/a/b\n", **version2("a/b", 3000 * MIB, 1200, 200), **version2("a", "max", 1, 0)},
        2000,
    ),
    "version 2, the one above": (
        {"proc/self/cgroup": "0::/a/b\n", **version2("a/b", "max", 9, 0), **version2("a", 900 * MIB, 300, 0)},
        600,
    ),
    "version 2, as a container sees it": (
        {"proc/self/cgroup": "0::/\n", **version2("", 4000 * MIB, 1000, 500)},
        3500,
    ),
    "version 2, a path of the host": (
        {"proc/self/cgroup": "0::/host/pod7\n", **version2("", 4000 * MIB, 1000, 500)},
        3500,
    ),
    "version 1": (
        {"proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/x\n0::/\n", **version1("x", 1000 * MIB, 300, 100)},
        800,
    ),
    "version 1, no limit": ({"proc/self/cgroup": "4:memory:/\n", **version1("", 2**63 - 4096, 300, 0)}, 8000),
    "a limit that is exceeded": ({"proc/self/cgroup": "0::/\n", **version2("", 100 * MIB, 130, 10)}, 0),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_least_of_the_limits_counts(name, tmp_path, monkeypatch):
    files, expected = SYSTEMS[name]
    system(tmp_path, files)
    monkeypatch.setattr(device_memory, "ROOT", tmp_path)
    assert free_memory(torch.device("cpu")) == expected * MIB


def test_the_limit_of_the_process_itself_counts(tmp_path, monkeypatch):
    system(tmp_path, {"proc/self/status": f"Name: x\nVmPeak: 7 kB\nVmSize: {500 * 1024} kB\n"})
    monkeypatch.setattr(device_memory, "ROOT", tmp_path)
    monkeypatch.setattr(resource, "getrlimit", {resource.RLIMIT_AS: (1300 * MIB, -1)}.__getitem__)
    assert free_memory(torch.device("cpu")) == (800 - 256) * MIB


def test_a_system_that_does_not_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(device_memory, "ROOT", tmp_path)
    assert free_memory(torch.device("cpu")) is None


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="needs /proc")
def test_this_machine_has_memory():
    total = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines())
    assert 0 < free_memory(torch.device("cpu")) < 1024 * total


def raised(fn):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        fn()
    return caught.value


def test_errors_of_memory_and_others():
    assert ran_out(raised(lambda: torch.empty(2**60)))
    assert ran_out(raised(lambda: np.empty(2**50)))
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert ran_out(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not ran_out(raised(lambda: torch.ones(2) @ torch.ones(3)))
    assert not ran_out(OSError("out of memory"))
    assert not ran_out(RuntimeError("the checkpoint cannot be written"))
