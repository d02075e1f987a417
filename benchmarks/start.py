"""How long a user waits: from the command to the first step of training, to the list of flags, to a mistake's message.

Each is a process of its own; they take turns. Seconds of the clock and of the processor, median and least.

python benchmarks/start.py --rounds=5 -- --config=configs/digits.py
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUN = Path(__file__).resolve().parent.parent / "run_lib.py"
FIRST_STEP = """
import os, runpy, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *of: os._exit(0))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs the program, which ends when its optimizer has made a step."""


def seconds(*command: str) -> tuple[float, float]:
    """(Of the clock, of the processor) that a process takes."""
    before, began = os.times(), time.monotonic()
    subprocess.run(command, capture_output=True)
    took, after = time.monotonic() - began, os.times()
    return took, after[2] - before[2] + after[3] - before[3]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("arguments", nargs="*", help="of the training")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            train = [str(RUN), "--mode=train", f"--workdir={folder}/{number}", *options.arguments]
            for name, command in {
                "import of torch": ["-c", "import torch"],
                "--help": [str(RUN), "--help"],
                "a mistake": [*train, "--config.training.no_such_key=1"],
                "first step of training": ["-c", FIRST_STEP, *train],
            }.items():
                found.setdefault(name, []).append(seconds(sys.executable, *command))
    print("| | s, median | least | s of the processor, median | least |\n|---|---|---|---|---|")
    for name, each in found.items():
        columns = [f"{statistics.median(kind):.2f} | {min(kind):.2f}" for kind in zip(*each, strict=True)]
        print(f"| {name} | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
