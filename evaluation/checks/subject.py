"""What is examined before training, and what an examination tells: rows of a table, and findings."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from data import Survey
from evaluation.diameter import diameter
from evaluation.prior_gap import GaussianFit, fit_gaussian
from sde_lib import SDE


@dataclass(frozen=True)
class Plan:
    """How it is to be trained.

    Attributes:
        steps: optimizer steps; None where they are not known yet.
        batch_size: samples in one; None likewise.
        warmup_steps: over which the learning rate rises.
        prediction: what the network predicts.
        sigma_data: standard deviation of the data that the prediction "edm" assumes.
        time_law: from which t is drawn in continuous time.
        chain: steps of DDPM's chain, where the loss or a bound is of one; else 0.
        on_chain: whether it is the loss.
        conditional: whether the network is told labels.
        flip: whether images are mirrored.
        crop: name of the crop; "" for data without one.
        skips: whether images that cannot be read are left out.
    """

    steps: int | None
    batch_size: int | None
    warmup_steps: int = 0
    prediction: str = "eps"
    sigma_data: float = 0.5
    time_law: str = "uniform"
    chain: int = 0
    on_chain: bool = False
    conditional: bool = False
    flip: bool = False
    crop: str = ""
    skips: bool = False


@dataclass(frozen=True)
class Subject:
    """Everything that a check may look at.

    Attributes:
        train: survey of the training data.
        heldout: survey of the held-out data; None where there are none.
        sde: the process.
        plan: how it is to be trained.
    """

    train: Survey
    heldout: Survey | None
    sde: SDE
    plan: Plan

    @cached_property
    def diameter(self) -> float:
        """Largest distance between two samples, of those whose values are at hand."""
        return diameter(self.train.sample)

    @cached_property
    def fit(self) -> GaussianFit:
        """Mean and covariance of the same samples."""
        return fit_gaussian(self.train.sample)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        what: is measured.
        measured: its value.
        expected: what it should be.
        ok: whether it is.
    """

    what: str
    measured: str
    expected: str
    ok: bool = True


@dataclass(frozen=True)
class Finding:
    """What is wrong.

    Attributes:
        fault: whether it spoils the training; else it is worth knowing.
        found: what was found, with its number.
        why: it matters, in a sentence.
        remedy: what to do, in words.
        flags: what to add to the command for that, where flags can do it.
    """

    fault: bool
    found: str
    why: str
    remedy: str
    flags: tuple[str, ...] = ()


EXAMPLES = 3
"""Samples that a finding names; the record of the examination has them all."""

Check = Callable[[Subject], Iterator[Row | Finding]]
"""Looks at one thing: the rows to show, and a finding where something is wrong."""


def percent(part: int, whole: int) -> str:
    """A share, in words that tell a small one from none."""
    share = 100 * part / whole
    return f"{part} of {whole} ({share:.0f} %)" if share >= 10 else f"{part} of {whole} ({share:.2g} %)"


def few(names: Sequence[str], most: int = EXAMPLES, joint: str = ", ") -> str:
    """The first of some names, and how many more there are."""
    more = len(names) - most
    return joint.join(names[:most]) + (f", and {more} more" if more > 0 else "")
