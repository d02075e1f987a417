"""Checks of the samples: unreadable files, copies, copies among held-out data, sizes of files, labels."""

from collections.abc import Iterator

import torch

from data import UNKNOWN
from evaluation.checks.subject import Finding, Row, Subject, few, percent

MANY_UNREADABLE = 0.05
"""Share of unreadable images from which on leaving them out changes the law of the data, or tells of a worse fault."""
LISTED = 20
"""Files that a finding names; the record of the examination has them all."""
MANY_COPIES = 0.05
"""Share of copies from which on their weight in the law of the data spoils it."""
LEAK = 0.01
"""Share of held-out samples that are trained on from which on held-out figures are not to be believed."""
MANY_ENLARGED = 0.01
"""Share of images smaller than they are used that is more than a rarity."""
SQUEEZED = 1.1
"""Ratio of the sides from which on squeezing an image to a square can be seen."""
BALANCE = 10
"""Ratio of the most frequent class to the rarest from which on the latter is learned noticeably worse."""


def unreadable(s: Subject) -> Iterator[Row | Finding]:
    """Can every file be opened and decoded?"""
    surveys = [survey for survey in (s.train, s.heldout) if survey is not None]
    faults = {place: reason for survey in surveys for place, reason in survey.unreadable.items()}
    looked = sum(survey.read for survey in surveys) + len(faults)
    total = sum(survey.total for survey in surveys)
    partly = "" if looked == total else f" that were looked at, of {total}"
    yield Row("unreadable", f"{len(faults)} of {looked}{partly}", "none", not faults)
    if faults:
        places = list(faults)
        yield Finding(
            not s.plan.skips or len(faults) >= MANY_UNREADABLE * looked,
            f"{percent(len(faults), looked)} images cannot be used: {few(places, LISTED)}; the first: "
            f"{faults[places[0]]}",
            "with data.corrupt=fail the training ends at the first of them; with skip another image takes its place",
            "mend or remove them" + ", or leave them out" * (not s.plan.skips),
            () if s.plan.skips else ("--config.data.corrupt=skip",),
        )


def copies(s: Subject) -> Iterator[Row | Finding]:
    """Are there samples with exactly the values of others?"""
    count = s.train.copies
    yield Row("exact copies", f"{count} of {s.train.read}", "none", not count)
    if count:
        groups = s.train.equal
        named = [few([s.train.place(index) for index in group], joint=" = ") for group in groups]
        yield Finding(
            count >= MANY_COPIES * s.train.read,
            f"{percent(count, s.train.read)} samples are copies of others, value for value; one occurs "
            f"{len(groups[0])} times; {few(named, joint='; ')}",
            "what occurs more often is drawn more often, and is the first to be learned by heart",
            "remove the copies from the data",
        )


def leakage(s: Subject) -> Iterator[Row | Finding]:
    """Are held-out samples trained on?"""
    if s.heldout is None:
        return
    shared = s.heldout.shared_with(s.train)
    count = len(shared)
    yield Row("held-out samples in the training data", f"{count} of {s.heldout.read}", "none", not count)
    if count:
        yield Finding(
            count >= LEAK * s.heldout.read,
            f"{percent(count, s.heldout.read)} held-out samples are in the training data too, value for value: "
            f"{few([f'{s.heldout.place(here)} = {s.train.place(there)}' for here, there in shared])}",
            "bits/dim and losses on held-out data are too good: a part of them measures memory",
            "remove the copies before the data are split",
        )


def sizes(s: Subject) -> Iterator[Row | Finding]:
    """Are files large enough for the size at which they are used?"""
    if s.train.sizes is None:
        return
    side, short = s.train.sample.shape[-1], s.train.sizes.amin(1)
    small = int((short < side).sum())
    ok = small < MANY_ENLARGED * len(short)
    middle = int(short.median())
    yield Row("shorter side, after the crop", f"{int(short.min())} at least, {middle} mostly", f"{side} or more", ok)
    if not ok:
        most = int(short.sort().values[int(MANY_ENLARGED * len(short))])  # that all but a few have
        fitting = 2 ** (most.bit_length() - 1)
        yield Finding(
            False,
            f"{percent(small, len(short))} images are smaller than {side} pixels, and are enlarged; the smallest has "
            f"{int(short.min())}",
            "the model learns the blur of the enlargement",
            "choose a size that the files have, or remove the small ones",
            (f"--config.data.image_size={fitting}",) if 8 <= fitting < side else (),
        )
    oblong = int((s.train.sizes.amax(1) > SQUEEZED * short).sum())
    if oblong:
        yield Row("images squeezed to a square", percent(oblong, len(short)), "none", False)
        yield Finding(
            False,
            f"{percent(oblong, len(short))} images are oblong, and with data.crop={s.plan.crop} are squeezed",
            "the model learns the distortion",
            "take the centred square of each",
            ("--config.data.crop=center",),
        )


def labels(s: Subject) -> Iterator[Row | Finding]:
    """Has every label images, and about as many as others? It matters where the network is told labels."""
    y = s.train.labels
    if y is None:
        return
    if y.ndim == 1:
        counts = torch.bincount(y[y != UNKNOWN], minlength=s.train.num_classes)
        word = "classes"
    else:
        counts = torch.stack([(y == 0).sum(0), (y == 1).sum(0)]).amin(0)  # of the rarer answer
        word = "attributes"
    told = s.plan.conditional
    missing = (counts == 0).nonzero().flatten().tolist()
    least, most = int(counts.min()), int(counts.max())
    fair = y.ndim > 1 or most <= BALANCE * least
    ok = not told or (not missing and fair)
    measured = f"{len(counts)} {word}, of {least} to {most} samples" if y.ndim == 1 else f"{len(counts)} {word}"
    yield Row("labels", measured, "samples of each, in like numbers" if told else "any: they are not used", ok)
    if told and missing:
        names = [s.train.label_names[number] if s.train.label_names else str(number) for number in missing]
        yield Finding(
            True,
            f"{len(missing)} of {len(counts)} {word} have no samples"
            + (" of one of the two answers" if y.ndim > 1 else "")
            + f": {', '.join(names[:LISTED])}",
            "the network is conditional, and what it draws for a label that it never saw is arbitrary",
            "number the labels without gaps, or add samples of these",
        )
    elif told and not fair:
        yield Finding(
            False,
            f"the most frequent class has {most} samples, the rarest {least}",
            "the rare ones are learned worse, and unlabelled samples seldom show them",
            "add samples of the rare classes, and judge each class by itself",
        )
