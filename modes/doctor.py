"""Look at the data and the process before training: what is wrong with them, and what to change."""

import json
import math
import sys
import textwrap

from data import Dataset, Survey, survey, whole_file
from evaluation.checks import Examination, Finding, Plan, Row, Subject, examine
from modes.likelihood_settings import ESTIMATES, ddpm_chain
from modes.run import Run, check_evaluation, describe
from training import builders
from training.settings import AUTO

SAMPLES, VALUES = 2000, 2**25
"""Most samples of which distances and a covariance are computed, and most values of them all: a quarter of a GB."""
WIDTH = 120


def examine_run(run: Run) -> None:
    """The mode: measure, print, and keep what was found; exit status 1 where something would spoil the training."""
    config, experiment = run.config, run.experiment
    if config.doctor.num_images == 1:
        raise ValueError("doctor.num_images is 1, and one sample has no spread; give 0 for all, or 2 at least")
    builders.build_loss(config, experiment.sde)
    check_evaluation(run)
    run.folder.changes(config.to_dict())
    print(describe(run), flush=True)
    train = _survey(run, experiment.dataset)
    split = config.likelihood.split
    heldout = None if split == "train" else _survey(run, builders.build_dataset(config, split))
    subject = Subject(train, heldout, experiment.sde, build_plan(run))
    examination = examine(subject)
    print(*report(examination), _basis(subject), sep="\n", flush=True)
    path = run.folder.path / "doctor.json"
    with whole_file(path) as draft:  # after the printing, so that where this fails nothing is lost
        draft.write_text(json.dumps({**examination.to_dict(), **_details(subject)}, indent=2))
    print(f"all of it: {path}")
    if examination.faults:
        sys.exit(1)


def build_plan(run: Run) -> Plan:
    """How the configuration wants it trained."""
    config, dataset = run.config, run.experiment.dataset
    settings = config.training
    steps: int | None = None
    batch: int | None = None
    if AUTO not in (settings.batch_size, settings.accumulation):
        options = builders.build_options(config, dataset)
        steps, batch = options.steps, options.batch_size
    on_chain = settings.loss == "ddpm"
    return Plan(
        steps=steps,
        batch_size=batch,
        warmup_steps=settings.warmup_steps,
        prediction=config.model.prediction,
        sigma_data=config.model.sigma_data,
        time_law=settings.time_law,
        chain=_chain(run, on_chain),
        on_chain=on_chain,
        conditional=config.model.conditional,
        flip=config.data.random_flip,
        crop=getattr(dataset, "crop", ""),
        skips=getattr(dataset, "skips", False),
    )


def _chain(run: Run, on_chain: bool) -> int:
    """Steps of DDPM's chain, where it is trained on or scores; else 0."""
    config, sde = run.config, run.experiment.sde
    if not on_chain and "ddpm" not in ESTIMATES[config.likelihood.estimate]:
        return 0
    try:
        return ddpm_chain(config, sde)
    except (TypeError, ValueError):  # estimate "all" leaves out the bound of a chain that there is not
        return 0


def _survey(run: Run, dataset: Dataset) -> Survey:
    sample = min(SAMPLES, max(2, VALUES // math.prod(dataset.shape)))
    return survey(dataset, num_images=run.config.doctor.num_images, sample=sample, seed=run.config.seed)


def report(examination: Examination) -> list[str]:
    """The table, and the findings below it."""
    lines = [*_table(examination.rows), ""]
    for number, (_, finding) in enumerate(examination.findings, 1):
        lines += [*_paragraph(number, finding), ""]
    flags = dict.fromkeys(flag for _, finding in examination.findings for flag in finding.flags)
    if len(flags) > 1:
        lines += ["all flags together:", f"     {' '.join(flags)}", ""]
    advice = len(examination.findings) - examination.faults
    if examination.faults:
        lines.append(f"{_count(examination.faults, 'fault')} that will spoil the training, {_count(advice, 'remark')}")
    elif advice:
        lines.append(f"healthy, with {_count(advice, 'remark')}")
    else:
        lines.append("healthy: nothing to change")
    return lines


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _table(rows: tuple[Row, ...]) -> list[str]:
    cells = [("measured", "value", "expected"), *((row.what, row.measured, row.expected) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in (0, 1)]
    marks = ["  ", *("ok" if row.ok else "!!" for row in rows)]
    return [
        f"{mark}  {what:<{widths[0]}}  {value:<{widths[1]}}  {expected}".rstrip()
        for mark, (what, value, expected) in zip(marks, cells, strict=True)
    ]


def _paragraph(number: int, finding: Finding) -> list[str]:
    kind = "fault" if finding.fault else "remark"
    said = f"{number}. {kind}: {finding.found}. Why it matters: {finding.why}. What to do: {finding.remedy}"
    flags = [f"     {' '.join(finding.flags)}"] if finding.flags else []
    return [*textwrap.wrap(said, WIDTH, subsequent_indent="   ", break_on_hyphens=False), *flags]


def _basis(subject: Subject) -> str:
    """On how many samples what was computed."""
    train = subject.train
    partly = "" if train.read + len(train.unreadable) == train.total else f" of {train.total}"
    return (
        f"read: {train.read}{partly} training samples and {subject.heldout.read if subject.heldout else 0} held-out "
        f"ones; largest distance and covariance: of {len(train.sample)}"
    )


def _details(subject: Subject) -> dict[str, object]:
    """Numbers and names for machines, beside the text."""
    train, heldout = subject.train, subject.heldout
    shared = [] if heldout is None else heldout.shared_with(train)
    return {
        "data": {
            "name": train.name,
            "samples": train.total,
            "read": train.read,
            "mean": train.mean.tolist(),
            "std": train.std.tolist(),
            "sigma_data": train.whole_std,
            "diameter": subject.diameter,
            "diameter_of": len(train.sample),
            "copies": train.copies,
            "equal": [[train.place(index) for index in group] for group in train.equal],
            "shared": [[heldout.place(here), train.place(there)] for here, there in shared] if heldout else [],
            "of_one_value": [train.place(index) for index in train.constant],
            "unreadable": train.unreadable | (heldout.unreadable if heldout else {}),
        },
        "process": repr(subject.sde),
    }
