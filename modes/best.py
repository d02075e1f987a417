"""Samples that are compared with data while a run trains, and the checkpoint that was the best by that."""

import math
from collections.abc import Callable, Mapping

from tqdm import tqdm

from evaluation import HIGHER_IS_BETTER, Extractor, Parts, Reference, measure, metrics_of
from models import ScoreModel
from modes.digest import digest
from modes.evaluate import draw_features, split_features
from modes.evaluation_settings import build_extractor, build_reference, with_sampling
from modes.run import Run
from training import Evaluated, Processes

SUBSETS = 10
"""Of the kernel distance, which takes longer than all else if there are few samples."""
APART = ("num_images", "batch_size", "trajectory")
"""Settings of sampling on which the figures do not depend: another number of samples is drawn here."""


def sample_measure(
    run: Run, averaged: Callable[[], ScoreModel], together: Processes
) -> Callable[[int], Evaluated] | None:
    """What draws samples of the averaged model after a step, measures, prints and returns that; None for never.

    It is one draw of ``training.evaluate_images`` samples as the section ``sampling`` tells, the same in every step.
    """
    settings = run.config.training
    if not settings.evaluate_every:
        return None
    extractor = build_extractor(run)
    reference = build_reference(run, extractor) if together.first else None
    drawing = with_sampling(run, num_images=settings.evaluate_images)
    best = None if reference is None else Best(run, run.config.evaluation.best, extractor, reference)

    def evaluated(step: int) -> Evaluated:
        parts = Parts(run.folder.evaluation / f".step_{step:08d}")
        if together.first:
            parts.remove()  # of another past
        model = averaged()
        together.told(None)  # from here on they are of this step
        drawn = draw_features(drawing, model, extractor, parts)
        values: dict[str, float] = {}
        if drawn is not None and reference is not None:
            found = split_features(drawn.x, extractor, reference)
            values = measure(found, reference, fid=extractor.fid, subsets=SUBSETS)
            parts.remove()
        better = together.told("yes" if best is not None and best.take(values) else "no") == "yes"
        if together.first:
            listing = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
            with tqdm.external_write_mode():  # the bar goes on below
                print(f"step {step}: {listing}{' (the best so far)' if better else ''}", flush=True)
        record = {f"evaluation/{name}": value for name, value in values.items()}
        return Evaluated(record, better, {} if best is None else {"by": best.by, **values})

    return evaluated


class Best:
    """The best value of a metric so far, which at first is that of the checkpoint in ``RUN/best``.

    Args:
        run: the run.
        wanted: name of the metric; "auto" for the Fréchet distance.
        extractor: of the features.
        reference: what samples are compared with.

    Raises:
        ValueError: ``evaluation.best`` is nothing that is measured.
    """

    def __init__(self, run: Run, wanted: str, extractor: Extractor, reference: Reference) -> None:
        measured = metrics_of(extractor, reference)
        self.metric = measured[0] if wanted == "auto" else wanted
        if self.metric not in measured:
            raise ValueError(f"evaluation.best is {wanted!r}; what is measured here is {', '.join(measured)}, or auto")
        sampling = {key: value for key, value in run.config.sampling.items() if key not in APART}
        # values that were measured otherwise are not compared
        self.by = digest([self.metric, run.config.training.evaluate_images, sampling, reference.about, run.own], 6)
        kept = [state.get("evaluation") for state in run.folder.best.states()]
        mine = [values for values in kept if isinstance(values, dict) and values.get("by") == self.by]
        if run.folder.best.list() and not mine:
            print(
                f"note: {run.folder.best.folder} holds what was measured otherwise, or is damaged; the first "
                "evaluation takes its place: move it away to keep it"
            )
        self._least = min((self._rank(values) for values in mine), default=math.inf)

    def take(self, values: Mapping[str, float]) -> bool:
        """Whether these are better than all before."""
        better = self._rank(values) < self._least
        self._least = min(self._rank(values), self._least)
        return better

    def _rank(self, values: Mapping[str, float]) -> float:
        return -values[self.metric] if self.metric in HIGHER_IS_BETTER else values[self.metric]
