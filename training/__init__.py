"""The loop, its state, checkpoints, the run folder, and the builders that turn a configuration into objects."""

from training.checkpoint import CheckpointError, Checkpoints, load_checkpoint, load_weights
from training.fitting import fewest_parts, largest_power, really_fits
from training.flops import Flops, quantity, training_flops
from training.gradient import LossFn
from training.kept_memory import kept_memory
from training.lock import locked
from training.loop import Evaluated, TrainOptions, train
from training.memory import MemoryEstimate, estimate_memory
from training.metrics import Metrics
from training.processes import ALONE, Processes, joined
from training.progress import DivergenceError
from training.run_folder import RunFolder
from training.state import TrainState

__all__ = [
    "ALONE",
    "CheckpointError",
    "Checkpoints",
    "DivergenceError",
    "Evaluated",
    "Flops",
    "LossFn",
    "MemoryEstimate",
    "Metrics",
    "Processes",
    "RunFolder",
    "TrainOptions",
    "TrainState",
    "estimate_memory",
    "fewest_parts",
    "joined",
    "kept_memory",
    "largest_power",
    "load_checkpoint",
    "load_weights",
    "locked",
    "quantity",
    "really_fits",
    "train",
    "training_flops",
]
