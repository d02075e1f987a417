"""What this machine reaches at best: matrix products and convolutions in each precision, and copying memory.

    python benchmarks/machine.py [--device cuda] [--threads 1] [--precisions float32,bfloat16]

The peak of a precision is the largest of all shapes, the fastest of several tries, with PyTorch's own settings; on a
GPU float32 convolutions are then TF32. Shares of the peak in the other tables are shares of this number.
"""

import argparse
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from race import CLOCK_HELP, begin, settle, timed

from models.fused import norm_silu_cpp

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SQUARES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
"""Sides of the matrices."""
IMAGES = {"cpu": 16, "cuda": 512}
LEVELS = ((128, 32), (256, 16))
"""(channels, side) of the images, as in DDPM's network."""


def describe(device: torch.device) -> str:
    """What the figures were measured on, in a line."""
    threads = torch.get_num_threads()
    where = f"{cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        where = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    kernels = "" if device.type == "cuda" or norm_silu_cpp.available() else ", without our C++ kernel"
    return f"{where}, torch {torch.__version__}, Python {platform.python_version()}{kernels}"


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def kernels(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, float, Callable[[], Tensor]]]:
    """(name, operations, the product or convolution)."""
    for n in SQUARES[device.type]:
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        yield f"matrix product {n} x {n} x {n}", 2.0 * n**3, lambda a=a, b=b: a @ b
    for channels, side in LEVELS:
        count = IMAGES[device.type]
        x = torch.randn(count, channels, side, side, device=device, dtype=dtype)
        w = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
        for layout in (torch.contiguous_format, torch.channels_last):
            flop = 2.0 * 9 * channels**2 * count * side**2
            inputs = (x.to(memory_format=layout), w.to(memory_format=layout))
            name = f"convolution 3 x 3 of {tuple(x.shape)}, {str(layout).removeprefix('torch.')}"
            yield name, flop, lambda inputs=inputs: functional.conv2d(*inputs, padding=1)


@torch.no_grad()
def peak(device: torch.device, precision: str, clock: str = "wall", tries: int = 5) -> dict[str, float]:
    """Kernel -> operations per second, the best of several tries."""
    found = {}
    for name, flop, run in kernels(device, PRECISIONS[precision]):
        run()
        calls = 10 if device.type == "cuda" else 1
        found[name] = flop / min(timed(run, calls, clock, device) for _ in range(tries))
    return found


def peaks(device: torch.device, precisions: set[str], clock: str = "wall") -> dict[str, float]:
    """Precision -> the largest of ``peak``."""
    return {precision: max(peak(device, precision, clock).values()) for precision in sorted(precisions)}


def copying(device: torch.device, clock: str = "wall") -> float:
    """Bytes per second, read and written, of a copy that no cache holds."""
    x = torch.zeros(2**28 if device.type == "cuda" else 2**26, device=device)  # 1 GiB, 256 MiB
    y = torch.zeros_like(x)
    settle(device)
    return 2 * 4 * x.numel() / min(timed(lambda: y.copy_(x), 3, clock, device) for _ in range(5))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help=CLOCK_HELP)
    parser.add_argument("--precisions", default="float32,bfloat16")
    options = parser.parse_args()
    device = begin(options)
    print(f"{describe(device)}\n\n| | {' | '.join(options.precisions.split(','))} |")
    columns = {precision: peak(device, precision, options.clock) for precision in options.precisions.split(",")}
    print(f"|---|{'---|' * len(columns)}")
    for name in next(iter(columns.values())):
        print(f"| {name} | {' | '.join(f'{column[name] / 1e9:.0f} GFLOP/s' for column in columns.values())} |")
    print(f"\ncopying memory: {copying(device, options.clock) / 1e9:.1f} GB/s, read and written")


if __name__ == "__main__":
    main()
