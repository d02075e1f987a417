"""Command line: flags -> build -> mode. No mathematics, no loop.

python run_lib.py --mode=train                                   train, sample and score the default: digits
python run_lib.py --mode=sample --sampler=pc
python run_lib.py --mode=likelihood
python run_lib.py --mode=train --config=configs/celeba64.py --config.data.root=FOLDER --workdir=runs/faces
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # another project's `models` must never win

import glob
import json
import re
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from configs import default
from evaluation import Generated, Trajectory, evaluate_likelihood, generate, picture, save_picture
from models import ScoreModel
from samplers import SAMPLERS, Progress
from sde_lib import lookup
from training import Metrics, RunFolder, builders, estimate_memory, load_checkpoint, load_weights, settings, train
from training.builders import Experiment

HOME = Path(__file__).resolve().parent
DEFAULT_RECIPE = "configs/digits.py"
FLAGS = flags.FLAGS

flags.DEFINE_enum("mode", None, ["train", "sample", "likelihood"], "What to do with the run.")
flags.DEFINE_string("workdir", None, "Run folder. Default: runs/NAME for configs/NAME.py, or that of --checkpoint.")
flags.DEFINE_string("sampler", None, f"Sampler, in place of config.sampling.sampler: {', '.join(SAMPLERS)}.")
flags.DEFINE_string("checkpoint", None, "Checkpoint folder to use. Default: the newest of the run.")
flags.DEFINE_bool("dry_run", False, "Print the resolved configuration, parameter count and memory estimate, and leave.")
flags.DEFINE_bool("traceback", False, "On an error, show where it arose.")
config_flags.DEFINE_config_file(
    "config", None, "Recipe, as FILE.py or FILE.py:ARGUMENT. Default: that of the run folder, else configs/digits.py."
)


def main(argv: Sequence[str]) -> None:
    """Run one mode; what a user can mend is one line on stderr, and exit status 1."""
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("several processes (torchrun) are not supported; start run_lib.py once, without torchrun")
        config = FLAGS.config
        if FLAGS.sampler is not None:
            config.sampling.sampler = FLAGS.sampler
        settings.check(config.to_dict(), default.get_config().to_dict())
        folder = RunFolder(run_path(), config.training.keep_checkpoints)
        experiment = builders.build_experiment(config)
        if FLAGS.dry_run:
            dry_run(config, folder, experiment)
        else:
            MODES[FLAGS.mode](config, folder, experiment)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        if FLAGS.traceback:
            raise
        fail(f"{error} (--traceback shows where)", status=1)
    except KeyboardInterrupt:
        fail("interrupted; what was saved before is untouched", status=130)


def run_train(config: ConfigDict, folder: RunFolder, experiment: Experiment) -> None:
    """Train (or go on), then draw samples and score held-out data with the result."""
    state = builders.build_state(config, experiment.model)
    options = builders.build_options(config, experiment.dataset)
    loss_fn = builders.build_loss(config, experiment.sde)
    check_evaluation(config, experiment)
    changes, start = folder.changes(config.to_dict()), folder.starting_point(FLAGS.checkpoint)
    if start is not None:
        state.load(start)
        print(f"continuing {folder.path} from step {state.step}")
    folder.store_config(config.to_dict())
    for change in changes:
        print(f"changed since this run began: {change}")
    print(describe(config, folder, experiment), flush=True)
    if state.step >= options.steps:
        print(f"nothing to train: {state.step} steps are done, and training.steps is {options.steps}")
    with Metrics(folder.path, state.step) as metrics:

        def on_sample(step: int) -> None:
            pixels = picture(draw(config, experiment, state.ema.model).x, experiment.dataset.quantizer)
            metrics.picture(step, "samples", pixels)
            save_picture(pixels, folder.samples / f"step_{step:08d}.png")

        reason = train(
            state,
            loss_fn,
            experiment.dataset,
            options,
            folder.checkpoints,
            metrics,
            device=experiment.device,
            on_sample=on_sample,
        )
    again, sampling, scoring = (command(mode, folder) for mode in ("train", "sample", "likelihood"))
    if reason in ("SIGINT", "SIGTERM"):
        print(f"stopped by {reason} after step {state.step} of {options.steps}; all is saved. To go on: {again}")
        return
    if reason == "time limit":
        minutes = f"{options.time_limit:g} minutes"
        print(f"time limit of {minutes} reached after step {state.step} of {options.steps}; all is saved")
    sample(config, folder, experiment, state.ema.model, f"step {state.step}")
    score(config, folder, experiment, state.ema.model)
    print("next:")
    if reason == "time limit":
        print(f"  {again}   # goes on to step {options.steps}")
    print(f"  {sampling} --sampler=dpmpp_sde   # or ode, ancestral, pc, ...")
    print(f"  {scoring} --config.likelihood.probes=4")
    print(f"  {again} --config.training.steps={2 * options.steps}   # trains on")
    print(f"  tensorboard --logdir={shlex.quote(str(folder.path))}")


def run_sample(config: ConfigDict, folder: RunFolder, experiment: Experiment) -> None:
    """Draw samples of a trained run with any sampler."""
    check_evaluation(config, experiment)
    model = trained_model(config, folder, experiment)
    sample(config, folder, experiment, model, str(folder.checkpoint(FLAGS.checkpoint)))


def run_likelihood(config: ConfigDict, folder: RunFolder, experiment: Experiment) -> None:
    """Score held-out data with a trained run."""
    check_evaluation(config, experiment)
    score(config, folder, experiment, trained_model(config, folder, experiment))


MODES: dict[str, Callable[[ConfigDict, RunFolder, Experiment], None]] = {
    "train": run_train,
    "sample": run_sample,
    "likelihood": run_likelihood,
}


def sample(config: ConfigDict, folder: RunFolder, experiment: Experiment, model: ScoreModel, source: str) -> None:
    """Write a picture of samples, the samples themselves, and how they came about."""
    moments, quantizer = config.sampling.trajectory, experiment.dataset.quantizer
    images = 4 if quantizer else config.sampling.batch_size  # points make a picture only together
    trajectory = Trajectory(experiment.sde, moments, images) if moments else None
    result = draw(config, experiment, model, trajectory)
    settings_used, mark = builders.sampler_settings(config, default.get_config(), experiment.sde)
    name = f"{config.sampling.sampler}_{result.nfe}nfe_seed{config.sampling.seed}{mark}"
    path = save_picture(picture(result.x, quantizer), folder.samples / f"{name}.png")
    values = result.x if quantizer is None else quantizer.to_uint8(result.x)
    np.savez_compressed(path.with_suffix(".npz"), samples=values.numpy())
    provenance = {"checkpoint": source, "process": repr(experiment.sde), "nfe": result.nfe, **settings_used}
    path.with_suffix(".json").write_text(json.dumps(provenance, indent=1))
    unused = builders.unused_settings(config, default.get_config())
    if unused:
        print(f"note: {config.sampling.sampler} makes no use of the settings {', '.join(unused)}")
    for old in folder.samples.glob(f"{glob.escape(name)}_trajectory.*"):
        old.unlink()  # of other samples
    if trajectory is not None:
        trajectory.save(result.x, quantizer, folder.samples / f"{name}_trajectory")
    print(
        f"{len(result.x)} samples by {config.sampling.sampler}, {result.nfe} network evaluations each: {path}",
        flush=True,
    )


def draw(
    config: ConfigDict,
    experiment: Experiment,
    model: ScoreModel,
    on_step: Callable[[int, Progress], None] | None = None,
) -> Generated:
    """Samples as the section ``sampling`` asks for; the classes take turns where the model knows them."""
    sampling, classes = config.sampling, experiment.dataset.num_classes
    return generate(
        builders.build_sampler(config, experiment.sde),
        experiment.sde,
        model,
        experiment.dataset.shape,
        sampling.num_images,
        batch_size=sampling.batch_size,
        labels=torch.arange(sampling.num_images) % classes if config.model.conditional else None,
        seed=sampling.seed,
        device=experiment.device,
        on_step=on_step,
    )


def score(config: ConfigDict, folder: RunFolder, experiment: Experiment, model: ScoreModel) -> None:
    """Bits/dim of held-out data (given its labels, for a conditional model), always in float32."""
    likelihood = config.likelihood
    log_prob = builders.build_log_prob(config, experiment.sde)
    conditional = config.model.conditional
    model.precision = "float32"
    report = evaluate_likelihood(
        lambda x, y, generator: log_prob(partial(model, y=y if conditional else None), x, generator=generator),
        builders.build_dataset(config, likelihood.split),
        num_images=likelihood.num_images,
        batch_size=likelihood.batch_size,
        seed=likelihood.seed,
        device=experiment.device,
    )
    path = folder.likelihood / f"{likelihood.split}_seed{likelihood.seed}.json"
    report.save(path, settings=likelihood.to_dict(), process=repr(experiment.sde))
    print(
        f"{report} of the split {likelihood.split!r}, {report.nfe} network evaluations, {report.seconds:.0f} s: {path}",
        flush=True,
    )


def trained_model(config: ConfigDict, folder: RunFolder, experiment: Experiment) -> ScoreModel:
    """The averaged weights of a checkpoint, ready for use."""
    folder.changes(config.to_dict(), fixed=("sde", "model"))
    path = folder.checkpoint(FLAGS.checkpoint)
    load_weights(experiment.model, load_checkpoint(path)[0]["ema"], path)
    print(f"using the averaged weights of {path}", flush=True)
    return experiment.model.eval().requires_grad_(False)


def dry_run(config: ConfigDict, folder: RunFolder, experiment: Experiment) -> None:
    """Show what would run, and write nothing."""
    options = builders.build_options(config, experiment.dataset)
    builders.build_loss(config, experiment.sde)
    check_evaluation(config, experiment)
    print(config.to_json(indent=2))
    print(describe(config, folder, experiment))
    part = options.batch_size // options.accumulation
    print(f"memory: about {estimate_memory(experiment.model, experiment.dataset.shape, part)}")


def check_evaluation(config: ConfigDict, experiment: Experiment) -> None:
    """Fail now, and not after the training, on settings that only sampling and likelihood use."""
    builders.build_sampler(config, experiment.sde)
    builders.build_log_prob(config, experiment.sde)
    builders.build_dataset(config, config.likelihood.split)


def describe(config: ConfigDict, folder: RunFolder, experiment: Experiment) -> str:
    """One line: what is trained on what, how long, and where it goes."""
    options = builders.build_options(config, experiment.dataset)
    parameters = sum(p.numel() for p in experiment.model.parameters())
    return (
        f"{config.model.name} of {parameters:,} parameters ({experiment.model.precision}, {experiment.device}), "
        f"{len(experiment.dataset)} training samples of {experiment.dataset.name} {experiment.dataset.shape}, "
        f"{experiment.sde!r}, {options.steps} steps of {options.batch_size}, run folder {folder.path}"
    )


# The command line itself: finding the recipe, and one line for every mistake.


def cli() -> None:
    """Entry point."""
    try:  # overrides are looked up in sys.argv, not in what app.run is given
        sys.argv = with_recipe(FLAGS.read_flags_from_files(sys.argv))
    except (flags.Error, OSError) as error:
        fail(str(error), status=2)
    app.run(main, argv=sys.argv, flags_parser=parse_flags)


def with_recipe(argv: Sequence[str]) -> list[str]:
    """The arguments with an explicit --config in front, whose path exists.

    Without --config, a run folder that exists brings its own configuration. A recipe's path is tried as it is, then
    beside this file.
    """
    program, *rest = _joined(argv)
    given = [arg for arg in rest if arg.startswith("--config=")]
    others = [arg for arg in rest if not arg.startswith("--config=")]
    if given:
        recipe = _existing(given[-1].removeprefix("--config="))
    else:
        flag = {
            name: arg.partition("=")[2]
            for arg in others
            for name in ("workdir", "checkpoint")
            if arg.startswith(f"--{name}=")
        }
        stored = (named_folder(**flag) or default_path(DEFAULT_RECIPE)) / "config.json"
        recipe = f"{HOME}/configs/stored.py:{stored}" if stored.is_file() else _existing(DEFAULT_RECIPE)
    return [program, f"--config={recipe}", *others]


def _joined(argv: Sequence[str]) -> list[str]:
    """Write "--flag value" as "--flag=value" for the flags that are needed before parsing; "-flag" as "--flag"."""
    joined: list[str] = []
    items = iter(argv)
    for item in items:
        item = re.sub(r"^--?(?=(config|workdir|checkpoint)(=|$))", "--", item)
        value = next(items, None) if item in ("--config", "--workdir", "--checkpoint") else None
        joined.append(item if value is None else f"{item}={value}")
    return joined


def _existing(recipe: str) -> str:
    file, colon, argument = recipe.partition(":")
    found = next((p for p in (Path(os.path.expanduser(file)), HOME / file) if p.is_file()), None)
    if found is None:
        known = ", ".join(
            f"configs/{p.name}" for p in sorted((HOME / "configs").glob("[!_]*.py")) if p.stem != "stored"
        )
        fail(f"--config={recipe}: there is no file {file}; give a recipe of your own, or one of {known}", status=2)
    return f"{found}{colon}{argument}"


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse, and turn every mistake into one line."""
    recipe = argv[1].removeprefix("--config=")
    try:
        config = FLAGS["config"].parser.parse(recipe)  # alone at first: what fails here is the recipe's own fault
        if not hasattr(config, "to_dict"):
            raise TypeError(f"get_config() returned {config!r}; it must return a ConfigDict")
    except Exception as error:  # a recipe is a program: it may raise anything
        fail(f"{recipe.rpartition('stored.py:')[2]}: {_fault(error)}", status=2)
    try:
        for arg in argv[2:]:
            _check_override(arg, config)
        rest = FLAGS(argv)
    except (flags.Error, ValueError, TypeError) as error:
        fail(str(error), status=2)
    for name in ("workdir", "checkpoint"):
        if FLAGS[name].value == "":
            fail(f"--{name}= is empty; give a folder, or leave it out", status=2)
    if FLAGS.mode is None:
        fail(f"--mode is missing; give one of {', '.join(f'--mode={mode}' for mode in MODES)}", status=2)
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r}; options are written --name=value (--help lists them)", status=2)
    return rest


def _check_override(arg: str, config: ConfigDict) -> None:
    """Raise ValueError unless an argument --config.SECTION.KEY=VALUE names a key; other arguments pass."""
    match = re.match(r"--?(?:no)?config\.([^=]*)", arg)
    node = config
    for depth, key in enumerate(match[1].split(".") if match else ()):
        above = ".".join(["config", *match[1].split(".")[:depth]])
        if not isinstance(node, ConfigDict):
            raise ValueError(f"{arg}: {above} is a value, not a section")
        node = lookup(node, key, f"key of {above}:")
    if match and isinstance(node, ConfigDict):
        raise ValueError(f"{arg}: {match[1]} is a section; set its keys one by one, as --config.{match[1]}.KEY=VALUE")


def _fault(error: Exception) -> str:
    """Type and text of what a recipe raised; ml_collections may have put the whole traceback into the text."""
    text = str(error).strip()
    return text.splitlines()[-1] if "Traceback" in text else f"{type(error).__name__}: {text}"


def run_path() -> Path:
    """The run folder: --workdir, that of --checkpoint, or runs/ and the recipe's name."""
    named = named_folder(FLAGS.workdir, FLAGS.checkpoint)
    if named is not None:
        return named
    recipe = config_flags.get_config_filename(FLAGS["config"])
    file, _, argument = recipe.partition(":")
    return Path(argument).parent if Path(file).stem == "stored" else default_path(recipe)


def named_folder(workdir: str | None = None, checkpoint: str | None = None) -> Path | None:
    """The run folder that --workdir names, or --checkpoint (FOLDER/checkpoints/step_XXXXXXXX)."""
    if workdir:
        return Path(os.path.expanduser(workdir))
    return Path(os.path.normpath(Path(os.path.expanduser(checkpoint), "..", ".."))) if checkpoint else None


def default_path(recipe: str) -> Path:
    """The folder runs/NAME or runs/NAME-ARGUMENT for a recipe NAME.py:ARGUMENT."""
    file, _, argument = recipe.partition(":")
    return Path("runs") / "-".join(filter(None, [Path(file).stem, re.sub(r"[^\w.]+", "-", argument).strip("-")]))


def command(mode: str, folder: RunFolder) -> str:
    """The command for a mode on this run, as it can be typed; the run brings its own configuration."""
    words = ["python", sys.argv[0], f"--mode={mode}"]
    return shlex.join(words if folder.path == default_path(DEFAULT_RECIPE) else [*words, f"--workdir={folder.path}"])


def fail(message: str, status: int) -> NoReturn:
    """Print one line, and leave."""
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    sys.exit(status)


if __name__ == "__main__":
    cli()
