"""From a configuration to objects: what is built is what the configuration says."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch

from configs import default, digits, toy2d
from data import DATASETS, StepDraws, dataset_options
from models import MODELS
from modes.likelihood_settings import LIKELIHOOD_OPTIONS
from samplers import SAMPLERS, sampler_options
from sde_lib import SDES
from training import TrainOptions, builders

ROOT = Path(__file__).parents[2]


def tiny(**changes):
    """The toy recipe with changes, such as training_steps=3 for training.steps."""
    config = toy2d.get_config()
    for name, value in {"model_width": 8, "model_blocks": 1, "data_size": 50, **changes}.items():
        section, key = name.split("_", 1)
        config[section][key] = value
    return config


class Exact:
    """A model whose prediction is a function of x."""

    def __init__(self, eps):
        self._eps, self.labels = eps, []

    def eps(self, x, t, y=None):
        self.labels.append(y)
        return self._eps(x)


# The keys of the default


def keys_with_comments():
    """Key -> whether its line in configs/default.py has a comment."""
    lines = (ROOT / "configs" / "default.py").read_text().splitlines()
    found = (re.match(r"    (\w+\.\w+) = (?!.*ConfigDict\(\))(.*)", line) for line in lines)
    return {match[1].removeprefix("config."): "  # " in match[2] for match in found if match}


def all_keys():
    config = default.get_config()
    for name, value in config.items():
        if hasattr(value, "items"):
            yield from (f"{name}.{key}" for key in value)
        else:
            yield name


def test_every_key_is_explained():
    assert sorted(keys_with_comments()) == sorted(all_keys())
    assert [key for key, commented in keys_with_comments().items() if not commented] == []


def keys_read(path):
    """SECTION.KEY for each ``config.SECTION.KEY`` or ``run.config.SECTION.KEY`` that a file reads, also by an alias."""
    read = set()
    for function in (node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)):
        alias = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign):
                names, values = node.targets[0], node.value
                paired = isinstance(names, ast.Tuple) and isinstance(values, ast.Tuple)
                for name, value in zip(names.elts, values.elts, strict=True) if paired else [(names, values)]:
                    if isinstance(name, ast.Name) and re.match(r"(run\.)?config\.", ast.unparse(value)):
                        alias[name.id] = ast.unparse(value)
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute):
                owner = ast.unparse(node.value)
                read.add(f"{alias.get(owner, owner)}.{node.attr}".removeprefix("run.").removeprefix("config."))
    return read


def test_every_key_is_used():
    files = (ROOT / "run_lib.py", ROOT / "training" / "builders.py", *sorted((ROOT / "modes").glob("*.py")))
    read = set().union(*(keys_read(file) for file in files))
    read |= {f"data.{option}" for name in DATASETS for option in dataset_options(name)}
    read |= {f"sampling.{option}" for name in SAMPLERS for option in sampler_options(name)}
    read |= {f"model.{option}" for network in MODELS.values() for option in inspect.signature(network).parameters}
    read |= {f"sde.{option}" for process in SDES.values() for option in process.__init__.__annotations__}
    read |= {f"likelihood.{option}" for option in LIKELIHOOD_OPTIONS}
    assert sorted(set(all_keys()) - read) == []


# Processes


def test_a_process_takes_the_settings_that_are_given_and_its_own_defaults():
    config = tiny()
    assert repr(builders.build_sde(config)) == repr(SDES["vp"]())
    config.sde.beta_max = 7.0
    assert repr(builders.build_sde(config)) == repr(SDES["vp"](beta_max=7.0))
    config = tiny(sde_name="ve", sde_sigma_min=0.5, sde_sigma_max=3.0)
    assert repr(builders.build_sde(config)) == repr(SDES["ve"](0.5, 3.0))


def test_settings_of_another_process_are_refused():
    with pytest.raises(ValueError, match=r"sde\.sigma_min is set, but the process 'vp' .* takes beta_min, beta_max"):
        builders.build_sde(tiny(sde_sigma_min=0.1))
    with pytest.raises(ValueError, match=r"unknown process \(sde\.name\) 'vpp'.*did you mean 'vp'"):
        builders.build_sde(tiny(sde_name="vpp"))


# Models


def test_the_weights_depend_on_the_seed_alone():
    def weights(seed):
        config = tiny()
        config.seed = seed
        torch.rand(1)
        return torch.cat([p.flatten() for p in builders.build_experiment(config).model.parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_a_network_gets_its_settings():
    config = digits.get_config()
    config.model.update(channels=8, channel_mult=(1, 2), res_blocks=3, attention_resolutions=(8,), heads=2, dropout=0.3)
    config.model.update(conditional=True, sigma_data=0.7, precision="bfloat16")
    dataset = builders.build_dataset(config, "train")
    model = builders.build_model(config, dataset, torch.device("cpu"))
    expected = MODELS["unet"](
        1,
        8,
        channels=8,
        channel_mult=(1, 2),
        res_blocks=3,
        attention_resolutions=(8,),
        heads=2,
        dropout=0.3,
        num_classes=10,
    )
    assert str(model.net) == str(expected)
    assert {m.heads for m in model.modules() if hasattr(m, "heads")} == {2}
    assert (model.sigma_data, model.precision) == (0.7, "bfloat16")
    config = tiny(model_width=12, model_blocks=4, model_dropout=0.2)
    model = builders.build_experiment(config).model
    assert str(model.net) == str(MODELS["mlp"](2, width=12, blocks=4, dropout=0.2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name": "unet"}, r"model\.name is 'unet', but one sample .* \(2,\); use model\.name=mlp"),
        ({"model_name": "resnet"}, r"unknown network \(model\.name\) 'resnet'; choose from"),
        ({"model_conditional": True}, r"model\.conditional is set, but the data set 'toy/checkerboard' has no labels"),
        ({"model_precision": "float16"}, "unknown precision 'float16'; choose from 'bfloat16', 'float32'"),
        ({"model_prediction": "noise"}, "unknown prediction 'noise'; choose from"),
    ],
)
def test_a_network_that_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        builders.build_experiment(tiny(**changes))


def test_vectors_for_images():
    config = digits.get_config()
    config.model.name = "mlp"
    with pytest.raises(ValueError, match=r"model\.name is 'mlp', but .* \(1, 8, 8\); use model\.name=unet"):
        builders.build_experiment(config)


def test_the_optimizer_and_the_average_get_their_settings():
    changes = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.25, "ema_decay": 0.5, "learning_rate": 0.01}
    config = tiny(**{f"training_{key}": value for key, value in changes.items()})
    state = builders.build_state(config, builders.build_experiment(config).model)
    (group,) = state.optimizer.param_groups
    assert (group["betas"], group["eps"], group["weight_decay"], group["lr"]) == ((0.8, 0.95), 1e-6, 0.25, 0.01)
    assert state.ema.decay == 0.5
    assert state.step == 0
    before = [p.detach().clone() for p in state.model.parameters()]
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()  # with no gradient only the decay acts, decoupled: w <- (1 - lr decay) w
    for parameter, old in zip(state.model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter, (1 - 0.01 * 0.25) * old)


def test_more_averages_get_theirs():
    config = tiny(training_averages="0.9,power:0.05,power:0.1", training_ema_snapshot_every=7)
    experiment = builders.build_experiment(config)
    state = builders.build_state(config, experiment.model)
    assert list(state.averages) == ["ema", "ema_0.9", "ema_power_0.05", "ema_power_0.1"]
    assert state.averages["ema"] is state.ema
    assert [state.averages[name].decay for name in ("ema", "ema_0.9")] == [config.training.ema_decay, 0.9]
    assert state.averages["ema_power_0.1"].gamma == pytest.approx(6.94, abs=0.005)
    assert builders.build_options(config, experiment.dataset).snapshot_every == 7
    config.training.ema_snapshot_every = config.training.steps + 1
    with pytest.raises(ValueError, match=f"training ends at step {config.training.steps}, before the first snapshot"):
        builders.build_options(config, experiment.dataset)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"averages": "0.9;0.99"}, r"training\.averages: '0\.9;0\.99' is no average"),
        (
            {"averages": "0.9", "ema_snapshot_every": 5},
            r"training\.ema_snapshot_every is 5, but .* training\.averages has none; set it to power:0\.05,power:0\.1",
        ),
    ],
)
def test_averages_that_make_no_sense(changes, message):
    config = tiny(**{f"training_{key}": value for key, value in changes.items()})
    with pytest.raises(ValueError, match=message):
        builders.build_state(config, builders.build_experiment(config).model)


# Losses


def draws(batch):
    return StepDraws(0, 0, batch, range(batch))


def test_labels_reach_a_conditional_model_only():
    labels = torch.tensor([3, 1])
    for conditional, loss in ((True, "continuous"), (False, "continuous"), (True, "ddpm"), (False, "ddpm")):
        config = tiny(model_conditional=conditional, training_loss=loss, training_label_dropout=0.0)
        model = Exact(torch.zeros_like)
        loss_fn = builders.build_loss(config, builders.build_sde(config))
        loss_fn(model, torch.zeros(2, 5), labels, draws(2))
        (given,) = model.labels
        assert torch.equal(given, labels) if conditional else given is None


@pytest.mark.parametrize("loss", ["continuous", "ddpm"])
def test_a_share_of_the_labels_is_hidden(loss):
    labels, share = torch.full((20_000,), 3), 0.3
    config = tiny(model_conditional=True, training_loss=loss, training_label_dropout=share)
    model = Exact(torch.zeros_like)
    builders.build_loss(config, builders.build_sde(config))(
        model, torch.zeros(len(labels), 2), labels, draws(len(labels))
    )
    (given,) = model.labels
    assert set(given.tolist()) == {3, -1}
    assert abs((given == -1).double().mean() - share) < 5 * (share * (1 - share) / len(labels)) ** 0.5


def test_a_loss_gets_its_settings():
    sde = builders.build_sde(tiny())

    def draw(**changes):
        """The losses of a model that predicts 0, and the times that it was told."""
        config = tiny(**{f"training_{key}": value for key, value in changes.items()})
        told, model = [], Exact(torch.zeros_like)
        model.eps = lambda x, t, y=None: told.append(t) or torch.zeros_like(x)
        loss = builders.build_loss(config, sde)(model, torch.zeros(64, 8), None, draws(64))
        return loss, told[0]

    loss, t = draw(weighting="uniform", time_law="uniform")
    weighted, same_t = draw(weighting="likelihood", time_law="uniform")
    assert torch.equal(t, same_t)
    torch.testing.assert_close(weighted, loss * (sde.diffusion(t) / sde.sigma(t)).square())
    gaps = t.sort().values.diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, (sde.T - sde.t_min) / 64), rtol=1e-3, atol=0)
    _, scattered = draw(time_law="uniform", low_discrepancy=False)
    assert scattered.sort().values.diff().max() > 2 / 64
    lam = sde.log_snr(draw(time_law="log_snr")[1].double()).sort().values.diff()
    torch.testing.assert_close(lam, lam.mean().expand_as(lam), rtol=1e-2, atol=0)
    (plain, t), (proposed, _) = (draw(time_law="log_snr", importance=importance) for importance in (False, True))
    t = t.double().requires_grad_()
    slope = torch.autograd.grad(sde.log_snr(t).sum(), t)[0]
    ends = sde.log_snr(torch.tensor([sde.t_min, sde.T], dtype=torch.float64))
    density = -slope * (sde.T - sde.t_min) / (ends[0] - ends[1])  # relative to that of uniform t
    torch.testing.assert_close((plain / proposed).double(), density, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training_loss": "mse"}, r"unknown training\.loss 'mse'; choose from 'continuous', 'ddpm'"),
        ({"training_weighting": "snr"}, r"unknown training\.weighting 'snr'; choose from 'likelihood', 'uniform'"),
        ({"training_time_law": "cosine"}, r"unknown training\.time_law 'cosine'; choose from"),
    ],
)
def test_a_loss_that_does_not_exist(changes, message):
    config = tiny(**changes)
    with pytest.raises(ValueError, match=message):
        builders.build_loss(config, builders.build_sde(config))


def test_a_chain_is_not_for_every_process():
    config = tiny(training_loss="ddpm", sde_name="ve")
    with pytest.raises(TypeError, match="a DDPM chain needs a variance-preserving process"):
        builders.build_loss(config, builders.build_sde(config))


# Options


def test_options_are_those_of_the_configuration():
    values = {
        "steps": 11,
        "batch_size": 6,
        "accumulation": 3,
        "learning_rate": 0.5,
        "warmup_steps": 4,
        "decay": "cosine",
        "grad_clip": 2.5,
        "log_every": 7,
        "checkpoint_every": 8,
        "sample_every": 9,
        "heldout_every": 10,
        "time_limit": 1.5,
    }
    config = digits.get_config()
    config.training.update(values)
    config.seed = 12
    config.data.update(dequantize=False, random_flip=True, workers=2)
    options = builders.build_options(config, builders.build_dataset(config, "train"))
    assert options == TrainOptions(**values, seed=12, dequantize=False, flip=True, workers=2)


@pytest.mark.parametrize(("epochs", "batch", "steps"), [(1, 50, 1), (1, 49, 2), (3, 50, 3), (3, 40, 4), (2, 1000, 1)])
def test_epochs_become_steps(epochs, batch, steps):
    config = tiny(training_steps=0, training_epochs=epochs, training_batch_size=batch)
    assert builders.build_options(config, builders.build_dataset(config, "train")).steps == steps  # of 50 points


@pytest.mark.parametrize(("steps", "epochs"), [(0, 0), (3, 2)])
def test_steps_or_epochs(steps, epochs):
    config = tiny(training_steps=steps, training_epochs=epochs)
    with pytest.raises(ValueError, match=rf"training\.steps is {steps} and training\.epochs {epochs}: set one of them"):
        builders.build_options(config, builders.build_dataset(config, "train"))


def test_vectors_are_not_flipped():
    config = tiny(data_random_flip=True)
    with pytest.raises(ValueError, match=r"data\.random_flip is set, but 'toy/checkerboard' has no images to flip"):
        builders.build_options(config, builders.build_dataset(config, "train"))
