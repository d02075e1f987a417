"""The estimate of memory against the largest resident set of a real training step (Linux, CPU).

python benchmarks/memory.py
"""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch

from models import EMA, MODELS, ScoreModel, recompute_blocks
from sde_lib import VPSDE
from training import TrainState, estimate_memory, kept_memory

CASES = {
    "unet": ((3, 32, 32), 64, {"channels": 64, "res_blocks": 2, "dropout": 0.1}),
    "dit": ((3, 32, 32), 64, {"channels": 192, "depth": 8, "heads": 3, "dropout": 0.1}),
}
"""Network -> shape of a sample, batch size, settings."""


def resident(name: str) -> int:
    """Bytes of the resident set (VmRSS), or its largest so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def step(state: TrainState, shape: tuple[int, ...], batch_size: int) -> None:
    """One optimizer step on noise."""
    x, t = torch.randn(batch_size, *shape), torch.linspace(0.1, 0.9, batch_size)
    state.model.eps(x, t).square().mean().backward()
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.ema.update(state.model)


def measure(name: str, checkpointing: bool) -> None:
    """Print the estimate, and what two steps take beyond the program: the second has the optimizer's moments."""
    shape, batch_size, options = CASES[name]
    small = ScoreModel(MODELS["mlp"](2), VPSDE())
    step(TrainState(small, torch.optim.AdamW(small.parameters(), fused=True), EMA(small)), (2,), 2)
    estimate_memory(small, (2,), 2)  # all libraries are there now
    before = resident("VmRSS:")
    model = ScoreModel(MODELS[name](3, 32, **options).to(memory_format=torch.channels_last), VPSDE())
    recompute_blocks(model.net, checkpointing)
    state = TrainState(model, torch.optim.AdamW(model.parameters(), fused=True), EMA(model))
    with kept_memory(torch.device("cpu")):  # as in training
        for _ in range(2):
            step(state, shape, batch_size)
    taken = (resident("VmHWM:") - before) / 2**20
    estimate = estimate_memory(model, shape, batch_size).total / 2**20
    print(
        f"| {name} | {batch_size} | {checkpointing} | {estimate:.0f} | {taken:.0f} | {estimate / taken:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    if len(sys.argv) == 1:
        for name in CASES:
            for checkpointing in ("", "1"):  # each in a process of its own: what one has freed, another would take
                subprocess.run([sys.executable, __file__, name, checkpointing], check=True)
    else:
        measure(sys.argv[1], bool(sys.argv[2]))
