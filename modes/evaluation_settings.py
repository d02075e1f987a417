"""From the section ``evaluation`` of a configuration to what samples are measured with."""

from pathlib import Path

from data import dataset_options
from evaluation import (
    Extractor,
    Parts,
    Reference,
    choose_extractor,
    describe_data,
    describe_reference,
    fingerprint,
    identity,
    inception,
    is_published,
    make_reference,
    own_extractor,
    published_reference,
    read_reference,
    reference_name,
    trained_classifier,
)
from modes.digest import digest
from modes.run import Run
from modes.sampler_settings import build_sampler
from training import builders, locked

MOST_STEPS = 1_000_000
"""Of a sampler that is compared: more is a slip."""


def check_evaluation_settings(run: Run) -> None:
    """Fail now on settings of the evaluation that cannot work."""
    settings = run.config.evaluation
    extractor_name(run)
    file = Path(settings.reference).expanduser()
    if settings.reference and not file.is_file():
        raise FileNotFoundError(
            f"evaluation.reference is {settings.reference}, but there is no such file; leave it empty to make it of "
            "the data"
        )
    if settings.reference and not len(run.experiment.dataset) and not is_published(file):
        raise ValueError(
            f"evaluation.reference is {file}, which holds features of data that must be here too, and the run has "
            "none: give these data, as --config.data.name=folder --config.data.root=FOLDER, or a file of "
            "published moments mu and sigma"
        )
    if not settings.reference:
        dataset = builders.build_dataset(run.config, settings.split)
        if min(settings.reference_images or len(dataset), len(dataset)) < 2:
            raise ValueError(
                f"evaluation.reference_images is {settings.reference_images}, of the {len(dataset)} samples of "
                f"{dataset.name} {settings.split}; samples are compared with 2 at least (0: all)"
            )


def extractor_name(run: Run) -> str:
    """``evaluation.extractor``, or the one that fits the data."""
    dataset = run.experiment.dataset
    labelled = bool(dataset.num_classes or dataset.num_attributes) and len(dataset) > 0
    return choose_extractor(run.config.evaluation.extractor, dataset.shape, dataset.quantizer, labelled, dataset.name)


def compared(run: Run) -> list[Run]:
    """The same run once for each sampler of ``evaluation.compare``, or as it is; each draws ``evaluation.num_images``.

    Raises:
        ValueError: no list of samplers and steps, or a sampler that does not work with these settings.
    """
    found = []
    wanted = run.config.evaluation.compare
    for word in dict.fromkeys(map(str.strip, wanted.split(","))):  # each once
        name, colon, steps = word.partition(":")
        if (wanted and not name) or (colon and not (steps.isdecimal() and 0 < int(steps) <= MOST_STEPS)):
            raise ValueError(
                f"evaluation.compare has {word!r}; give samplers, with their steps (1 to "
                f"{MOST_STEPS}) where these are not those of sampling.steps, as deis:10,heun:18,ode"
            )
        changes: dict[str, str | int] = {"sampler": name} if name else {}
        changes |= {"steps": int(steps)} if steps else {}
        found.append(with_sampling(run, num_images=run.config.evaluation.num_images, **changes))
        build_sampler(found[-1].config, run.experiment.sde)
    return found


def with_sampling(run: Run, **changes: str | int) -> Run:
    """The same run with other settings of ``sampling``."""
    config = run.config.copy_and_resolve_references()
    for key, value in changes.items():
        config.sampling[key] = value
    return run.configured(config)


def place(run: Run) -> Path:
    """Where references and classifiers lie: beside the converted images, for all runs, or in this run's folder."""
    cache = run.config.data.cache
    return Path(cache).expanduser() / "evaluation" if cache else run.folder.evaluation


def build_extractor(run: Run) -> Extractor:
    """The network that makes features.

    Raises:
        ImportError, FileNotFoundError, ValueError: see the extractors.
    """
    name, device = extractor_name(run), run.experiment.device
    if name == "identity":
        return identity()
    if name == "inception":
        return inception(run.config.evaluation.weights, device)
    return _classifier(run) if name == "classifier" else own_extractor(name, device)


def _classifier(run: Run) -> Extractor:
    train, seed = run.experiment.dataset, run.config.evaluation.classifier_seed
    heldout = builders.build_dataset(run.config, run.config.likelihood.split)
    key = digest([fingerprint(train, len(train)), train.num_classes, train.num_attributes, train.label_names, seed], 6)
    path = place(run) / f"classifier_{train.name.replace('/', '_')}_{key}.safetensors"
    return trained_classifier(train, heldout, path, seed=seed, device=run.experiment.device, first=run.rank == 0)


def build_reference(run: Run, extractor: Extractor) -> Reference:
    """What samples are compared with: the file that is given, or features of the data.

    Raises:
        FileNotFoundError, ValueError: see ``evaluation.reference``.
    """
    settings = run.config.evaluation
    file = Path(settings.reference).expanduser()
    if settings.reference and is_published(file):
        return published_reference(file, extractor)
    dataset = builders.build_dataset(run.config, settings.split)
    crop = {"crop": run.config.data.crop} if "crop" in dataset_options(run.config.data.name) else {}
    described = describe_data(dataset, settings.reference_images, settings.split, **crop)
    about = describe_reference(described, extractor)
    if settings.reference:
        return read_reference(file, about)
    path = place(run) / reference_name(about)
    parts = Parts(path.with_name(f".{path.stem}"))
    if not path.exists():
        with locked(parts.folder):
            make_reference(dataset, extractor, about, path, parts)
    elif parts.folder.exists():  # the one before was ended, or could not write, between the two
        parts.remove()
    return read_reference(path, about)
