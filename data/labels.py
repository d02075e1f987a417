"""Labels: the class of a sample, or a vector of its attributes; -1 says that something is not known.

A class label is a number 0 .. num_classes - 1, an attribute 0 (no) or 1 (yes). The label with nothing known is the null
condition of classifier-free guidance (arXiv 2207.12598): a network that was trained with some labels hidden gives the
score with them and without.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sde_lib.registry import lookup

UNKNOWN = -1


def check_kinds(num_classes: int, num_attributes: int) -> None:
    """Raise ValueError where labels would be classes and attributes at once."""
    if num_classes and num_attributes:
        raise ValueError(f"labels are classes or attributes, got {num_classes=} and {num_attributes=}")


def check_labels(y: Tensor | None, length: int, num_classes: int, num_attributes: int = 0) -> None:
    """Raise unless ``y`` holds a label for each of ``length`` samples.

    Args:
        y: int64 classes (N,), or attributes (N, A); None for unlabelled.
        length: N.
        num_classes: 0 unless the labels are classes.
        num_attributes: A, or 0.

    Raises:
        TypeError: ``y`` is not int64.
        ValueError: its shape or values do not fit, or the labels are classes and attributes at once.
    """
    check_kinds(num_classes, num_attributes)
    if (y is None) != (num_classes == 0 and num_attributes == 0):
        raise ValueError(
            f"labels and their number go together, got y={'None' if y is None else 'a tensor'}, {num_classes=}, "
            f"{num_attributes=}"
        )
    if y is None:
        return
    if y.dtype != torch.int64:
        raise TypeError(f"labels must be torch.int64, got {y.dtype}")
    shape = (length, num_attributes) if num_attributes else (length,)
    if y.shape != shape:
        raise ValueError(f"{length} samples need labels of shape {shape}, got {tuple(y.shape)}")
    last = 1 if num_attributes else num_classes - 1
    if y.numel() and (int(y.min()) < 0 or int(y.max()) > last):
        raise ValueError(f"labels must lie in 0..{last}, got values from {int(y.min())} to {int(y.max())}")


def hide_labels(y: Tensor, share: float, partly: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
    """Labels with some set to unknown, for training with the null condition.

    Args:
        y: classes (B,) or attributes (B, A).
        share: probability that all of a sample's label is hidden.
        partly: probability that of its attributes each is hidden with a probability u, itself uniform in [0, 1] for
            the sample: so any subset of them may be given later.
        generator: source of the draws, on y's device.
    """
    draw = torch.rand(len(y), generator=generator, device=y.device)
    hidden = (draw < share).view(-1, *[1] * (y.ndim - 1))
    if y.ndim > 1 and partly:
        u = torch.rand(len(y), 1, generator=generator, device=y.device)
        some = torch.rand(len(y), 1, generator=generator, device=y.device) < partly
        hidden = hidden | (some & (torch.rand(y.shape, generator=generator, device=y.device) < u))
    return y.masked_fill(hidden, UNKNOWN)


def parse_labels(
    text: str, n: int, *, num_classes: int = 0, num_attributes: int = 0, names: Sequence[str] = ()
) -> Tensor:
    """Labels for n samples, as they are written on the command line.

    Classes: "3", "cat", or several that take turns, "3,5,8". Attributes: "Smiling=1,Eyeglasses=0", where those that are
    not named are unknown; several such, divided by ";", take turns. "none" is the null condition.

    Args:
        text: what was written.
        n: number of samples.
        num_classes: 0 unless the labels are classes.
        num_attributes: 0 unless they are attributes.
        names: of the classes or attributes; without, they have their numbers for names.

    Returns:
        int64 (n,) or (n, num_attributes).

    Raises:
        ValueError: the text is none of these, or names what there is not.
    """
    number_of = {name: number for number, name in enumerate(names)}
    count = num_attributes or num_classes
    number_of |= {str(number): number for number in range(count) if str(number) not in number_of}
    kind = "attribute" if num_attributes else "class"
    if text.strip() == "none":
        rows = [[UNKNOWN] * num_attributes if num_attributes else UNKNOWN]
    elif num_attributes:
        rows = [_attributes(part, number_of, num_attributes) for part in text.split(";")]
    else:
        if "=" in text:
            raise ValueError(f"labels {text!r}: the labels of this data set are classes; give such as '3' or '3,5'")
        rows = [lookup(number_of, word.strip(), f"{kind} (labels)") for word in text.split(",")]
    return torch.tensor([rows[k % len(rows)] for k in range(n)], dtype=torch.int64)


def _attributes(text: str, number_of: dict[str, int], count: int) -> list[int]:
    row = [UNKNOWN] * count
    for word in text.split(","):
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals or value not in ("0", "1"):
            raise ValueError(
                f"labels {word.strip()!r}: give attributes as NAME=1 or NAME=0, such as 'Smiling=1,Male=0'"
            )
        row[lookup(number_of, name, "attribute (labels)")] = int(value)
    return row
