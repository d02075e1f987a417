"""Of the averages that a training has kept, and of those that its snapshots give, the best on held-out data."""

import json
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from data import whole_file
from evaluation import HeldOutLoss, choose, computing_in
from models import power_std
from models.posthoc_ema import Profile, combine, fit, gamma_of
from modes.heldout import heldout
from modes.likelihood_settings import warn_of_fewer
from modes.run import Run, check_evaluation
from training import CheckpointError, builders, load_checkpoint, load_weights
from training.checkpoint import STATE, step_of, verify, write_files

Weights = dict[str, Tensor]
FAR = 0.1
"""A misfit above which an average is not the one that was asked for."""


@dataclass(frozen=True)
class Stored:
    """A checkpoint or a snapshot, verified.

    Attributes:
        path: of the folder.
        time: updates of its averages.
        profiles: name -> profile, of the averages by power functions.
    """

    path: Path
    time: int
    profiles: dict[str, Profile]


def average_run(run: Run) -> None:
    """Compare all averages, and write the best as a checkpoint that the other modes take."""
    check_evaluation(run)
    widths = parse_widths(run.config.averaging.widths)
    run.folder.changes(run.config.to_dict(), fixed=("sde", "model"))
    stored = stored_averages(run)
    last = stored[-1]
    kept = {name: weights for name, weights in load_checkpoint(last.path)[0].items() if name.startswith("ema")}
    model = run.experiment.model.eval().requires_grad_(False)
    load_weights(model, next(iter(kept.values())), last.path)  # for the buffers, and to see that they fit
    wanted = {name: std for name, std in widths.items() if std not in map(power_std, kept)}
    made, misfits = reconstruct(stored, wanted, [name for name, _ in model.named_parameters()])
    if len(kept | made) < 2:
        raise ValueError(
            f"{last.path} holds one average, so there is nothing to choose; train with more from the start, as by "
            "--config.training.averages=power:0.05,power:0.1 --config.training.ema_snapshot_every=100"
        )

    def report(name: str, found: HeldOutLoss) -> None:
        misfit = f" (misfit of the profile {misfits[name]:.1e})" if name in misfits else ""
        print(f"{name}: held-out loss {found.loss:.6f}{plus_minus(found.std_error)}{misfit}", flush=True)

    settings = run.config.likelihood
    dataset = builders.build_dataset(run.config, settings.split)
    warn_of_fewer("likelihood.num_images", settings.num_images, dataset, settings.split)
    with computing_in(model, settings.precision):
        best, losses = choose(
            model, kept | made, lambda averaged: heldout(run, averaged, dataset, settings.num_images), report
        )
    path = run.folder.averages / f"step_{step_of(last.path):08d}_{best}"
    values = {
        "step": step_of(last.path),
        "ema_updates": last.time,
        "losses": {name: found.loss for name, found in losses.items()},
        "errors": {name: found.std_error for name, found in losses.items()},
        "misfits": misfits,
    }
    with whole_file(path) as draft:
        write_files(draft, {"ema": model.state_dict()}, values)
    far = [name for name, misfit in misfits.items() if misfit > FAR]
    if far:
        print(
            f"note: {', '.join(far)} cannot be made well of what is stored (a misfit above {FAR:g}), and is another "
            "average than its name says; train with a smaller training.ema_snapshot_every, or choose other widths"
        )
    second = min((name for name in losses if name != best), key=lambda name: losses[name].loss)
    gap, error = losses[second].above(losses[best])
    print(f"{second} is the next, {gap:.1e}{plus_minus(error, '.1e')} above it on the same times and noise")
    print(f"the best is {best}: {path}\nnext:")
    for mode in ("sample", "likelihood"):
        print(f"  {run.command(mode)} --checkpoint={shlex.quote(str(path))}")


def plus_minus(error: float | None, digits: str = ".6f") -> str:
    """A standard error as it is printed behind a value; nothing where it is not known."""
    return "" if error is None else f" ± {error:{digits}}"


def parse_widths(text: str) -> dict[str, float]:
    """Name -> width, of widths divided by commas.

    Raises:
        ValueError: they are not numbers in the range of ``gamma_of``.
    """
    widths: dict[str, float] = {}
    for word in (part.strip() for part in text.split(",")) if text.strip() else ():
        try:
            std = float(word)
            gamma_of(std)
        except ValueError as error:
            raise ValueError(f"averaging.widths: {word!r} is no width ({error}); give such as 0.05,0.07") from error
        widths[f"posthoc_{std!r}"] = std
    return widths


def stored_averages(run: Run) -> list[Stored]:
    """Snapshots and the checkpoint, up to the step at which an average is wanted, which is the last.

    Raises:
        CheckpointError: nothing is stored of that step, or something is damaged.
    """
    path = run.folder.checkpoint(run.checkpoint)
    if path.resolve().parent == run.folder.averages.resolve():
        raise CheckpointError(f"{path} is a result of this mode; give a checkpoint of the training, or none")
    folders = {step_of(snapshot): snapshot for snapshot in run.folder.snapshots.list()} | {step_of(path): path}
    step = run.config.averaging.step or step_of(path)
    if step not in folders:
        near = sorted(sorted(folders, key=lambda other: abs(other - step))[:4])
        raise CheckpointError(
            f"no average of step {step} is stored; set averaging.step to {', '.join(map(str, near))} or another that "
            "is, or to 0 for the checkpoint's"
        )
    _tell_missing(run.config.training.ema_snapshot_every, step, folders)
    return [_read(folders[other]) for other in sorted(folders) if other <= step]


def _tell_missing(every: int, step: int, found: Collection[int]) -> None:
    wanted = range(every, step + 1, every) if every else ()
    missing = [other for other in wanted if other not in found]
    if missing:
        print(
            f"note: of the {len(wanted)} snapshots up to step {step} (training.ema_snapshot_every is {every}) "
            f"{len(missing)} are missing, the first of step {missing[0]}; averages of other widths are made without "
            "them, and their misfit tells how well"
        )


def _read(path: Path) -> Stored:
    """An average that nothing has moved yet has no profile."""
    stds = {name: power_std(name) for name in sorted(Path(file).stem for file in verify(path))}
    time = json.loads((path / STATE).read_text())["ema_updates"]
    profiles = {name: Profile(time, gamma_of(std)) for name, std in stds.items() if std is not None and time}
    return Stored(path, time, profiles)


def reconstruct(
    stored: Sequence[Stored], widths: Mapping[str, float], parameters: Sequence[str]
) -> tuple[dict[str, Weights], dict[str, float]]:
    """Averages of other widths at the time of the last of the stored; none where none is by a power function.

    Args:
        stored: of different times.
        widths: name -> width.
        parameters: names of the weights that are averaged.

    Returns:
        Name -> weights, and name -> misfit of the profile.
    """
    basis = [profile for each in stored for profile in each.profiles.values()]
    if not basis or not widths:
        return {}, {}
    fits = [fit(basis, Profile(stored[-1].time, gamma_of(std))) for std in widths.values()]

    def parts() -> Iterator[Weights]:
        for each in stored:
            tensors, _ = load_checkpoint(each.path)
            for name in each.profiles:
                yield {key: tensors[name][key] for key in parameters}

    sums = combine(parts(), zip(*(found.coefficients for found in fits), strict=True))
    misfits = [found.misfit for found in fits]
    return dict(zip(widths, sums, strict=True)), dict(zip(widths, misfits, strict=True))
