"""Folders that diffusers itself writes: the same outputs, and the same images as its own scheduler."""

import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

from models import pretrained
from models.pretrained import PretrainedError
from samplers import get_sampler
from sde_lib import ddpm_schedule, log_likelihood

GOOGLE = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "center_input_sample": False,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "time_embedding_type": "positional",
}
CIFAR = {
    "sample_size": 32,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
SMALL = {"sample_size": 16, "block_out_channels": [32, 64], "layers_per_block": 1}
PLAIN = {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
ATTENTION = {
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
VARIANTS = {
    "attention": SMALL | ATTENTION,
    "none": SMALL | PLAIN,
    "other padding": SMALL | ATTENTION | {"downsample_padding": 1},
    "other norm": SMALL | ATTENTION | {"norm_num_groups": 8, "norm_eps": 1e-5},
    "three levels": SMALL | CIFAR | {"sample_size": 16, "block_out_channels": [32, 64, 64, 64]},
    "one channel": SMALL | PLAIN | {"in_channels": 1, "out_channels": 1, "layers_per_block": 2},
}


def theirs(**settings):
    """A network of diffusers, with weights that leave nothing silent."""
    torch.manual_seed(0)
    return UNet2DModel(**GOOGLE | settings).eval()


def save(folder, unet, *, root=True, old_names=False, binary=False, scheduler=None):
    """A folder as published (files at the root) or as ``DDPMPipeline.save_pretrained`` writes it."""
    place = folder if root else folder / "unet"
    unet.save_pretrained(place, safe_serialization=not binary)
    (scheduler or DDPMScheduler()).save_pretrained(folder if root else folder / "scheduler")
    if old_names:
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        tensors = unet.state_dict()
        for new, old in names.items():
            tensors = {k.replace(new, old) if "attentions" in k else k: v for k, v in tensors.items()}
        torch.save(tensors, place / "diffusion_pytorch_model.bin")
    return folder


@pytest.mark.parametrize("name", VARIANTS)
def test_the_output_is_that_of_diffusers(tmp_path, name):
    unet = theirs(**VARIANTS[name])
    model = pretrained.load(save(tmp_path / "model", unet))
    x = torch.randn(2, unet.config.in_channels, 16, 16)
    steps = torch.tensor([3.0, 871.5])
    with torch.no_grad():
        expected = unet(x, steps).sample
        found = model.net(x, steps)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    assert sum(p.numel() for p in model.net.parameters()) == sum(p.numel() for p in unet.parameters())


@pytest.mark.parametrize("layout", [{"root": False}, {"binary": True}, {"old_names": True, "binary": True}], ids=str)
def test_every_layout_is_read(tmp_path, layout):
    unet = theirs(**VARIANTS["attention"])
    model = pretrained.load(save(tmp_path / "model", unet, **layout))
    x, steps = torch.randn(1, 3, 16, 16), torch.tensor([40.0])
    with torch.no_grad():
        torch.testing.assert_close(model.net(x, steps), unet(x, steps).sample, rtol=1e-4, atol=1e-5)


def test_google_s_network_has_its_published_size():
    with torch.device("meta"):
        net = pretrained.diffusers.build_network(GOOGLE | CIFAR)
    assert sum(p.numel() for p in net.parameters()) == 35_746_307
    large = {
        "sample_size": 256,
        "block_out_channels": [128, 128, 256, 256, 512, 512],
        "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
    }
    with torch.device("meta"):
        net = pretrained.diffusers.build_network(GOOGLE | large)
    assert sum(p.numel() for p in net.parameters()) == 113_673_219


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddim_gives_the_images_of_diffusers(tmp_path, prediction):
    unet = theirs(**VARIANTS["attention"])
    chain = DDPMScheduler(prediction_type=prediction)
    model = pretrained.load(save(tmp_path / "model", unet, scheduler=chain)).requires_grad_(False)
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=False, timestep_spacing="leading")
    scheduler.set_timesteps(10)  # 900, 800, ..., 0: the last step of the chain has more noise than the process at T
    start = torch.randn(2, 3, 16, 16)
    x = start
    with torch.no_grad():
        for step in scheduler.timesteps:
            x = scheduler.step(unet(x, step).sample, step, x).prev_sample
    times = ddpm_schedule(model.sde, 1000).times[scheduler.timesteps].tolist()
    found = get_sampler("ddim", grid=times).sample(model.sde, model, start.shape, x_init=start)
    assert found.nfe == 10
    torch.testing.assert_close(found.x, x, rtol=0, atol=1e-3)


def test_at_the_steps_of_its_chain_a_network_is_told_their_numbers(tmp_path):
    model = pretrained.load(save(tmp_path / "model", theirs(**VARIANTS["none"])))
    times = ddpm_schedule(model.sde, 1000).times
    told = model._c_noise(model.sde, times)
    torch.testing.assert_close(told, torch.arange(1000.0, dtype=torch.float64), rtol=0, atol=1e-3)
    between = model._c_noise(model.sde, (times[1:] + times[:-1]) / 2) - torch.arange(999)
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
        ({"freq_shift": 0}, "freq_shift is 0; only 1 can be read"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift is 'scale_shift'"),
        ({"attention_head_dim": 8}, "attention_head_dim is 8; only one head"),
        ({"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, "down_block_types are .* only"),
        ({"block_out_channels": [32, 80]}, "all widths multiples of the first"),
        ({"block_out_channels": [64, 128]}, "makes a tensor of shape .* but the configuration needs"),
        ({"layers_per_block": 2}, r"lacks the tensor \S+"),
        ({"sample_size": None}, "is not the configuration of a network"),
    ],
)
def test_a_wrong_configuration(folder, changes, message):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(PretrainedError, match=message):
        pretrained.load(folder)


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
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"beta_schedule": "squaredcos_cap_v2"}))
    assert "beta_schedule 'squaredcos_cap_v2' with prediction_type 'epsilon' cannot be read" in fault()
    scheduler.write_text("{}")
    assert "is not the configuration of a chain ('num_train_timesteps')" in fault()
    scheduler.unlink()
    assert "no scheduler_config.json in" in fault()
    (folder / "config.json").write_text("hello")
    assert "config.json is not JSON" in fault()
    shutil.rmtree(folder)
    folder.mkdir()
    assert "no file" in fault()
