"""What every test gets: ``import oracles``, one thread, and a fixed global seed."""

import sys
from pathlib import Path

import pytest
import torch

HERE = str(Path(__file__).parent)
if HERE not in sys.path:  # last, so that the project's rooms come before the folders of tests of the same names
    sys.path.append(HERE)

pytest_plugins = ["command_line"]
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
