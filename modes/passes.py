"""Batches that pass through a trained network: what for, and the setting that says how large they are."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ml_collections import ConfigDict


@dataclass(frozen=True)
class Pass:
    """The largest batch of some work.

    Attributes:
        name: of the work, in words.
        work: its kind, a key of ``training.memory.WORK``.
        setting: what the batch is set by.
        count: its value, as far as that is used.
        each: samples of one.
    """

    name: str
    work: str
    setting: str
    count: int
    each: int = 1

    @property
    def samples(self) -> int:
        """How many pass at once."""
        return self.count * self.each


def sampling_pass(config: ConfigDict) -> Pass:
    """Of ``generate``."""
    sampling = config.sampling
    return Pass("sampling", "sampling", "sampling.batch_size", min(sampling.batch_size, sampling.num_images))


def likelihood_pass(config: ConfigDict) -> Pass:
    """Of an estimate of the likelihood; the one by the ODE differentiates."""
    return Pass("likelihood", "likelihood", "likelihood.batch_size", _first(config, config.likelihood.num_images))


def heldout_pass(config: ConfigDict, num_images: int) -> Pass:
    """Of the loss on the first held-out images; 0 for all."""
    return Pass("the loss on held-out data", "sampling", "likelihood.batch_size", _first(config, num_images))


def editing_pass(config: ConfigDict) -> Pass:
    """Of a task: a code for each result at once, or samples, of which most methods ask for the score's gradient."""
    editing = config.editing
    if editing.task == "relabel":
        return Pass("editing", "sampling", "editing.num_images", editing.num_images)
    differentiates = editing.task != "image_to_image" and editing.method != "replacement"
    count = min(config.sampling.batch_size, editing.num_images)
    return Pass("editing", "likelihood" if differentiates else "sampling", "sampling.batch_size", count)


def interpolation_pass(config: ConfigDict) -> Pass:
    """Of all moments of all ways."""
    settings = config.interpolation
    return Pass("interpolation", "sampling", "interpolation.pairs", settings.pairs, each=settings.moments)


def dequantizer_pass(config: ConfigDict) -> Pass:
    """Of a step of the dequantiser's training, whose gradient goes through the network; its own takes little."""
    return Pass("training of the dequantiser", "likelihood", "dequantizer.batch_size", config.dequantizer.batch_size)


def passes_beside(config: ConfigDict) -> Iterator[Pass]:
    """What a training does between its steps, with all that it keeps still there."""
    training = config.training
    if training.heldout_every and config.likelihood.split != "train":
        yield heldout_pass(config, training.heldout_images)
    if training.sample_every:
        yield sampling_pass(config)
    if training.evaluate_every:
        yield replace(sampling_pass(config), count=min(config.sampling.batch_size, training.evaluate_images))


def _first(config: ConfigDict, num_images: int) -> int:
    most = config.likelihood.batch_size
    return min(most, num_images or most)
