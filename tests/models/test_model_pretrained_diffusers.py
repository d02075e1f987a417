"""Folders that diffusers itself writes: the same outputs, and errors that say what is wrong."""

import json
import shutil

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers_folders import CIFAR, GOOGLE, VARIANTS, save, theirs

from models import UNet, pretrained
from models.pretrained import PretrainedError
from sde_lib import ddpm_schedule, log_likelihood


@pytest.mark.parametrize("name", VARIANTS)
def test_the_output_is_that_of_diffusers(tmp_path, name):
    unet = theirs(**VARIANTS[name])
    model = pretrained.load(save(tmp_path / "model", unet))
    x = torch.randn(2, unet.config.in_channels, 16, 16)
    learned = unet.config.time_embedding_type == "learned"  # has rows for whole steps only
    steps = torch.tensor([3, 871]) if learned else torch.tensor([3.0, 871.5])
    with torch.no_grad():
        expected = unet(x, steps).sample
        found = model.net(x, steps)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    assert sum(p.numel() for p in model.net.parameters()) == sum(p.numel() for p in unet.parameters())


def test_classes_are_those_of_diffusers(tmp_path):
    unet = theirs(**VARIANTS["attention"], num_class_embeds=5)
    model = pretrained.load(save(tmp_path / "model", unet))
    x, steps, y = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 500.0]), torch.tensor([4, 0])
    with torch.no_grad():
        torch.testing.assert_close(model.net(x, steps, y), unet(x, steps, y).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_the_chain_is_that_of_the_scheduler(tmp_path, schedule):
    """At the log-SNR of each of its steps the network is told that step."""
    scheduler = DDPMScheduler(200, beta_start=0.0015, beta_end=0.0195, beta_schedule=schedule)
    model = pretrained.load(save(tmp_path / "model", theirs(**VARIANTS["none"]), scheduler=scheduler))
    kept = scheduler.alphas_cumprod.double()
    times = model.sde.time_from_log_snr((kept / (1 - kept)).log())
    told = model.c_noise(model.sde, times)
    inside = times <= 1  # what the process reaches
    assert inside.sum() > 150
    torch.testing.assert_close(told[inside], torch.arange(200.0, dtype=torch.float64)[inside], rtol=0, atol=2e-2)


@pytest.mark.parametrize("layout", [{"root": False}, {"binary": True}, {"old_names": True, "binary": True}], ids=str)
def test_every_layout_is_read(tmp_path, layout):
    unet = theirs(**VARIANTS["attention"])
    model = pretrained.load(save(tmp_path / "model", unet, **layout))
    x, steps = torch.randn(1, 3, 16, 16), torch.tensor([40.0])
    with torch.no_grad():
        torch.testing.assert_close(model.net(x, steps), unet(x, steps).sample, rtol=1e-4, atol=1e-5)


def test_google_s_network_has_its_published_size():
    def parameters(settings):
        with torch.device("meta"):
            net = UNet(**pretrained.diffusers.network_options(GOOGLE | settings))
        return sum(p.numel() for p in net.parameters())

    assert parameters(CIFAR) == 35_746_307
    large = {
        "sample_size": 256,
        "block_out_channels": [128, 128, 256, 256, 512, 512],
        "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
    }
    assert parameters(large) == 113_673_219


def test_at_the_steps_of_its_chain_a_network_is_told_their_numbers(tmp_path):
    model = pretrained.load(save(tmp_path / "model", theirs(**VARIANTS["none"])))
    times = ddpm_schedule(model.sde, 1000).times
    told = model.c_noise(model.sde, times)
    torch.testing.assert_close(told, torch.arange(1000.0, dtype=torch.float64), rtol=0, atol=1e-3)
    between = model.c_noise(model.sde, (times[1:] + times[:-1]) / 2) - torch.arange(999)
    assert 0.2 < between.min() <= between.max() < 0.8
    assert log_likelihood(
        model.sde, model.requires_grad_(False), torch.zeros(1, 3, 16, 16), method="euler", steps=2
    ).log_prob.isfinite()


# Folders that are not what they should be


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "model", theirs(**VARIANTS["attention"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freq_shift": 0}, r"freq_shift\) \(False, 0\) cannot be read; .* \(False, 1\) or \(True, 0\)"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift is 'scale_shift'"),
        ({"attention_head_dim": 48}, "64 channels cannot be split into heads of 48"),
        ({"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, "down_block_types are .* only"),
        ({"out_channels": 6}, "in_channels and out_channels must be equal"),
        ({"block_out_channels": [64, 128]}, "makes a tensor of shape .* but the configuration needs"),
        ({"layers_per_block": 2}, r"lacks the tensor \S+"),
        ({"sample_size": None}, "config.json does not describe a network: "),
        ({"attn_norm_num_groups": 16}, "attn_norm_num_groups is 16; only None can be read"),
        ({"norm_num_groups": None}, "norm_num_groups is None; it must be a whole number above 0"),
        ({"downsample_padding": 2}, "downsample_padding is 2; it must be 0 or 1"),
        ({"attention_head_dim": 0}, "attention_head_dim is 0; it must be a whole number above 0, or None"),
        ({"new_option": 1}, "new_option is not known, and may change what the network computes"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type 'fourier' with .* cannot be read; 'learned' can"),
    ],
)
def test_a_wrong_configuration(folder, changes, message):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(PretrainedError, match=message):
        pretrained.load(folder)


class Bomb:
    """A pickle that would run code."""

    def __reduce__(self):
        return (exec, ("open('ran', 'w').close()",))


def test_code_in_a_binary_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = save(tmp_path / "model", theirs(**VARIANTS["none"]), binary=True)
    torch.save({"conv_in.weight": torch.ones(1), "more": Bomb()}, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(PretrainedError, match="a pickle of other objects, which is not run"):
        pretrained.load(folder)
    assert not (tmp_path / "ran").exists()


def test_without_a_scheduler_the_chain_is_ddpm_s(folder):
    (folder / "scheduler_config.json").unlink()
    with pytest.warns(UserWarning, match=r"no scheduler_config\.json in .*: taking DDPM's chain, and eps as predicted"):
        model = pretrained.load(folder)
    assert (model.prediction, model.sde.beta_max) == ("eps", 20.0)


def test_files_that_are_missing_or_damaged(folder):
    def fault():
        with pytest.raises(PretrainedError) as caught:
            pretrained.load(folder)
        return str(caught.value)

    weights = folder / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    for content in (b"", whole[:50], whole[: len(whole) // 2]):
        weights.write_bytes(content)
        assert f"{weights} is damaged or cut short" in fault()
    weights.unlink()
    assert "no weights in" in fault()
    weights.write_bytes(whole)
    scheduler = folder / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"beta_schedule": "exp"}))
    assert "beta_schedule 'exp' with prediction_type 'epsilon' cannot be read" in fault()
    scheduler.write_text("{}")
    assert "does not describe a chain: it lacks 'num_train_timesteps'" in fault()
    (folder / "config.json").write_text("hello")
    assert "config.json is not JSON" in fault()
    shutil.rmtree(folder)
    folder.mkdir()
    assert "no file" in fault()
