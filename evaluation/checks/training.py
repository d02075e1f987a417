"""Checks of how it is to be trained: what the network assumes of the data, warm-up, passes over the data."""

from collections.abc import Iterator

from evaluation.checks.subject import Finding, Row, Subject

OFF = 4.0
"""How many times the standard deviation may be taken too large or too small: recipes here have 1.3 to 2, so that other
projects can run their networks."""
MOST_PASSES = 10_000
"""Passes over the data from which on they are learned by heart: DDPM's on CIFAR-10 are 3,300."""


def sigma_data(s: Subject) -> Iterator[Row | Finding]:
    """Is the standard deviation that EDM's preconditioning assumes that of the data?"""
    std = s.train.whole_std
    if s.plan.prediction != "edm" or not std:
        return
    ratio = s.plan.sigma_data / std
    ok = 1 / OFF <= ratio <= OFF
    yield Row("model.sigma_data", f"{s.plan.sigma_data:g}", f"about {std:.2g}: {std / OFF:.2g} to {std * OFF:.2g}", ok)
    if not ok:
        yield Finding(
            True,
            f"model.sigma_data is {s.plan.sigma_data:g}, {ratio:.2g} times the standard deviation of the data",
            "with prediction edm the network's input and target then have another size than 1 at most noise levels",
            "set it to what was measured",
            (f"--config.model.sigma_data={std:.2g}",),
        )


def warm_up(s: Subject) -> Iterator[Row | Finding]:
    """Does the learning rate reach its height within the run?"""
    steps, warm = s.plan.steps, s.plan.warmup_steps
    if not steps or not warm:
        return
    ok = warm < steps
    yield Row("training.warmup_steps", f"{warm}", f"below the {steps} steps of the run", ok)
    if not ok:
        yield Finding(
            True,
            f"the learning rate rises for {warm} steps, but the run has {steps}",
            f"it never reaches more than {100 * steps / warm:.2g} % of training.learning_rate",
            "warm up for a twentieth of the run",
            (f"--config.training.warmup_steps={steps // 20}",),
        )


def passes(s: Subject) -> Iterator[Row | Finding]:
    """How often is each sample seen?"""
    if not s.plan.steps or not s.plan.batch_size:
        return
    count = s.plan.steps * s.plan.batch_size / s.train.total
    ok, told = 1 <= count <= MOST_PASSES, f"{count:.3g}" if count < 1000 else f"{count:,.0f}"
    yield Row("passes over the data", told, f"1 to {MOST_PASSES}", ok)
    if ok:
        return
    if count < 1:
        yield Finding(
            False,
            f"{s.plan.steps} steps of {s.plan.batch_size} see {100 * count:.2g} % of the {s.train.total} samples",
            "the others are never learned from",
            "train longer",
            (f"--config.training.steps={-(-s.train.total // s.plan.batch_size)}",),
        )
    else:
        yield Finding(
            False,
            f"each of the {s.train.total} samples is seen {told} times",
            "a network of some size learns so few samples by heart, and draws them again (arXiv 2212.03860)",
            "collect more data, augment them, or train shorter; the loss on held-out data tells when to stop",
        )
