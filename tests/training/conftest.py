"""A small training run in a folder, which any number of fresh states can take up."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from data import Quantizer, TensorDataset
from models import EMA, ScoreModel, UNet
from sde_lib import VPSDE, dsm_loss, sample_time
from training import Checkpoints, Metrics, TrainOptions, TrainState, load_checkpoint, train


def pictures(count=13):
    """Unsymmetric images (so that a flip shows) of 17 levels, 8 x 8."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randint(17, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return TensorDataset("pictures", x, quantizer=Quantizer(levels=17))


class SmallNet(torch.nn.Module):
    """Convolution, dropout, convolution: quick, and with all that a network has for training to keep in step."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(1, 6, 3, padding=1)
        self.time = torch.nn.Linear(1, 6)
        self.dropout = torch.nn.Dropout(0.3)
        self.second = torch.nn.Conv2d(6, 1, 3, padding=1)

    def forward(self, x, c_noise, y=None):
        h = self.first(x) + self.time(c_noise.unsqueeze(1) / 1000).unflatten(1, (6, 1, 1))
        return self.second(self.dropout(torch.tanh(h)))


def network_state(init=0, make_net=SmallNet):
    """A network, a fresh Adam, and an average; ``init`` seeds the weights."""
    torch.manual_seed(init)
    model = ScoreModel(make_net().to(memory_format=torch.channels_last), VPSDE())  # as real ones lie in memory
    for parameter in model.parameters():  # no layer that starts at zero: every part takes part
        torch.nn.init.normal_(parameter, std=0.1)
    return TrainState(model, torch.optim.AdamW(model.parameters(), fused=True), EMA(model, 0.9))


def unet_state(init=0):
    """The same for a real U-Net."""

    def make_net():
        return UNet(1, 8, channels=8, channel_mult=(1,), res_blocks=1, attention_resolutions=(8,), dropout=0.3)

    return network_state(init, make_net)


def network_loss(model, x0, y, draws):
    t = draws.rows("time", lambda generator: sample_time(model.sde, draws.batch, generator=generator))
    return dsm_loss(model.sde, model.eps, x0, t=t, eps=draws.normal_like("noise", x0))


@dataclass
class Run:
    """What ``train`` needs, with defaults; ``options`` are those of ``TrainOptions``."""

    folder: Path
    dataset: Any = field(default_factory=pictures)
    loss: Any = network_loss
    make_state: Any = network_state
    keep: int = 100
    options: dict = field(default_factory=dict)

    @property
    def checkpoints(self):
        return Checkpoints(self.folder / "checkpoints", self.keep)

    @property
    def snapshots(self):
        return Checkpoints(self.folder / "ema_snapshots", 100)

    @property
    def metrics(self):
        """The lines of the metrics file."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def train(self, start=None, *, state=None, on_sample=None, on_heldout=None, flops=None, **changes):
        """Train a fresh state, from a checkpoint if one is given; returns (state, reason)."""
        state = state or self.make_state()
        if start is not None:
            state.load(start)
        self.folder.mkdir(parents=True, exist_ok=True)
        options = TrainOptions(**{"steps": 8, "batch_size": 6, **self.options, **changes})
        with Metrics(self.folder, state.step) as metrics:
            told = {"snapshots": self.snapshots, "on_sample": on_sample, "on_heldout": on_heldout, "flops": flops}
            reason = train(state, self.loss, self.dataset, options, self.checkpoints, metrics, **told)
        return state, reason

    def tensors(self, step=None):
        """All tensors and values of a checkpoint, by default of the newest."""
        path = self.checkpoints.latest() if step is None else self.checkpoints.folder / f"step_{step:08d}"
        return load_checkpoint(path)


@pytest.fixture
def new_run(tmp_path):
    """(name, settings of ``Run``) -> Run in its own folder."""
    return lambda name="run", **settings: Run(tmp_path / name, **settings)


@pytest.fixture(scope="session")
def make_run():
    return Run


@pytest.fixture(scope="session")
def fresh_state():
    return network_state


@pytest.fixture(scope="session")
def fresh_unet_state():
    return unet_state


def assert_same_bits(one, other):
    """Two results of ``load_checkpoint`` agree in every bit."""
    (tensors, values), (others, other_values) = one, other
    assert values == other_values
    assert {name: set(group) for name, group in tensors.items()} == {name: set(g) for name, g in others.items()}
    assert set(tensors) == {"model", "ema", "optimizer"}
    different = [
        f"{name}: {key}"
        for name, group in tensors.items()
        for key, value in group.items()
        if value.dtype != others[name][key].dtype or not torch.equal(value, others[name][key])
    ]
    assert not different


@pytest.fixture
def same_bits():
    return assert_same_bits


@pytest.fixture
def bytes_of():
    """folder -> {relative path: content} of all its files: what must not change when something fails."""
    return lambda folder: {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


class Scalar(torch.nn.Module):
    """Two numbers w: the smallest model, whose training can be written in closed form."""

    def __init__(self, values=(1.0, -2.0)):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(values))


def scalar_state(values=(1.0, -2.0), optimizer=torch.optim.SGD, decay=0.9):
    model = Scalar(values)
    return TrainState(model, optimizer(model.parameters(), lr=1.0), EMA(model, decay))


@pytest.fixture
def new_scalar_state():
    return scalar_state


@pytest.fixture
def points():
    """200 numbers (200, 1) without levels."""
    return TensorDataset("points", torch.arange(200.0).unsqueeze(1))
