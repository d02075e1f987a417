"""Checks of the values: their range, levels, channels, images of one value, and what mirroring would change."""

import math
from collections.abc import Iterator

from torch import Tensor

from evaluation.checks.subject import Finding, Row, Subject, few, percent

LEAST_SPAN = 0.5
"""Share of the declared range that values should reach: those on [0, 1], declared to lie on [-1, 1], have 0.5."""
WIDE = 1.5
"""Width that values have, where a wider range was declared so that they fill [-1, 1]."""
SCALES = (0.1, 10.0)
"""Standard deviations of continuous data that networks and laws of t, made for about 1, are at home with."""
VALUES_OF_A_LEVEL = 100
"""Values for each level, from which on a level that never occurs is no accident."""
FEW = 0.25
"""Share of the levels in the range of the values, below which they count as few."""
MANY_CONSTANT = 0.01
"""Share of images of one value from which on they are no rarity that a network would ignore."""
ASYMMETRY = 0.05
"""Share of the variance of mean images that may be odd under mirroring: digits have 0.12 by class."""
SHOWN = 4
"""Channels whose own figures fit in a row."""


def value_range(s: Subject) -> Iterator[Row | Finding]:
    """Do the values fill the range that is declared for them?"""
    least, most = float(s.train.least.min()), float(s.train.most.max())
    measured = f"{least:.3g} to {most:.3g}"
    pixels = s.train.quantizer
    if pixels is None:
        return (yield from _scale(s, measured))
    share = (most - least) / (pixels.high - pixels.low)
    ok = share > LEAST_SPAN or most - least >= WIDE
    yield Row("range of the values", measured, f"most of {pixels.low:g} to {pixels.high:g}", ok)
    if ok or most == least:  # one value alone is found by other checks
        return
    scale = 2 / (most - least)  # of the range with which these values lie on [-1, 1]
    low, high = (-1 + scale * (end - least) for end in (pixels.low, pixels.high))
    first, last = s.train.levels.sum(0).nonzero().flatten()[[0, -1]].tolist()  # type: ignore[union-attr]
    yield Finding(
        True,
        f"the values span {100 * share:.2g} % of the declared range: {measured}, levels {first} to {last} of "
        f"{pixels.levels}",
        "noise levels, time laws and networks are made for data that fill the range; pixels on 0..1, or shifted "
        "twice, look like this",
        f"store the data with levels 0 to {pixels.levels - 1}, or declare a range that they fill; then run this "
        "again, since other findings may follow from this one",
        (f"--config.data.low={low:.6g}", f"--config.data.high={high:.6g}"),
    )


def _scale(s: Subject, measured: str) -> Iterator[Row | Finding]:
    """The same for continuous data, which declare no range."""
    std = s.train.whole_std
    ok = SCALES[0] <= std <= SCALES[1]
    yield Row("range of the values", measured, "any")
    yield Row("scale of the values", f"standard deviation {std:.3g}", f"{SCALES[0]:g} to {SCALES[1]:g}", ok)
    if not ok:
        yield Finding(
            True,
            f"the standard deviation of the values is {std:.3g}",
            "noise levels, time laws and networks are made for data of a standard deviation of about 1",
            f"subtract {s.train.whole_mean:.3g} from the values and divide them by {std:.3g}; then run this again, "
            "since other findings may follow from this one",
        )


def levels(s: Subject) -> Iterator[Row | Finding]:
    """Do all levels in the range of the values occur?"""
    if s.train.levels is None:
        return
    counts = s.train.levels.sum(0)
    used = counts.nonzero().flatten().tolist()
    between = used[-1] - used[0] + 1
    step = math.gcd(*(level - used[0] for level in used))
    told = int(counts.sum()) >= VALUES_OF_A_LEVEL * between
    ok = not told or (step <= 1 and len(used) >= FEW * between)
    yield Row("levels that occur", f"{len(used)} of {len(counts)}", f"those from {used[0]} to {used[-1]}", ok)
    if not ok:
        yield Finding(
            False,
            f"{len(used)} levels occur of the {between} from {used[0]} to {used[-1]}"
            + (f": one in {step}" if step > 1 else ""),
            f"bits/dim count all levels: up to {math.log2(between / len(used)):.2g} of them are won by learning which "
            "ones never occur",
            "compare bits/dim only with those of the same data; if a conversion has lost the other levels, repeat it",
        )


def channels(s: Subject) -> Iterator[Row | Finding]:
    """Has each channel a spread of its own?"""
    word = "channel" if s.train.quantizer is not None else "dimension"
    mean, std = s.train.mean.tolist(), s.train.std.tolist()
    own = 1 < len(mean) <= SHOWN
    still = [number for number, value in enumerate(std) if value == 0]
    spread = f" (of each {word}: {', '.join(f'{value:.3g}' for value in std)})" if own else ""
    middle = f" ({', '.join(f'{value:.3g}' for value in mean)})" if own else ""
    yield Row("mean of the values", f"{s.train.whole_mean:.3g}{middle}", "any")
    yield Row(
        "standard deviation",
        f"{s.train.whole_std:.3g}{spread}",
        "above 0" if len(std) == 1 else f"above 0 in every {word}",
        not still,
    )
    if still:
        yield Finding(
            True,
            f"{percent(len(still), len(std))} {word}s hold one value alone, in all samples: number "
            f"{', '.join(map(str, still[:10]))}",
            "there is nothing to learn in them, and the density of the data is infinite",
            f"leave out such {word}s, or read the data again: they may have been lost on the way",
        )
    if s.train.grey and not still:
        yield Row("colour", "all channels of an image are equal", "channels differ", False)
        yield Finding(
            False,
            f"the {len(std)} channels of every image are equal: the images are grey",
            "the network learns to draw the same picture several times, and the covariance of the data is singular",
            "read the images as grey ones, where the data set lets you",
            ("--config.data.channels=1",) if s.plan.crop else (),
        )


def constant_images(s: Subject) -> Iterator[Row | Finding]:
    """Are there images of one value, such as black ones?"""
    if len(s.train.sample.shape) != 4:
        return
    count = len(s.train.constant)
    yield Row("images of one value", f"{count} of {s.train.read}", "none", not count)
    if count:
        yield Finding(
            count >= MANY_CONSTANT * s.train.read,
            f"{percent(count, s.train.read)} images have one value for all pixels of a channel, as black ones have: "
            f"{few([s.train.place(index) for index in s.train.constant])}",
            "the model draws them as often as they occur, and their density is infinite without dequantisation",
            "remove them from the data",
        )


def mirroring(s: Subject) -> Iterator[Row | Finding]:
    """Is the law of the data (of each class) the same when it is mirrored? Then its mean image is."""
    if not s.plan.flip:
        return
    share = _asymmetry(s.train.sample.double(), s.train.sample_labels)
    ok = share <= ASYMMETRY
    measured = f"{100 * share:.2g} % of its variance"
    yield Row("asymmetry of the mean image", measured, f"at most {100 * ASYMMETRY:g} %", ok)
    if not ok:
        yield Finding(
            False,
            f"data.random_flip is set, but the mean image (of a class) is odd under mirroring in {measured}",
            "mirrored images are then no images of this kind, as mirrored digits and letters are none, and the model "
            "draws them too",
            "do without mirroring",
            ("--config.data.random_flip=False",),
        )


def _asymmetry(x: Tensor, y: Tensor | None) -> float:
    """Share of the variance of mean images that is odd under mirroring, less what chance leaves of it."""
    by_class = y is not None and y.ndim == 1
    groups = [x[y == number] for number in y.unique()] if by_class else [x]  # type: ignore[union-attr]
    odd = variance = 0.0
    for group in groups:
        mean = group.mean(0)
        chance = float(group.var(0, correction=0).mean()) / (2 * len(group))
        odd += max(float(((mean - mean.flip(-1)) / 2).square().mean()) - chance, 0.0)
        variance += float((mean - mean.mean((1, 2), keepdim=True)).square().mean())
    return odd / variance if variance else 0.0
