"""Sources of x_0, and the only place that knows pixel levels, ranges, crops and labels."""

from inspect import Parameter, signature
from typing import Any

from data.arrays import Arrays
from data.augmentation import AUGMENTATION_DIMS, Augmentation
from data.celeba import CelebA
from data.cifar10 import CIFAR10
from data.converted import ConvertedImages
from data.dataset import Batch, Dataset, TensorDataset
from data.dequantization import Dequantized, Dequantizer, TruncatedNormalDequantizer, UniformDequantizer
from data.digits import Digits
from data.draws import Draws, StepDraws
from data.folder import ImageFolder
from data.given import REGIONS, given_image, given_mask
from data.image_files import ImageFiles
from data.labels import UNKNOWN, hide_labels, parse_labels
from data.loader import eval_batches, prepare, train_batches
from data.mnist import MNIST, FashionMNIST
from data.none import NoData
from data.order import batch_indices
from data.quantizer import Quantizer
from data.randomness import derive_seed, make_generator
from data.shards import Shards
from data.survey import Survey, survey
from data.toy import Toy
from data.whole_files import whole_file, writing
from sde_lib.registry import lookup

__all__ = [
    "AUGMENTATION_DIMS",
    "DATASETS",
    "REGIONS",
    "UNKNOWN",
    "Augmentation",
    "Batch",
    "ConvertedImages",
    "Dataset",
    "Dequantized",
    "Dequantizer",
    "Draws",
    "Quantizer",
    "StepDraws",
    "Survey",
    "TensorDataset",
    "TruncatedNormalDequantizer",
    "UniformDequantizer",
    "batch_indices",
    "dataset_options",
    "derive_seed",
    "eval_batches",
    "get_dataset",
    "given_image",
    "given_mask",
    "hide_labels",
    "make_generator",
    "parse_labels",
    "prepare",
    "survey",
    "train_batches",
    "whole_file",
    "writing",
]

DATASETS: dict[str, type[Dataset]] = {
    "digits": Digits,
    "toy": Toy,
    "folder": ImageFolder,
    "celeba": CelebA,
    "shards": Shards,
    "arrays": Arrays,
    "cifar10": CIFAR10,
    "mnist": MNIST,
    "fashion_mnist": FashionMNIST,
    "none": NoData,
}


def dataset_options(name: str) -> dict[str, Parameter]:
    """Options of a data set, by name, with their defaults; the split is not one of them.

    Raises:
        ValueError: unknown data set.
    """
    kind = lookup(DATASETS, name, "data set")
    options = {option: parameter for option, parameter in signature(kind).parameters.items() if option != "split"}
    if issubclass(kind, ImageFiles):
        options["cache"] = Parameter("cache", Parameter.KEYWORD_ONLY, default="")
    return options


def get_dataset(name: str, split: str = "train", **options: Any) -> Dataset:
    """Build a data set by name.

    Args:
        name: a key of ``DATASETS``.
        split: "train" or "test"; CelebA has "valid" too.
        **options: those of the data set's class. Those made of image files take ``cache`` too: the folder of the
            converted images (``data.converted``), or "" to decode them each time.

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
    cache = options.pop("cache", "") if issubclass(DATASETS[name], ImageFiles) else ""
    dataset = DATASETS[name](split, **options)  # type: ignore[call-arg]  # a class of its own, which begins with it
    return ConvertedImages(dataset, cache) if cache and isinstance(dataset, ImageFiles) else dataset
