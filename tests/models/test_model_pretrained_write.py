"""What is written here: diffusers makes the same images of it, and it is read back to the bit."""

import json
from dataclasses import asdict

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel

from models import MODELS, Description, ScoreModel, pretrained
from models.pretrained import PretrainedError, diffusers_write, native
from samplers import get_sampler
from sde_lib import PREDICTIONS, SDES, chain_alphas_cumprod

SMALL = {"in_channels": 1, "image_size": 8, "channels": 24, "channel_mult": (1, 2), "res_blocks": 1}
UNET = SMALL | {"attention_resolutions": (4,), "dropout": 0.0}
UNIT = {"prediction": "edm", "sigma_data": 1.0, "conditioning": "log_snr"}
"""With data of unit variance EDM's network sees a chain that keeps its variance, whatever the process."""
KINDS = {
    "eps": {},
    "x0": {"prediction": "x0"},
    "v": {"prediction": "v"},
    "its own chain": {"conditioning": "chain", "chain": {"steps": 200, "first": 1e-3, "last": 0.08}},
    "a shorter chain": {"conditioning": "chain", "chain": {"steps": 500}},
    "a scaled chain": {"conditioning": "chain", "chain": {"chain": "cosine", "steps": 4000, "scale": 0.25}},
    "cosine": {"process": "cosine", "conditioning": "chain", "chain": {"chain": "cosine", "steps": 1000}},
    "log_sigma": {"conditioning": "log_sigma"},
    **{f"edm on {name}": UNIT | {"process": name} for name in SDES},
}


def awakened(description):
    """A score model with random weights, none of them silent."""
    torch.manual_seed(1)
    model = description.build().eval().requires_grad_(False)
    for parameter in model.parameters():
        if not parameter.any():
            parameter.normal_(0, 0.2)
    return model


def start():
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_draws_our_images(tmp_path, kind):
    description = Description("unet", UNET, **KINDS[kind])
    model = awakened(description)
    diffusers_write.write(tmp_path / "out", description, model)
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "out")
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(5)  # 800, 600, ...: VE ends before 900
    x = start()
    with torch.no_grad():
        for step in scheduler.timesteps:
            x = scheduler.step(pipeline.unet(x, step).sample, step, x).prev_sample
    kept = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    times = model.sde.time_from_log_snr((kept / (1 - kept)).log())
    alpha, sigma = model.sde.marginal(times[0])
    c_in = PREDICTIONS[model.prediction](alpha, sigma, model.sigma_data).c_in
    found = get_sampler("ddim", grid=times.tolist()).sample(model.sde, model, x.shape, x_init=(start() / c_in).float())
    assert float(x.std()) > 0.1
    largest = max(1.0, float(x.abs().max()))  # random weights draw large images from eps
    torch.testing.assert_close(found.x / largest, x / largest, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["eps", "v", "its own chain", "a shorter chain", "edm on vp"])
def test_what_diffusers_is_given_can_be_read_back(tmp_path, kind):
    """It is told the same at the steps of the chain; between them rows are mixed."""
    description = Description("unet", UNET, **KINDS[kind])
    model = awakened(description)
    diffusers_write.write(tmp_path / "out", description, model)
    again = pretrained.load(tmp_path / "out")
    kept = chain_alphas_cumprod(**description.chain)[[3, 40, 150]]
    t, u = (m.sde.time_from_log_snr((kept / (1 - kept)).log()).float() for m in (model, again))
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(again.eps(x, u), model.eps(x, t), rtol=0, atol=1e-3)


def test_the_pipeline_of_diffusers_runs(tmp_path):
    description = Description("unet", UNET, **UNIT)
    diffusers_write.write(tmp_path / "out", description, awakened(description))
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, num_inference_steps=5, output_type="np").images
    assert images.shape == (2, 8, 8, 1)


def test_classes_and_the_null_label(tmp_path):
    description = Description("unet", UNET | {"num_classes": 3})
    model = awakened(description)
    diffusers_write.write(tmp_path / "out", description, model)
    unet = UNet2DModel.from_pretrained(tmp_path / "out" / "unet")
    x, steps = torch.randn(4, 1, 8, 8), torch.tensor([5, 300, 700, 990])
    for ours, theirs in ((torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 2, 0])), (None, torch.full((4,), 3))):
        with torch.no_grad():
            expected = unet(x, steps, theirs).sample
            kept = chain_alphas_cumprod()[steps]
            times = model.sde.time_from_log_snr((kept / (1 - kept)).log())
            torch.testing.assert_close(model.eps(x, times.float(), ours), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("options", [{"heads": 4}, {"head_channels": 12}, {"groups": 3, "norm_eps": 1e-5}], ids=str)
@pytest.mark.parametrize("more", [{}, {"embedding": "cosines_first", "downsample_padding": 0}], ids=str)
def test_every_option_is_written(tmp_path, options, more):
    if "heads" in options:
        more = more | {"channel_mult": (1, 1), "attention_resolutions": (8, 4)}  # heads of one width
    description = Description("unet", UNET | options | more, conditioning="chain")
    model = awakened(description)
    diffusers_write.write(tmp_path / "out", description, model)
    unet = UNet2DModel.from_pretrained(tmp_path / "out" / "unet")
    x, steps = torch.randn(2, 1, 8, 8), torch.tensor([5, 700])
    with torch.no_grad():
        torch.testing.assert_close(model.net(x, steps.float()), unet(x, steps).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "ncsnpp"}, "no network like 'ncsnpp'; only 'unet' fits it"),
        ({"process": "subvp"}, r"with SubVPSDE\(.*\) and the prediction 'eps' the network does not see a chain"),
        (UNIT | {"sigma_data": 0.5}, "train on vp or cosine, or with model.prediction=edm and model.sigma_data=1"),
        ({"prediction": "score"}, "no prediction like 'score'; train with eps, x0, v or edm"),
        ({"low": 0.0}, r"the data lie on \[0, 1\]; diffusers' lie on \[-1, 1\]"),
        ({"options": UNET | {"channel_mult": (2, 2)}}, "channel_mult begins with 2, not 1"),
        ({"options": UNET | {"image_size": 9}}, "of size 9 cannot be halved 1 times exactly"),
        (
            {"options": UNET | {"heads": 2, "attention_resolutions": (8, 4)}},
            "several widths; .*: set model.head_channels",
        ),
    ],
    ids=str,
)
def test_what_diffusers_does_not_have(tmp_path, changes, message):
    description = Description(**{"network": "unet", "options": UNET} | changes)
    with pytest.raises(ValueError, match=message):
        diffusers_write.write(tmp_path / "out", description, description.build())
    assert not (tmp_path / "out").exists()


# Our own file.

OPTIONS = {
    "unet": UNET | {"num_classes": 4},
    "ncsnpp": UNET | {"progressive": "skip", "channels": 16},
    "adm": UNET | {"channels": 32, "learned_variance": True},
    "dit": {"in_channels": 1, "image_size": 8, "channels": 24, "depth": 2, "heads": 2},
    "mlp": {"dim": 3, "width": 8, "blocks": 1},
}


@pytest.mark.parametrize("name", MODELS)
def test_our_own_file_says_all(tmp_path, name):
    chain = {"chain": "cosine", "steps": 50}
    description = Description(
        name, OPTIONS.get(name, {}), "cosine", {"s": 0.01}, "v", "chain", chain, 0.7, low=0.0, levels=17
    )
    model = awakened(description)
    native.write(tmp_path / "m.safetensors", description, model)
    found = pretrained.read(tmp_path / "m.safetensors")
    assert json.loads(json.dumps(found.description.__dict__)) == json.loads(json.dumps(description.__dict__))
    again = pretrained.load(tmp_path / "m.safetensors")
    assert isinstance(again, ScoreModel)
    x = torch.randn(2, 3) if name == "mlp" else torch.randn(2, 1, 8, 8)
    t = torch.tensor([0.1, 0.9])
    with torch.no_grad():
        assert torch.equal(again(x, t), model(x, t))


def test_a_file_of_ours_that_is_not_what_it_should_be(tmp_path):
    path, description = tmp_path / "m.safetensors", Description("mlp", OPTIONS["mlp"])
    model = description.build()

    def fault(**options):
        with pytest.raises(PretrainedError) as caught:
            pretrained.load(path, **options)
        return str(caught.value)

    assert f"no file or folder {path}" in fault()
    native.write(path, description, model)
    assert "holds its own configuration; leave config out" in fault(config={"dim": 3})
    whole = path.read_bytes()
    for content in (b"", whole[:30], whole[:-1]):
        path.write_bytes(content)
        assert f"{path} is damaged or cut short" in fault()
    native.write(path, Description("mlp", {"dim": 4, "width": 8, "blocks": 1}), model)
    assert "makes a tensor of shape (8, 3), but the configuration needs (8, 4)" in fault()
    native.write(path, Description("mpl", {}), model)
    assert "does not describe a network: unknown network 'mpl'" in fault()
    wrong = {"process": "xp"}, {"prediction": "z"}, {"conditioning": "z"}, {"chain": {"steps": -1}}, {"sigma_data": -1}
    for changes in (*wrong, {"low": 5.0}, {"process_options": {"beta_min": -1}}, {"more": 1}, {"options": [1]}):
        content = asdict(description) | ({"conditioning": "chain"} if "chain" in changes else {}) | changes
        native.save_file(dict(model.net.state_dict()), path, {native.HEADER: json.dumps(content)})
        assert f"the header of {path} does not describe a network: " in fault()
    native.save_file(dict(model.net.state_dict()), path)
    assert "does not say what network it is of" in fault()
    native.save_file(dict(model.net.state_dict()), path, {native.HEADER: "[1"})
    assert "does not describe a network: " in fault()
    native.save_file(dict(model.net.state_dict()), path, {native.HEADER: "[1]"})
    assert "does not describe a network: " in fault()
