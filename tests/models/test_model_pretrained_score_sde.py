"""Checkpoints of score_sde_pytorch, written here in its layout: the outputs are those that its own code computed."""

import copy
import pickle

import numpy as np
import pytest
import torch
from models_golden import Golden

from models import pretrained
from models.pretrained import PretrainedError
from models.pretrained.score_sde import describe, flattened
from samplers import get_sampler
from sde_lib import VESDE, VPSDE, SubVPSDE, log_likelihood

NAMES = ["score_sde_ddpm", "score_sde_ddpmpp", "score_sde_ncsnpp_ve", "score_sde_ncsnpp_skip"]


def nested(golden, sde=None):
    """The configuration as the project nests it."""
    flat = dict(golden.config)
    data = {"image_size": flat["image_size"], "num_channels": flat["num_channels"], "centered": flat["centered"]}
    sde = sde or ("vesde" if flat["scale_by_sigma"] else "vpsde")
    return {"model": flat, "data": data, "training": {"sde": sde, "continuous": True}}


def write(path, golden, **changes):
    """A checkpoint file as training leaves it: the model's own weights are others than the averaged ones.

    The project's warm-up makes the learning rate a number of numpy, which torch alone refuses to read.
    """
    model = {f"module.{name}": value + 1 for name, value in golden.tensors.items()}
    model["module.sigmas"] = torch.linspace(4, -4, 1000).exp()
    fixed = [name for name, value in golden.tensors.items() if name.endswith(".W") and value.ndim == 1]
    for name in fixed:
        model[f"module.{name}"] = golden.tensors[name]
    shadow = [value for name, value in golden.tensors.items() if name not in fixed]
    ema = {"decay": 0.9999, "num_updates": 7, "shadow_params": shadow}
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": np.float64(2e-4)}]}
    torch.save({"optimizer": optimizer, "model": model, "ema": ema, "step": 7} | changes, path)
    return path


@pytest.fixture(params=NAMES)
def golden(request):
    return Golden(request.param)


def test_the_output_is_that_of_the_original(golden, tmp_path):
    model = pretrained.load(write(tmp_path / "checkpoint_8.pth", golden), config=nested(golden))
    c_noise = golden.labels.log() if golden.config["embedding_type"] == "fourier" else golden.labels
    with torch.no_grad():
        out = model.net(golden.x, c_noise)
    assert float((out - golden.out).abs().max() / golden.out.abs().max()) < 1e-5
    assert sum(p.numel() for p in model.net.parameters()) == golden.parameters


def test_the_score_is_that_of_the_original(golden, tmp_path):
    """score_sde's own: -F(x, 999 t) / sigma(t) on VP and sub-VP; F(x, sigma(t)) on VE."""
    for sde in ["vesde"] if golden.config["scale_by_sigma"] else ["vpsde", "subvpsde"]:
        path = write(tmp_path / "checkpoint.pth", golden)
        model = pretrained.load(path, config=nested(golden, sde)).double()
        assert type(model.sde) is {"vpsde": VPSDE, "subvpsde": SubVPSDE, "vesde": VESDE}[sde]
        if sde == "vesde":  # sigma(t) = 0.01 (50 / 0.01)^t
            t, expected = (golden.labels.double() / 0.01).log() / torch.tensor(5000.0).double().log(), golden.out
        else:
            t = golden.labels.double() / 999
            expected = -golden.out / model.sde.sigma(t).reshape(-1, 1, 1, 1)
        with torch.no_grad():
            score = model(golden.x.double(), t)
        assert float((score - expected).abs().max() / expected.abs().max()) < 1e-5


def test_samplers_and_likelihood_take_it(tmp_path):
    golden = Golden("score_sde_ddpmpp")
    model = pretrained.load(write(tmp_path / "c.pth", golden), config=nested(golden)).requires_grad_(False)
    x = get_sampler("ddim", steps=3).sample(model.sde, model, (2, 3, 16, 16)).x
    assert x.isfinite().all()
    assert log_likelihood(model.sde, model, x.clamp(-1, 1), method="euler", steps=2).log_prob.isfinite().all()


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"progressive": "residual"}, "ncsnpp"),
        ({"progressive": "output_skip", "fir": False}, "ncsnpp"),
        ({"progressive_input": "residual", "fir": False}, "ncsnpp"),
        ({"progressive_input": "input_skip", "progressive_combine": "cat"}, "ncsnpp"),
        ({"resblock_type": "ddpm"}, "ncsnpp"),
        ({"resblock_type": "ddpm", "fir": True, "progressive": "residual"}, "ncsnpp"),
        ({"attn_resolutions": []}, "ncsnpp"),
        ({"num_res_blocks": 3, "ch_mult": [2, 1]}, "ncsnpp"),
    ],
)
def test_every_option_makes_a_network_that_runs(changes, kind):
    golden = Golden("score_sde_ncsnpp_ve")
    config = nested(golden)
    config["model"] |= changes | {"name": kind}
    net = describe(flattened(config)).build().net
    out = net(golden.x, golden.labels.log())
    assert out.shape == golden.x.shape
    assert out.isfinite().all()


# Files that are not what they should be


def test_tensors_that_do_not_fit_are_named(tmp_path):
    golden, path = Golden("score_sde_ddpm"), tmp_path / "c.pth"
    config = nested(golden)

    def fault(change):
        other = copy.copy(golden)
        other.tensors = change(dict(golden.tensors))
        with pytest.raises(PretrainedError) as caught:
            pretrained.load(write(path, other), config=config)
        return str(caught.value)

    name = "all_modules.3.Conv_0.weight"
    assert f"lacks the tensor {name}:" in fault(lambda t: {k: v for k, v in t.items() if k != name})
    assert "does not have, all_modules.99.weight:" in fault(lambda t: t | {"all_modules.99.weight": torch.ones(2)})
    message = fault(lambda t: t | {name: torch.ones(32, 32, 1, 1)})
    assert f"{name} makes a tensor of shape (32, 32, 1, 1), but the configuration needs (32, 32, 3, 3)" in message


def test_averages_that_do_not_fit_the_model(tmp_path):
    golden, path = Golden("score_sde_ddpm"), tmp_path / "c.pth"
    shadow = list(golden.tensors.values())
    for wrong, message in (
        (shadow[:-1], f"has {len(shadow) - 1} averaged parameters for {len(shadow)} of its model"),
        ([torch.ones(3), *shadow[1:]], r"the average of all_modules.0.weight has shape \(3,\), not \(128, 32\)"),
    ):
        ema = {"decay": 0.9, "num_updates": 1, "shadow_params": wrong}
        with pytest.raises(PretrainedError, match=message):
            pretrained.load(write(path, golden, ema=ema), config=nested(golden))


class Bomb:
    """A pickle that would run code."""

    def __reduce__(self):
        return (exec, ("open('ran', 'w').close()",))


def test_nothing_in_a_file_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    golden = Golden("score_sde_ddpm")
    path = write(tmp_path / "c.pth", golden, step=Bomb())
    with pytest.raises(PretrainedError, match="a pickle of other objects, which is not run"):
        pretrained.load(path, config=nested(golden))
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(PretrainedError, match="which is not run"):
        pretrained.load(path, config=nested(golden))
    assert not (tmp_path / "ran").exists()
    torch.save(np.array([Bomb()], dtype=object), path)
    with pytest.raises(PretrainedError, match=r"is not run \(it names numpy\S+\)"):
        pretrained.load(path, config=nested(golden))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": "x"}, "step is 'x'; it must be a whole number"),
        ({"step": -1}, "step is -1; it must be a whole number"),
        ({"model": {"a": "b"}}, "a is no tensor"),
        ({"model": [1]}, "has no model by name, or no list of averaged parameters"),
        ({"ema": {}}, "has no model by name, or no list of averaged parameters"),
        ({"ema": {"shadow_params": [1]}}, "an average is no tensor"),
    ],
    ids=str,
)
def test_entries_of_another_kind(tmp_path, changes, message):
    golden = Golden("score_sde_ddpm")
    with pytest.raises(PretrainedError, match=message):
        pretrained.load(write(tmp_path / "c.pth", golden, **changes), config=nested(golden))


def test_files_that_are_no_checkpoints(tmp_path):
    golden = Golden("score_sde_ddpm")
    config, path = nested(golden), write(tmp_path / "c.pth", golden)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:100]):
        path.write_bytes(content)
        with pytest.raises(PretrainedError, match="is not a readable file of tensors: it is damaged, cut short"):
            pretrained.load(path, config=config)
    torch.save({"weights": torch.ones(2)}, path)
    with pytest.raises(PretrainedError, match="is no checkpoint of score_sde_pytorch: it needs the entries"):
        pretrained.load(path, "score_sde", config=config)
    with pytest.raises(PretrainedError, match=r"cannot tell the format of .* by its content; give one of score_sde,"):
        pretrained.load(path, config=config)
    with pytest.raises(PretrainedError, match=r"no file or folder .*nothing\.pth"):
        pretrained.load(tmp_path / "nothing.pth", config=config)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("model", "name", "ncsnv2", "networks of the kind 'ncsnv2' are not known"),
        ("model", "nf", None, "the configuration does not describe a network: "),
        ("model", "nf", "drop", "the configuration does not describe a network: it lacks 'nf'"),
        ("training", "sde", "edm", "the process 'edm' is not known; only vpsde"),
        ("model", "num_res_blocks", 2, "lacks the tensor all_modules"),
        ("model", "attn_resolutions", [], "lacks the tensor all_modules.6.Conv_0.weight"),
    ],
)
def test_a_wrong_configuration(tmp_path, section, key, value, message):
    golden = Golden("score_sde_ddpm")
    config = nested(golden)
    if value == "drop":
        del config[section][key]
    else:
        config[section][key] = value
    with pytest.raises(PretrainedError, match=message):
        pretrained.load(write(tmp_path / "c.pth", golden), config=config)


def test_a_format_that_cannot_be_told(tmp_path):
    with pytest.raises(PretrainedError, match="does not hold its configuration; give config="):
        pretrained.load(write(tmp_path / "c.pth", Golden("score_sde_ddpm")))
    with pytest.raises(ValueError, match=r"unknown format 'scoresde'; choose from .*; did you mean 'score_sde'"):
        pretrained.load(tmp_path / "c.pth", format="scoresde")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_by_sigma": True, "sde": "vpsde"}, "positional embedding, and no scale_by_sigma"),
        ({"embedding_type": "fourier"}, "a VP or sub-VP network has positional embedding"),
        ({"nf": 32.0}, "nf is 32.0; it must be a whole number above 0"),
        ({"ch_mult": 2}, "ch_mult is 2; it must be whole numbers above 0"),
        ({"beta_max": float("inf")}, "beta_max is inf; it must be a number above 0"),
        ({"nonlinearity": "elu"}, "nonlinearity is 'elu'; only 'swish' can be read"),
        ({"resamp_with_conv": False}, "resamp_with_conv is False; only True can be read"),
        ({"progressive": "skip"}, "unknown progressive 'skip'; choose from .*'output_skip'"),
        ({"sde": "vesde", "continuous": False, "num_scales": 500}, "a discrete VE network of 500 levels; only 1000"),
    ],
    ids=str,
)
def test_options_that_would_change_the_network(changes, message):
    """Given flat, as names and values."""
    golden = Golden("score_sde_ddpmpp")
    assert describe(golden.config).network == "ncsnpp"
    with pytest.raises(ValueError, match=message):
        describe(golden.config | changes)


def test_a_discrete_network_on_ve_predicts_minus_the_noise(tmp_path):
    """score_sde divides by the sigma of the index: the largest at 0, in geometric steps to the smallest at 999."""
    golden = Golden("score_sde_ddpmpp")
    config = nested(golden, "vesde")
    config["model"] |= {"scale_by_sigma": True}
    config["training"]["continuous"] = False
    model = pretrained.load(write(tmp_path / "c.pth", golden), config=config).double()
    t = 1 - golden.labels.double() / 999
    sigma = torch.exp(torch.lerp(torch.tensor(0.01).double().log(), torch.tensor(50.0).double().log(), t))
    expected = golden.out / sigma.reshape(-1, 1, 1, 1)
    with torch.no_grad():
        score = model(golden.x.double(), t)
    assert float((score - expected).abs().max() / expected.abs().max()) < 1e-5
    config["training"]["continuous"] = True
    with pytest.raises(PretrainedError, match="a VE network is continuous with Fourier embedding, or discrete"):
        pretrained.load(tmp_path / "c.pth", config=config)
