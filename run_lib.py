"""Command line: flags -> build -> mode. No mathematics, no loop.

python run_lib.py --mode=train                                   train, sample and score the default: digits
python run_lib.py --mode=sample --sampler=pc
python run_lib.py --mode=likelihood
python run_lib.py --mode=train --config=configs/celeba64.py --config.data.root=FOLDER --workdir=runs/faces
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # another project's `models` must never win

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from configs import default
from evaluation import Generated, evaluate_likelihood, generate, picture, save_picture
from models import ScoreModel
from sde_lib import log_likelihood
from training import Metrics, RunFolder, builders, estimate_memory, load_checkpoint, load_weights, settings, train
from training.builders import Experiment

HOME = Path(__file__).resolve().parent
DEFAULT_RECIPE = "configs/digits.py"
FLAGS = flags.FLAGS

flags.DEFINE_enum("mode", None, ["train", "sample", "likelihood"], "What to do with the run.")
flags.DEFINE_string("workdir", None, "Run folder. Default: runs/NAME for configs/NAME.py, or that of --checkpoint.")
flags.DEFINE_string("sampler", None, "Sampler, in place of config.sampling.sampler.")
flags.DEFINE_string("checkpoint", None, "Checkpoint folder to use. Default: the newest of the run.")
flags.DEFINE_bool("dry_run", False, "Print the resolved configuration, parameter count and memory estimate, and leave.")
flags.DEFINE_bool("traceback", False, "On an error, show where it arose.")
config_flags.DEFINE_config_file(
    "config", None, "Recipe, as FILE.py or FILE.py:ARGUMENT. Default: that of the run folder, else configs/digits.py."
)


def main(argv: Sequence[str]) -> None:
    """Run one mode; what a user can mend is one line on stderr, and exit status 1."""
    try:
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
    builders.build_sampler(config)  # a wrong setting should fail now, not after the training
    for change in folder.store_config(config.to_dict()):
        print(f"changed since this run began: {change}")
    if FLAGS.checkpoint or folder.checkpoints.latest() is not None:
        state.load(folder.checkpoint(FLAGS.checkpoint))
        print(f"continuing {folder.path} from step {state.step}")
    print(describe(config, folder, experiment), flush=True)
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
    again = f"python run_lib.py --mode=train{selectors()}"
    if reason in ("SIGINT", "SIGTERM"):
        print(f"stopped by {reason} after step {state.step} of {options.steps}; all is saved. To go on: {again}")
        return
    if reason == "time limit":
        minutes = f"{options.time_limit:g} minutes"
        print(f"time limit of {minutes} reached after step {state.step} of {options.steps}; all is saved")
    sample(config, folder, experiment, state.ema.model)
    score(config, folder, experiment, state.ema.model)
    print("next:")
    if reason == "time limit":
        print(f"  {again}   # goes on to step {options.steps}")
    print(f"  python run_lib.py --mode=sample --sampler=pc{selectors()}   # or ancestral, reverse_diffusion, ode, ...")
    print(f"  python run_lib.py --mode=likelihood{selectors()} --config.likelihood.probes=4")
    print(f"  python run_lib.py --mode=train{selectors()} --config.training.steps={2 * options.steps}   # trains on")
    print(f"  tensorboard --logdir={folder.path}")


def run_sample(config: ConfigDict, folder: RunFolder, experiment: Experiment) -> None:
    """Draw samples of a trained run with any sampler."""
    builders.build_sampler(config)
    sample(config, folder, experiment, trained_model(folder, experiment))


def run_likelihood(config: ConfigDict, folder: RunFolder, experiment: Experiment) -> None:
    """Score held-out data with a trained run."""
    score(config, folder, experiment, trained_model(folder, experiment))


MODES: dict[str, Callable[[ConfigDict, RunFolder, Experiment], None]] = {
    "train": run_train,
    "sample": run_sample,
    "likelihood": run_likelihood,
}


def sample(config: ConfigDict, folder: RunFolder, experiment: Experiment, model: ScoreModel) -> None:
    """Write a picture of samples, and the samples themselves."""
    result = draw(config, experiment, model)
    quantizer = experiment.dataset.quantizer
    name = f"{config.sampling.sampler}_{result.nfe}nfe_seed{config.sampling.seed}"
    path = save_picture(picture(result.x, quantizer), folder.samples / f"{name}.png")
    values = result.x if quantizer is None else quantizer.to_uint8(result.x)
    np.savez_compressed(path.with_suffix(".npz"), samples=values.numpy())
    print(
        f"{len(result.x)} samples by {config.sampling.sampler}, {result.nfe} network evaluations each: {path}",
        flush=True,
    )


def draw(config: ConfigDict, experiment: Experiment, model: ScoreModel) -> Generated:
    """Samples as the section ``sampling`` asks for."""
    sampling = config.sampling
    return generate(
        builders.build_sampler(config),
        experiment.sde,
        model,
        experiment.dataset.shape,
        sampling.num_images,
        batch_size=sampling.batch_size,
        seed=sampling.seed,
        device=experiment.device,
    )


def score(config: ConfigDict, folder: RunFolder, experiment: Experiment, model: ScoreModel) -> None:
    """Bits/dim of held-out data as the section ``likelihood`` asks for, always in float32."""
    likelihood = config.likelihood
    keys = ("divergence", "probes", "noise", "method", "steps", "rtol", "atol", "max_nfe")
    options = {key: likelihood[key] for key in keys}
    model.precision = "float32"
    report = evaluate_likelihood(
        lambda x, generator: log_likelihood(experiment.sde, model, x, generator=generator, **options),
        builders.build_dataset(config, likelihood.split),
        num_images=likelihood.num_images,
        batch_size=likelihood.batch_size,
        seed=likelihood.seed,
        device=experiment.device,
    )
    path = folder.likelihood / f"{likelihood.split}_seed{likelihood.seed}.json"
    report.save(path)
    print(
        f"{report.bits_per_dim:.4f} ± {report.std_error:.4f} bits/dim on {report.images} images of the split "
        f"{likelihood.split!r}, {report.nfe} network evaluations, {report.seconds:.0f} s: {path}",
        flush=True,
    )


def trained_model(folder: RunFolder, experiment: Experiment) -> ScoreModel:
    """The averaged weights of a checkpoint, ready for use."""
    path = folder.checkpoint(FLAGS.checkpoint)
    load_weights(experiment.model, load_checkpoint(path)[0]["ema"], path)
    print(f"using the averaged weights of {path}", flush=True)
    return experiment.model.eval().requires_grad_(False)


def dry_run(config: ConfigDict, folder: RunFolder, experiment: Experiment) -> None:
    """Show what would run, and write nothing."""
    options = builders.build_options(config, experiment.dataset)
    builders.build_loss(config, experiment.sde)
    builders.build_sampler(config)
    print(config.to_json(indent=2))
    print(describe(config, folder, experiment))
    part = options.batch_size // options.accumulation
    print(f"memory: about {estimate_memory(experiment.model, experiment.dataset.shape, part)}")


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
    sys.argv = with_recipe(sys.argv)  # overrides are looked up in sys.argv, not in what app.run is given
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
        folder = Path(
            flag.get("workdir")
            or (Path(flag["checkpoint"]).parent.parent if "checkpoint" in flag else default_path(DEFAULT_RECIPE))
        )
        stored = folder / "config.json"
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
    found = next((p for p in (Path(file), HOME / file) if p.is_file()), None)
    if found is None:
        known = ", ".join(
            f"configs/{p.name}" for p in sorted((HOME / "configs").glob("[!_]*.py")) if p.stem != "stored"
        )
        fail(f"--config={recipe}: there is no file {file}; give a recipe of your own, or one of {known}", status=2)
    return f"{found}{colon}{argument}"


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parse, and turn every mistake into one line."""
    for arg in argv[1:]:
        section = re.match(r"--config\.(\w+)=", arg)
        if section and isinstance(default.get_config().get(section[1]), ConfigDict):
            fail(
                f"{arg}: {section[1]} is a section; set its keys one by one, as --config.{section[1]}.KEY=VALUE",
                status=2,
            )
    try:
        rest = FLAGS(argv)
        FLAGS.config  # noqa: B018  (a recipe that failed to load says so at the first look)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        fail(_readable(error), status=2)
    if FLAGS.mode is None:
        fail(f"--mode is missing; give one of {', '.join(f'--mode={mode}' for mode in MODES)}", status=2)
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r}; options are written --name=value (--help lists them)", status=2)
    return rest


def _readable(error: Exception) -> str:
    """The last line of the text (what precedes it may be a traceback), without the quoting of a KeyError."""
    text = str(error.args[0]) if isinstance(error, KeyError | AttributeError) and error.args else str(error)
    text = text.replace("\\n", "\n").replace("\\'", "'").replace("''", "'")
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if "Traceback" in text:
        lines = lines[:1] + lines[-1:]
    if isinstance(error, KeyError | AttributeError):
        lines = ["unknown config key", *lines]
    return " ".join(lines)


def run_path() -> Path:
    """The run folder: --workdir, that of --checkpoint, or runs/ and the recipe's name."""
    if FLAGS.workdir:
        return Path(FLAGS.workdir)
    if FLAGS.checkpoint:
        return Path(FLAGS.checkpoint).parent.parent
    recipe = config_flags.get_config_filename(FLAGS["config"])
    file, _, argument = recipe.partition(":")
    return Path(argument).parent if Path(file).stem == "stored" else default_path(recipe)


def default_path(recipe: str) -> Path:
    """The folder runs/NAME or runs/NAME-ARGUMENT for a recipe NAME.py:ARGUMENT."""
    file, _, argument = recipe.partition(":")
    return Path("runs") / "-".join(filter(None, [Path(file).stem, re.sub(r"[^\w.]+", "-", argument).strip("-")]))


def selectors() -> str:
    """The flags that name this run, for the commands that are proposed next."""
    given = [arg for arg in sys.argv[1:] if re.match(r"--(workdir|config)=", arg) and "stored.py:" not in arg]
    return "".join(f" {arg}" for arg in given if arg != f"--config={_existing(DEFAULT_RECIPE)}")


def fail(message: str, status: int) -> NoReturn:
    """Print one line, and leave."""
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    sys.exit(status)


if __name__ == "__main__":
    cli()
