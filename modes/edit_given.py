"""What ``--mode=edit`` starts from: the image, its mask, what it shows and what it is to show."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data import UNKNOWN, Dataset, Quantizer, given_image, given_mask, parse_labels
from modes.run import Run
from training import builders


@dataclass(frozen=True)
class Given:
    """The image.

    Attributes:
        x: (C, H, W), model units.
        anew: bool (H, W), what is to be painted anew; None without a mask.
        intact: it is a good image, of which a measurement is still to be made.
        label: what it shows, () or (A,), where its data tell; else None.
        name: for file names.
    """

    x: Tensor
    anew: Tensor | None
    intact: bool
    label: Tensor | None
    name: str


def read_given(run: Run, dataset: Dataset, quantizer: Quantizer) -> Given:
    """Read image and mask.

    Raises:
        ValueError: there is no image, or one that does not fit.
        FileNotFoundError: a file is missing.
    """
    config = run.config
    if run.image is None:
        raise ValueError("--image is missing; give a picture, or the number of a held-out image of the run's data")
    path = Path(run.image).expanduser()
    numbered = run.image.isdecimal() and not path.exists()
    intact = numbered or config.editing.degrade
    channels, *sides = dataset.shape
    if config.editing.task == "super_resolution" and not intact:
        sides = [side // config.editing.factor for side in sides]
    shape, label = (channels, *sides), None
    if numbered:
        levels, label = _held_out(run, int(run.image))
    else:
        levels = given_image(path, shape, quantizer, config.data.crop)
    anew = None if run.mask is None else given_mask(run.mask, shape, config.data.crop, None if numbered else path)
    middle = torch.full(levels.shape, 0.5)  # of the bins of dequantised levels
    x = quantizer.place(levels, middle) if config.data.dequantize else quantizer.encode(levels)
    return Given(x, anew, intact, label, path.stem)


def _held_out(run: Run, number: int) -> tuple[Tensor, Tensor | None]:
    split = run.config.likelihood.split
    dataset = builders.build_dataset(run.config, split)
    if number >= len(dataset):
        raise ValueError(
            f"--image={number}: the split {split!r} of {dataset.name!r} has {len(dataset)} images, numbered from 0"
        )
    x, y = dataset.fetch([number])
    return x[0], None if y is None else y[0]


def wanted_labels(run: Run, dataset: Dataset, given: Given) -> Tensor | None:
    """Of the results, (n,) or (n, A): by ``sampling.labels``, else what the image shows; None without conditions.

    Attributes that are not named stay as they are.

    Raises:
        ValueError: there are none where they are needed, or such as the data do not have.
    """
    config, n = run.config, run.config.editing.num_images
    text, relabelling = config.sampling.labels, config.editing.task == "relabel"
    if not config.model.conditional:
        if text or config.editing.labels or relabelling:
            raise ValueError("the model is unconditional, and knows no labels; train one with model.conditional=True")
        return None
    own = own_label(run, dataset, given)
    if not text and relabelling:
        raise ValueError("sampling.labels is empty; say what the image is to show, such as '3' or 'Smiling=1'")
    if not text:
        return own.expand(n, *own.shape)
    if relabelling:  # one image for each: nothing is random there
        n = 1 + text.count(";" if dataset.num_attributes else ",")
    wanted = _parse(text, dataset, n)
    if dataset.num_attributes and text.strip() != "none":
        wanted = torch.where(wanted == UNKNOWN, own, wanted)
    return wanted


def own_label(run: Run, dataset: Dataset, given: Given) -> Tensor:
    """What the image shows, () or (A,): ``editing.labels``, else what its data tell, else unknown.

    Raises:
        ValueError: nobody tells, and the task or the model cannot do without.
    """
    config = run.config
    if config.editing.labels:
        label, other = _parse(config.editing.labels, dataset, 2)
        if not torch.equal(label, other):
            raise ValueError(f"editing.labels is {config.editing.labels!r}; one image shows one label, so give one")
        return label
    if given.label is not None:
        return given.label
    if config.editing.task == "relabel":
        raise ValueError("editing.labels is empty; say what the image shows, such as '3' or 'Smiling=0', or 'none'")
    if not config.training.label_dropout and not config.sampling.labels:
        raise ValueError(
            "with training.label_dropout=0 the model never learned to do without a label; say what the image shows by "
            "editing.labels"
        )
    return _parse("none", dataset, 1)[0]


def _parse(text: str, dataset: Dataset, n: int) -> Tensor:
    kinds = {"num_classes": dataset.num_classes, "num_attributes": dataset.num_attributes}
    return parse_labels(text, n, **kinds, names=dataset.label_names)
