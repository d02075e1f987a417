"""Sources of x_0, and the only place that knows pixel levels, ranges, crops and labels."""

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

from data.celeba import CelebA
from data.cifar10 import CIFAR10
from data.dataset import Batch, Dataset, TensorDataset
from data.dequantization import Dequantized, Dequantizer, TruncatedNormalDequantizer, UniformDequantizer
from data.digits import Digits
from data.folder import ImageFolder
from data.loader import batch_indices, eval_batches, prepare, train_batches
from data.none import NoData
from data.quantizer import Quantizer
from data.randomness import derive_seed, make_generator
from data.toy import Toy
from sde_lib.registry import lookup

__all__ = [
    "DATASETS",
    "Batch",
    "Dataset",
    "Dequantized",
    "Dequantizer",
    "Quantizer",
    "TensorDataset",
    "TruncatedNormalDequantizer",
    "UniformDequantizer",
    "batch_indices",
    "dataset_options",
    "derive_seed",
    "eval_batches",
    "get_dataset",
    "make_generator",
    "prepare",
    "train_batches",
]

DATASETS: dict[str, Callable[..., Dataset]] = {
    "digits": Digits,
    "toy": Toy,
    "folder": ImageFolder,
    "celeba": CelebA,
    "cifar10": CIFAR10,
    "none": NoData,
}


def dataset_options(name: str) -> dict[str, Parameter]:
    """Options of a data set, by name, with their defaults; the split is not one of them.

    Raises:
        ValueError: unknown data set.
    """
    parameters = signature(lookup(DATASETS, name, "data set")).parameters
    return {option: parameter for option, parameter in parameters.items() if option != "split"}


def get_dataset(name: str, split: str = "train", **options: Any) -> Dataset:
    """Build a data set by name.

    Args:
        name: a key of ``DATASETS``.
        split: "train" or "test"; CelebA has "valid" too.
        **options: those of the data set's class.

    Raises:
        ValueError: unknown data set or split, or an option value that is not accepted.
        TypeError: an option that the data set does not have, or a required one that is missing.
        FileNotFoundError: the data are not where ``root`` says.
    """
    accepted = dataset_options(name)
    listing = f"{name!r} takes {', '.join(accepted)}"
    unknown = [option for option in options if option not in accepted]
    if unknown:
        raise TypeError(f"unknown option {', '.join(unknown)} for data set {name!r}; {listing}")
    required = [option for option, parameter in accepted.items() if parameter.default is Parameter.empty]
    missing = [option for option in required if option not in options]
    if missing:
        raise TypeError(f"data set {name!r} needs the option {', '.join(missing)}; {listing}")
    return DATASETS[name](split, **options)
