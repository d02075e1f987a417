"""Every mistake is one line on stderr and an exit status; nothing is written, and nothing that was there is lost."""

import os
from pathlib import Path

import pytest

import run_lib

FLAGS = {
    "--bogus=3": "Unknown command line flag 'bogus'",
    "--workdirr=3": "Unknown command line flag 'workdirr'. Did you mean: workdir ?",
    "--mode=tran": f"flag --mode=tran: value should be one of <{'|'.join(run_lib.MODES)}>",
    "--mode=": f"flag --mode=: value should be one of <{'|'.join(run_lib.MODES)}>",
    "--mode": "Missing value for flag --mode",
    "--dry_run=maybe": "flag --dry_run=maybe: ",
    "--workdir=": "--workdir= is empty; give a path, or leave it out",
    "--checkpoint=": "--checkpoint= is empty; give a path, or leave it out",
    "stray": "unexpected argument 'stray'; options are written --name=value",
    "--flagfile=absent": "Unable to open flagfile: [Errno 2] No such file or directory: 'absent'",
}
KEYS = {
    "--config.training.batchsize=3": "unknown key of config.training: 'batchsize'; choose from 'accumulation', ",
    "--config.training.batchsize": "did you mean 'batch_size'?",
    "--config.trainin.batch_size=3": "unknown key of config: 'trainin'; choose from 'averaging', 'data', ",
    "-config.trainin.batch_size=3": "did you mean 'training'?",
    "--config.=3": "unknown key of config: ''; choose from",
    "--config.training.=3": "unknown key of config.training: ''; choose from",
    "--config.seed.more=3": "--config.seed.more=3: config.seed is a value, not a section",
    "--noconfig.data.nope": "unknown key of config.data: 'nope'",
    "--noconfig.seed": "Unknown command line flag 'noconfig.seed'",
    "--config.training=5": "training is a section; set its keys one by one, as --config.training.KEY=VALUE",
    '--config.training={"batch_size": 3}': "training is a section; set its keys one by one",
    "--config.training": "training is a section; set its keys one by one",
    "-config.training=5": "training is a section; set its keys one by one",
}
TYPES = {
    "--config.training.batch_size=8.5": "batch_size is 8.5; it takes a whole number such as 128, or auto",
    "--config.training.batch_size=": "config.training.batch_size is ''; it takes a whole number such as 128, or auto",
    "--config.training.accumulation=True": "accumulation is True; it takes a whole number such as 1, or auto",
    "--config.training.accumulation=few": "accumulation is 'few'; it takes a whole number such as 1, or auto",
    "--config.training.steps=1e3": "config.training.steps is '1e3'; it takes a whole number such as 5000",
    "--config.training.steps=True": "config.training.steps is 'True'; it takes a whole number such as 5000",
    "--config.training.steps=a: b": "config.training.steps is 'a: b'; it takes a whole number such",
    "--config.seed=": "config.seed is ''; it takes a whole number such as 0",
    "--config.training.learning_rate=abc": "config.training.learning_rate is 'abc'; it takes a number such as 0.002",
    "--config.training.learning_rate=None": "config.training.learning_rate is 'None'; it takes a number such as 0.002",
    "--config.sde.beta_min=None": "config.sde.beta_min is 'None'; it takes a number",
    "--config.model.conditional=maybe": "config.model.conditional is 'maybe'; it takes True or False such as False",
    "--config.model.channel_mult=1,a": "config.model.channel_mult is ('1,a',); it takes numbers above 0, such as (1, 2",
    "--config.model.channel_mult=": "config.model.channel_mult is ('',); it takes numbers above 0",
    "--config.model.channel_mult=(1,'2')": "config.model.channel_mult is (1, '2'); it takes numbers above 0",
    "--config.model.channel_mult=0": "config.model.channel_mult is (0,); it takes numbers above 0",
    "--config.model.attention_resolutions=(1.5,2)": "attention_resolutions is (1.5, 2); it takes whole numbers above 0",
}
VALUES = {
    f"--workdir={'x' * 5000}": "File name too long",
    "--config.training.batch_size=0": "config.training.batch_size is 0; it must be at least 1",
    "--config.training.batch_size=-8": "config.training.batch_size is -8; it must be at least 1",
    "--config.training.learning_rate=-1": "config.training.learning_rate is -1.0; it must be above 0",
    "--config.training.learning_rate=nan": "config.training.learning_rate is nan; it must be finite",
    "--config.training.grad_clip=inf": "config.training.grad_clip is inf; it must be finite",
    "--config.training.ema_decay=1": "config.training.ema_decay is 1.0; it must lie in [0, 1)",
    "--config.seed=99999999999999999999": "config.seed is 99999999999999999999; it must fit in 64 bits",
    f"--config.training.steps={'9' * 400}": "it must fit in 64 bits",
    "--config.training.accumulation=5": "a batch of 8 cannot be cut into 5 equal parts",
    "--config.training.averages=0.9,,0.99": "training.averages: '' is no average; give decays in [0, 1) and widths as",
    "--config.training.epochs=3": "training.steps is 12 and training.epochs 3: set one of them, the other to 0",
    "--config.training.steps=0": "training.steps is 0 and training.epochs 0: set one of them",
    "--config.training.decay=exp": "unknown decay 'exp'",
    "--config.training.loss=mse": "unknown training.loss 'mse'",
    "--config.training.weighting=snr": "unknown training.weighting 'snr'",
    "--config.training.time_law=cosine": "unknown training.time_law 'cosine'",
    "--config.data.name=imagenet": "unknown data set 'imagenet'",
    "--config.data.distribution=star": "unknown toy distribution 'star'",
    "--config.data.random_flip=True": "data.random_flip is set, but 'toy/checkerboard' has no images to flip",
    "--config.data.size=100000000000000000": "can't allocate memory",
    "--config.sde.name=None": "unknown process (sde.name) 'None'",
    "--config.sde.sigma_max=3": "sde.sigma_max is set, but the process 'vp' has no such setting",
    "--config.sde.beta_min=-3": "beta_min is -3.0; it must be",
    "--config.model.name=unet": "model.name is 'unet', but one sample of 'toy/checkerboard' has shape (2,)",
    "--config.model.conditional=True": "model.conditional is set, but the data set 'toy/checkerboard' has no labels",
    "--config.model.precision=float16": "unknown precision 'float16'",
    "--config.device=gpu": "device 'gpu' cannot be used",
    "--config.device=meta": "device 'meta' cannot be used",
    "--sampler=eulr": "unknown sampler 'eulr'",
    "--config.sampling.order=7": "order is 7; this method has the orders 1, 2, 3, 4",
    "--config.sampling.grid=1,x": "the times '1,x' are not numbers",
    "--config.sampling.grid=0.1,1": "a time grid needs at least two times that decrease within [0, 1]",
    "--config.sampling.threshold=hard": "unknown threshold 'hard'",
    "--config.sampling.eta=-1.0": "config.sampling.eta is -1.0; it must be at least 0",
    "--config.sampling.quantile=7.0": "quantile 7.0; give limit and rho above 0, quantile in (0, 1]",
    "--sampler=": "unknown sampler ''",
    "--config.sampling.grid=linear": "unknown time grid 'linear'",
    "--config.likelihood.method=rk9": "unknown ODE method 'rk9'",
    "--config.likelihood.divergence=trace": "unknown divergence 'trace'",
    "--config.likelihood.split=validation": "unknown split of toy 'validation'",
    "--config.likelihood.max_nfe=1": "raise max_nfe",
}


@pytest.mark.parametrize(
    ("argument", "message", "status"),
    [
        *[(argument, message, 2) for table in (FLAGS, KEYS) for argument, message in table.items()],
        *[(argument, message, None) for table in (TYPES, VALUES) for argument, message in table.items()],
    ],
    ids=lambda value: value[:60] if isinstance(value, str) and value.startswith("-") else "",
)
def test_a_wrong_argument(cli, tiny, argument, message, status):
    outcome = cli("--mode=train", "--workdir=new", *tiny, *([argument] if argument else []))
    assert message in outcome.fault()
    assert status in (outcome.status, None)
    assert os.listdir() == []


def test_without_a_mode(cli):
    assert cli("--dry_run").fault() == (
        f"--mode is missing; give one of {', '.join(f'--mode={mode}' for mode in run_lib.MODES)}"
    )
    assert cli().fault().startswith("--mode is missing")


def test_mistakes_in_a_file_of_flags(cli, tiny):
    Path("flags").write_text("\n".join([*tiny, "--config.training.batchsize=3"]))
    assert "unknown key of config.training: 'batchsize'" in cli("--mode=train", "--flagfile=flags").fault()
    assert os.listdir() == ["flags"]


def test_the_traceback_is_shown_when_asked_for(cli, tiny):
    with pytest.raises(ValueError, match="must be at least 1"):
        cli("--mode=train", *tiny, "--config.training.batch_size=0", "--traceback")
    assert cli("--mode=train", *tiny, "--config.training.batch_size=0").fault().endswith("(--traceback shows where)")


# Recipes


def changed_default(line):
    """A recipe that does something to the default."""
    return f"from configs import default\ndef get_config():\n    c = default.get_config()\n    {line}\n    return c\n"


BROKEN = {
    "def get_config(:\n": "SyntaxError: ",
    "x = 1\n": "AttributeError: module 'config_config' has no attribute 'get_config'",
    "import no_such_module\n": "ModuleNotFoundError: No module named 'no_such_module'",
    "1 / 0\n": "ZeroDivisionError: division by zero",
    "def get_config():\n    raise RuntimeError('boom')\n": "RuntimeError: boom",
    "def get_config():\n    raise ValueError('bad value')\n": "ValueError: bad value",
    "def get_config():\n    return {}['key']\n": "KeyError: 'key'",
    "def get_config():\n    return 5\n": "TypeError: get_config() returned 5; it must return a ConfigDict",
    "def get_config():\n    return {'seed': 5}\n": "it must return a ConfigDict",
    "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n": "missing config key",
    changed_default("c.trainin.steps = 3"): 'Did you mean "training" instead of "trainin"?',
    changed_default("c.seed = 'x'"): "TypeError: Could not override field 'seed'",
    changed_default("c.training.more = 3"): "unknown config key training.more; configs/default.py lists them all",
    changed_default("del c.sampling.snr"): "missing config key sampling.snr",
    "\0": "source code string cannot contain null bytes",
}


@pytest.mark.parametrize(("text", "message"), BROKEN.items(), ids=BROKEN.values())
def test_a_broken_recipe(cli, text, message):
    Path("my recipe.py").write_text(text)
    fault = cli("--mode=train", "--config=my recipe.py", "--workdir=new").fault()
    assert message in fault
    assert "config key" in message or fault.startswith("my recipe.py: ")
    assert set(os.listdir()) <= {"my recipe.py", "__pycache__"}


@pytest.mark.parametrize("name", ["configs/nothere.py", "", "configs", "configs/digits", "a:b:c", "x" * 300 + ".py"])
def test_a_recipe_that_is_not_there(cli, name):
    fault = cli("--mode=train", f"--config={name}").fault()
    if len(name) < 300:
        assert fault.startswith(
            f"--config={name}: there is no file {name.partition(':')[0]}; give a recipe of your own"
        )
        assert "or one of configs/celeba128.py, configs/celeba64.py, configs/celeba64_attributes.py, " in fault
        assert (
            "configs/digits.py, configs/digits_classes.py, configs/folder.py, configs/song_cifar10.py, configs/toy2d.py"
            in fault
        )
        assert "stored" not in fault
    else:
        assert "File name too long" in fault
    assert "Missing value for flag --config" in cli("--mode=train", "--config").fault()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("digits.py:vpp", "unknown process (sde.name) 'vpp'"),
        ("toy2d.py:star", "unknown toy distribution 'star'"),
        ("default.py:x", "get_config() takes 0 positional arguments but 1 was given"),
        ("default.py", "training.steps is 0 and training.epochs 0: set one of them"),
        ("celeba64.py", "CelebA is not in celeba, which does not exist. Expected in it"),
        ("celeba64.py:ve", "CelebA is not in celeba"),
        ("celeba64_ddim.py:vp", "get_config() takes 0 positional arguments but 1 was given"),
        ("celebahq256.py:adm", "unknown network 'adm' of configs/celebahq256.py; choose from ddpm, ncsnpp"),
        ("cifar10.py", "CIFAR-10 is not complete in cifar10"),
        ("folder.py", "there is nothing at images: give an existing folder, or a .zip, as root"),
        ("folder.py:/no/such:place", "there is nothing at /no/such:place"),
    ],
)
def test_a_recipe_with_a_wrong_argument_or_without_its_data(cli, recipe, message):
    for mode in ("train", "sample"):
        if mode == "train" or recipe != "default.py":
            assert message in cli(f"--mode={mode}", f"--config=configs/{recipe}").fault()
    assert os.listdir() == []
