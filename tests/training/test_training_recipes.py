"""Every recipe: its keys are known, its network has the published size, and a small version trains and samples."""

import importlib
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from stored_images import write_celeba, write_cifar10, write_folder

from configs import celebahq256, default, song_cifar10
from data import StepDraws
from data.toy import DISTRIBUTIONS
from models import MODELS
from modes.likelihood_settings import check_likelihood
from modes.sampler_settings import build_sampler
from samplers import SAMPLERS
from sde_lib import SDES
from training import Checkpoints, Metrics, builders, estimate_memory, settings, train

ROOT = Path(__file__).parents[2]
NAMES = sorted({path.stem for path in (ROOT / "configs").glob("*.py")} - {"__init__", "default", "stored"})
ARGUMENTS = {
    "digits": SDES,
    "celeba64": SDES,
    "celeba64_attributes": SDES,
    "digits_classes": SDES,
    "cifar10": SDES,
    "toy2d": DISTRIBUTIONS,
    "song_cifar10": song_cifar10.MODELS,
    "celebahq256": celebahq256.NETWORKS,
}
"""Recipe -> the arguments that it accepts; the others are tested without one."""
RECIPES = [*NAMES, *(f"{name}:{argument}" for name, arguments in ARGUMENTS.items() for argument in arguments)]

PARAMETERS = {
    # arXiv 2006.11239, appendix B, has 35.7 M, and 114 M for 256x256; to the last one, those of its checkpoints
    "cifar10": 35_746_307,
    "celebahq256:ddpm": 113_673_219,
    "celeba64_ddim": 78_700_803,  # of the checkpoint of arXiv 2010.02502
    "celeba128": 113_673_219,  # of the network in diffusers' training example
    # of the networks that the code of arXiv 2011.13456 makes; its DDPM has less attention than the original
    "song_cifar10:vp_ddpm": 35_218_947,
    "song_cifar10:vp_ddpmpp": 61_804_419,
    "song_cifar10:vp_ddpmpp_deep": 106_632_579,
    "song_cifar10:subvp_ddpmpp": 61_804_419,
    "song_cifar10:subvp_ddpmpp_deep": 106_632_579,
    "song_cifar10:ve_ncsnpp": 62_758_787,
    "song_cifar10:ve_ncsnpp_deep": 107_586_947,
    "celeba64_ncsnpp": 62_693_251,
    "celebahq256:ncsnpp": 65_574_421,
}
"""Recipe -> number of trained parameters, where it is published."""


def get(recipe):
    """The configuration of NAME or NAME:ARGUMENT."""
    name, *argument = recipe.split(":", 1)
    return importlib.import_module(f"configs.{name}").get_config(*argument)


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """configuration -> the same with images on the disk."""
    write = {"folder": write_folder, "celeba": write_celeba, "cifar10": lambda root: write_cifar10(root, monkeypatch)}

    def with_images(config):
        if config.data.name in write:
            config.data.root = str(write[config.data.name](tmp_path / config.data.name))
            config.data.cache = str(tmp_path / "cache")
        return config

    return with_images


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_builds(recipe, stored):
    config = stored(get(recipe))
    settings.check(config.to_dict(), default.get_config().to_dict())
    dataset = builders.build_dataset(config, "train")
    with torch.device("meta"):  # shapes without numbers: the large networks take no time
        model = builders.build_model(config, dataset, torch.device("cpu"))
    sde = model.sde
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == PARAMETERS.get(recipe, trained)
    assert estimate_memory(model, dataset.shape, 2, work="sampling").activations > 0  # a forward pass fits the data
    assert type(sde) is SDES[config.sde.name]
    assert type(model.net) is MODELS[config.model.name]
    assert (model.prediction, model.conditioning) == (config.model.prediction, config.model.conditioning)
    assert type(build_sampler(config, sde)) is SAMPLERS[config.sampling.sampler]
    assert builders.build_options(config, dataset).steps > 0
    check_likelihood(config, sde, default.get_config())
    if dataset.quantizer is not None:
        assert (dataset.quantizer.low, dataset.quantizer.high) == (config.data.low, config.data.high)
        assert config.model.centered == (config.data.low == -1)


def small(config):
    """The recipe on small images with few and narrow layers, for one step."""
    config.data.image_size = 16
    pixels = {"digits": 8, "cifar10": 32}.get(config.data.name, 16)
    config.model.update(channels=32, channel_mult=config.model.channel_mult[:2], res_blocks=1)
    config.model.update(attention_resolutions=(pixels // 2,), width=8, blocks=1)
    config.training.update(steps=1, epochs=0, batch_size=2)
    return config


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_small_version_takes_a_step_and_samples(recipe, stored, tmp_path):
    config = small(stored(get(recipe)))
    experiment = builders.build_experiment(config)
    dataset, sde = experiment.dataset, experiment.sde
    state = builders.build_state(config, experiment.model)
    before = [parameter.detach().clone() for parameter in state.model.parameters()]
    with Metrics(tmp_path, 0) as metrics:
        options, checkpoints = builders.build_options(config, dataset), Checkpoints(tmp_path, keep=1)
        train(state, builders.build_loss(config, sde), dataset, options, checkpoints, metrics)
    after = list(state.model.parameters())
    assert any(not torch.equal(new, old) for new, old in zip(after, before, strict=True))
    assert all(parameter.isfinite().all() for parameter in after)
    sampler = build_sampler(config, sde, steps=2)
    x = sampler.sample(sde, state.ema.model, (2, *dataset.shape), generator=torch.Generator().manual_seed(0)).x
    assert x.shape == (2, *dataset.shape)
    assert x.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_how_to_use_it(name):
    assert f"Use: --config=configs/{name}.py" in importlib.import_module(f"configs.{name}").__doc__


def test_a_recipe_and_its_argument():
    assert [get(name).sde.name for name in ("digits", "celeba64", "cifar10")] == ["vp"] * 3
    for name in ("digits", "celeba64", "cifar10"):
        assert [get(f"{name}:{process}").sde.name for process in SDES] == list(SDES)
    assert get("toy2d").data.distribution == "checkerboard"
    assert get("toy2d:moons").data.distribution == "moons"
    assert get("folder:my/pictures").data.root == "my/pictures"


@pytest.mark.parametrize("name", ["song_cifar10", "celebahq256"])
def test_an_unknown_argument(name):
    accepted = ", ".join(ARGUMENTS[name])
    with pytest.raises(ValueError, match=rf"unknown \w+ 'adm' of configs/{name}\.py; choose from {accepted}$"):
        get(f"{name}:adm")


def test_celeba64_has_the_values_of_the_seed(stored):
    config = stored(get("celeba64"))
    dataset = builders.build_dataset(config, "train")
    options = builders.build_options(config, dataset)
    assert dataset.shape == (3, 64, 64)
    assert (dataset.quantizer.low, dataset.quantizer.high) == (-1.0, 1.0)
    assert (options.batch_size, options.learning_rate) == (8, 1e-4)
    assert config.training.epochs == 50
    assert options.steps == 7  # 50 epochs of the one image that is there, in batches of 8
    sde = builders.build_sde(config)
    assert repr(sde) == "VPSDE(beta_min=0.1, beta_max=20)"
    told = []
    model = SimpleNamespace(eps=lambda x, t, y=None: told.extend(t.tolist()) or x)
    loss_fn = builders.build_loss(config, sde)
    loss_fn(model, torch.zeros(4000, 1), None, StepDraws(0, 0, 4000, range(4000)))
    assert len(set(told)) == 500  # the T steps of its chain
    assert config.sampling.steps == 500


@pytest.mark.parametrize("recipe", ["song_cifar10:ve_ncsnpp", "celeba64_ncsnpp", "celebahq256:ncsnpp", "celeba64_ddim"])
def test_clipping_is_that_of_a_loss_that_is_a_sum(recipe, stored):
    """Where the published loss is the mean here times a number, its gradient of norm 1 is that much smaller here."""
    config = stored(get(recipe))
    values = math.prod(builders.build_dataset(config, "train").shape)
    times = values if recipe == "celeba64_ddim" else values / 2
    assert config.training.grad_clip == pytest.approx(1 / times)
    assert config.training.eps == pytest.approx(1e-8 / times)
