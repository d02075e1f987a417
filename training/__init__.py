"""The loop, its state, checkpoints, the run folder, and the builders that turn a configuration into objects."""

from training.checkpoint import CheckpointError, Checkpoints, load_checkpoint, load_weights
from training.flops import Flops, quantity, training_flops
from training.gradient import LossFn
from training.lock import locked
from training.loop import TrainOptions, train
from training.memory import estimate_memory
from training.metrics import Metrics
from training.processes import Processes, joined
from training.progress import DivergenceError
from training.run_folder import RunFolder
from training.state import TrainState

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "DivergenceError",
    "Flops",
    "LossFn",
    "Metrics",
    "Processes",
    "RunFolder",
    "TrainOptions",
    "TrainState",
    "estimate_memory",
    "joined",
    "load_checkpoint",
    "load_weights",
    "locked",
    "quantity",
    "train",
    "training_flops",
]
