"""Command line: flags -> build -> mode. No mathematics, no loop.

python run_lib.py --mode=train                                   train, sample and score the default: digits
python run_lib.py --mode=doctor                                  look at the data and the process before that
python run_lib.py --mode=sample --sampler=pc
python run_lib.py --mode=likelihood --config.likelihood.estimate=all
python run_lib.py --mode=dequantizer                             train one, for tighter bits/dim
python run_lib.py --mode=evaluate                                samples against data: FID and others
python run_lib.py --mode=average                                 the best of several averages of the weights
python run_lib.py --mode=interpolate
python run_lib.py --mode=edit --image=PICTURE --mask=PICTURE            restore, vary or relabel an image
python run_lib.py --mode=import --source=ddpm-cifar10-32         a run of published weights
python run_lib.py --mode=export                                  the trained run for diffusers, and as one file
python run_lib.py --mode=report                                  report.html anew, which every mode makes in the end
python run_lib.py --mode=train --config=configs/celeba64.py --config.data.root=FOLDER --workdir=runs/faces
python run_lib.py --mode=train --config.training.steps=300       so is every setting of configs/default.py a flag
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # another project's `models` must never win

import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from ml_collections import ConfigDict, config_flags
from safetensors import SafetensorError

from configs import default
from modes import FORMATS, MODES, SHARED, Run, conclude, dry_run, import_files, read_source
from samplers import SAMPLERS
from sde_lib import lookup
from training import RunFolder, settings
from training.processes import first_to_say

HOME = Path(__file__).resolve().parent
DEFAULT_RECIPE = "configs/digits.py"
WITHOUT_DATA = ("configs/default.py", "--config.data.name=none")
"""What weights of another project start from."""
PROCESSES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
"""What torchrun tells each process, and what one alone assumes."""
FLAGS = flags.FLAGS

flags.DEFINE_enum("mode", None, list(MODES), "What to do with the run.")
flags.DEFINE_string("workdir", None, "Run folder. Default: runs/NAME for configs/NAME.py, or that of --checkpoint.")
flags.DEFINE_string("sampler", None, f"Sampler, in place of config.sampling.sampler: {', '.join(SAMPLERS)}.")
flags.DEFINE_string("checkpoint", None, "Checkpoint folder to use. Default: the newest of the run.")
flags.DEFINE_string("source", None, "Weights of another project, for --mode=import: a file, or a folder of diffusers.")
flags.DEFINE_string("source_format", "auto", f"Their format: auto, {', '.join(FORMATS)}.")
flags.DEFINE_string("source_config", None, "Their settings, where the file has none: a published name, or a JSON file.")
flags.DEFINE_string("image", None, "Image for --mode=edit: a picture, or the number of a held-out image of the data.")
flags.DEFINE_string(
    "mask", None, "What of it is made anew: a picture, white there; or left, right, top, bottom, center."
)
flags.DEFINE_bool("dry_run", False, "Print the resolved configuration and what a training of it takes, and leave.")
flags.DEFINE_bool("traceback", False, "On an error, show where it arose.")
config_flags.DEFINE_config_file(
    "config", None, "Recipe, as FILE.py or FILE.py:ARGUMENT. Default: that of the run folder, else configs/digits.py."
)


def main(argv: Sequence[str], typed: Sequence[str]) -> None:
    """Run one mode; what a user can mend is one line on stderr, and exit status 1."""
    began = time.monotonic()
    if not FLAGS.traceback:  # TensorBoard's thread tells of its error at the next call too
        threading.excepthook = lambda failed: None
    try:
        run = build_run(FLAGS.config)
        if FLAGS.dry_run:
            dry_run(run, scores=FLAGS.mode in ("train", "likelihood"))
        else:
            MODES[FLAGS.mode](run)
            if FLAGS.mode not in ("report", "doctor"):  # which look, and change nothing
                conclude(run, FLAGS.mode, typed, time.monotonic() - began)
    except (ValueError, TypeError, OSError, RuntimeError, SafetensorError, MemoryError) as error:
        if FLAGS.traceback:
            raise
        fail(f"{str(error) or type(error).__name__} (--traceback shows where)", status=1)
    except KeyboardInterrupt:
        fail("interrupted; what was saved before is untouched", status=130)


def build_run(config: ConfigDict) -> Run:
    """Check the configuration, and build what it describes."""
    rank, world_size, local = processes()
    if world_size > 1 and FLAGS.mode not in SHARED:
        shared = f"{', '.join(SHARED[:-1])} and {SHARED[-1]}"
        raise ValueError(
            f"several processes (torchrun) share the work of --mode={shared} only; start --mode={FLAGS.mode} once, "
            "without torchrun"
        )
    if world_size > 1 and "RANK" not in os.environ:  # it would wait for the others for ever
        raise ValueError(f"WORLD_SIZE is {world_size}, but there is no RANK; start with torchrun, or unset WORLD_SIZE")
    if FLAGS.sampler is not None:
        config.sampling.sampler = config.editing.sampler = FLAGS.sampler
    documented = default.get_config()
    source = None
    if FLAGS.mode == "import":
        source, config = read_source(config, FLAGS.source, FLAGS.source_format, FLAGS.source_config)
    elif FLAGS.source is not None:
        raise ValueError(f"--source is for --mode=import; --mode={FLAGS.mode} works on a run folder, --workdir")
    if FLAGS.mode == "doctor":
        config.data.cache = ""  # it looks at the files themselves, and leaves no others
    if FLAGS.mode != "edit" and (FLAGS.image is not None or FLAGS.mask is not None):
        raise ValueError(f"--image and --mask are for --mode=edit; --mode={FLAGS.mode} has no use for them")
    settings.check(config.to_dict(), documented.to_dict())
    folder = RunFolder(run_path(), config.training.keep_checkpoints)
    stored = Path(config_flags.get_config_filename(FLAGS["config"]).partition(":")[0]).stem == "stored"
    stored = stored and not any(re.match(r"--?config\.imports=", argument) for argument in sys.argv)
    config.imports, own = import_files(config.imports, HOME, folder.path, stored=stored)
    place = () if folder.path == default_path(DEFAULT_RECIPE) else (f"--workdir={folder.path}",)
    run = Run(
        config,
        documented,
        folder,
        FLAGS.checkpoint,
        place,
        rank,
        world_size,
        local if world_size > 1 else None,
        own,
        source,
        FLAGS.image,
        FLAGS.mask,
    )
    if FLAGS.mode != "report" and not FLAGS.dry_run:
        _ = run.experiment  # what cannot be built fails before anything is written
    return run


def processes() -> tuple[int, int, int]:
    """What torchrun tells: the number of this process, how many there are, and its number on this machine."""
    told = {name: os.environ.get(name, alone) for name, alone in PROCESSES}
    if not all(value.isdecimal() for value in told.values()) or int(told["RANK"]) >= int(told["WORLD_SIZE"]):
        listing = " ".join(f"{name}={value}" for name, value in told.items())
        raise ValueError(f"the environment has {listing}; start with torchrun, or unset these variables")
    return int(told["RANK"]), int(told["WORLD_SIZE"]), int(told["LOCAL_RANK"])


# The command line itself: finding the recipe, and one line for every mistake.


def cli() -> None:
    """Entry point."""
    typed = sys.argv[:]
    try:  # overrides are looked up in sys.argv, not in what app.run is given
        sys.argv = with_recipe(FLAGS.read_flags_from_files(sys.argv))
    except (flags.Error, OSError) as error:
        fail(str(error), status=2)
    app.run(lambda argv: main(argv, typed), argv=sys.argv, flags_parser=parse_flags)


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
    elif "--mode=import" in others:
        recipe, without = _existing(WITHOUT_DATA[0]), WITHOUT_DATA[1]
        others = [without, *others]
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
        item = re.sub(r"^--?(?=(config|mode|workdir|checkpoint)(=|$))", "--", item)
        value = next(items, None) if item in ("--config", "--mode", "--workdir", "--checkpoint") else None
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
        fail(_taken(str(error), config), status=2)
    for name in ("workdir", "checkpoint", "source", "image", "mask"):
        if FLAGS[name].value == "":
            fail(f"--{name}= is empty; give a path, or leave it out", status=2)
    if FLAGS.mode is None:
        fail(f"--mode is missing; give one of {', '.join(f'--mode={mode}' for mode in MODES)}", status=2)
    if len(rest) > 1:
        fail(f"unexpected argument {rest[1]!r}; options are written --name=value (--help lists them)", status=2)
    return rest


def _check_override(arg: str, config: ConfigDict) -> None:
    """Raise ValueError unless an argument --config.SECTION.KEY=VALUE names a key; other arguments pass."""
    match = re.match(r"--?(?:no)?config\.([^=]*)", arg)
    node = config
    keys = match[1].split(".") if match else []
    for depth, key in enumerate(keys):
        above = ".".join(["config", *keys[:depth]])
        if not isinstance(node, ConfigDict):
            raise ValueError(f"{arg}: {above} is a value, not a section")
        node = lookup(node, key, f"key of {above}:")
    if match and isinstance(node, ConfigDict):
        raise ValueError(f"{arg}: {match[1]} is a section; set its keys one by one, as --config.{match[1]}.KEY=VALUE")


KINDS = {int: "a whole number", float: "a number", bool: "True or False"}
"""Types of settings, in words."""


def _taken(fault: str, config: ConfigDict) -> str:
    """Of a setting whose value cannot be read: what it takes, in place of what Python says of the text."""
    match = re.match(r"flag --config\.(?:(.+?)\.)?(\w+)=(.*?): (invalid literal|could not|\()", fault, re.DOTALL)
    if match is None:
        return fault
    section, key, text, _ = match.groups()
    node = config if section is None else config[section]
    kind, value = KINDS.get(node.get_type(key)), node[key]
    example = "" if value is None else f" such as {value!r}"
    return f"config.{f'{section}.' if section else ''}{key} is {text!r}; it takes {kind}{example}" if kind else fault


def _fault(error: Exception) -> str:
    """Type and text of what a recipe raised; ml_collections may have put the whole traceback into the text."""
    text = str(error).strip()
    return text.splitlines()[-1] if "Traceback" in text else f"{type(error).__name__}: {text}"


def run_path() -> Path:
    """The run folder: --workdir, that of --checkpoint, or runs/ and the name of the recipe, or of what is imported."""
    named = named_folder(FLAGS.workdir, FLAGS.checkpoint)
    if named is not None:
        return named
    if FLAGS.mode == "import":
        source = Path(FLAGS.source).expanduser().absolute()
        return Path("runs") / (source.parent.name if source.stem.startswith("checkpoint") else source.stem)
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


def fail(message: str, status: int) -> NoReturn:
    """Print one line, and leave; of several processes that fail alike, one prints it."""
    line = "error: " + " ".join(message.split())
    if first_to_say(line):
        print(line, file=sys.stderr, flush=True)
    sys.exit(status)


if __name__ == "__main__":
    cli()
