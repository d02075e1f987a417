"""Checkpoints of guided- and improved-diffusion, written here in their layout; outputs of their own code."""

import pytest
import torch
from models_golden import Golden

from models import pretrained
from models.pretrained import PretrainedError
from models.pretrained.files import skeleton
from models.pretrained.guided import describe, sources
from models.pretrained.published import PUBLISHED
from samplers import get_sampler


@pytest.fixture(params=["guided_uncond", "improved_uncond"])
def golden(request):
    return Golden(request.param)


def write(path, tensors):
    torch.save(tensors, path)
    return path


def test_the_output_is_that_of_the_original(golden, tmp_path):
    model = pretrained.load(write(tmp_path / "model.pt", golden.tensors), "guided", config=golden.config)
    with torch.no_grad():
        out = model.net.outputs(golden.x, golden.labels)
        half = model.net(golden.x, golden.labels)
    assert float((out - golden.out).abs().max() / golden.out.abs().max()) < 1e-5
    assert torch.equal(half, out[:, :3])
    assert sum(p.numel() for p in model.net.parameters()) == golden.parameters
    x = get_sampler("dpmpp", steps=3).sample(model.sde, model.requires_grad_(False), (1, 3, 32, 32)).x
    assert x.isfinite().all()


@pytest.mark.parametrize(
    "changes",
    [{"resblock_updown": True}, {"class_cond": True}, {"num_head_channels": 16}, {"use_scale_shift_norm": False}],
    ids=str,
)
def test_every_option_makes_a_network_that_loads_and_runs(changes, tmp_path):
    """A file with each tensor that the sources ask for; nothing is left over."""
    config = Golden("guided_uncond").config | changes
    net = describe(config).build().net
    own = net.state_dict()
    tensors = {}
    for name, source in sources(net, new_order=False).items():
        value = torch.randn_like(own[name]) / 10
        value = value[:-1] if name.startswith("embed.label.") else value
        tensors[source.names[0]] = value[..., 0] if "qkv.weight" in name or "attention" in name else value
        if "proj.weight" in name:
            tensors[source.names[0]] = value[..., 0]
    model = pretrained.load(write(tmp_path / "m.pt", tensors), "guided", config=config)
    y = torch.tensor([3]) if changes.get("class_cond") else None
    assert model(torch.randn(1, 3, 32, 32), 0.5, y).isfinite().all()


def test_the_heads_are_put_in_our_order(tmp_path):
    """guided-diffusion's older order has q, k and v of each head together; its newer one all q, all k, all v."""
    golden = Golden("guided_uncond")
    outs = []
    for new in (False, True):
        tensors = dict(golden.tensors)
        if new:  # the same network, its rows in the newer order
            for name in [n for n in tensors if ".qkv." in n]:
                rows = tensors[name]
                tensors[name] = rows.unflatten(0, (4, 3, 16)).transpose(0, 1).flatten(0, 2)
        config = golden.config | {"use_new_attention_order": new}
        model = pretrained.load(write(tmp_path / "m.pt", tensors), "guided", config=config)
        with torch.no_grad():
            outs.append(model.net(golden.x, golden.labels))
    assert torch.equal(*outs)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("64x64_diffusion", 296),
        ("128x128_diffusion", 422),
        ("256x256_diffusion", 554),
        ("512x512_diffusion", 559),
        ("imagenet64_cond_270M_250K", 273),
    ],
)
def test_a_published_network_has_its_published_size(name, millions):
    """arXiv 2105.05233, table 4, and 2102.09672; without the row of the null label, which is ours."""
    net = skeleton(describe(PUBLISHED[name]))
    count = sum(p.numel() for p in net.parameters()) - net.embed.label.weight.shape[1]
    assert round(count / 1e6) == millions


def test_the_network_is_told_the_steps_of_its_own_chain():
    flags = Golden("improved_uncond").config | {
        "diffusion_steps": 4000,
        "noise_schedule": "cosine",
        "rescale_timesteps": False,
    }
    model = describe(flags).build()
    t = torch.arange(1, 3960, dtype=torch.float64) / 4000  # a(t) = f(t) / f(0) is a of step 4000 t - 1
    torch.testing.assert_close(model.c_noise(model.sde, t), 4000 * t - 1, rtol=0, atol=1e-4)
    model = describe(flags | {"rescale_timesteps": True}).build()
    torch.testing.assert_close(model.c_noise(model.sde, t), 1000 * t - 0.25, rtol=0, atol=1e-4)
    assert describe(flags | {"predict_xstart": True}).prediction == "x0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w * float("nan"), "has values that are not finite; weights are dense tensors of finite numbers"),
        (lambda w: w.int(), "is of torch.int32, torch.strided"),
        (lambda w: w.to(torch.complex64), "is of torch.complex64"),
    ],
)
def test_values_that_are_no_weights(tmp_path, change, message):
    golden = Golden("guided_uncond")
    name = "out.2.weight"
    path = write(tmp_path / "m.pt", golden.tensors | {name: change(golden.tensors[name])})
    with pytest.raises(PretrainedError, match=f"{name} {message}"):
        pretrained.load(path, config=golden.config)


def test_weights_of_half_precision_are_widened(tmp_path):
    golden = Golden("guided_uncond")
    halves = {name: value.half() for name, value in golden.tensors.items()}
    model = pretrained.load(write(tmp_path / "m.pt", halves), config=golden.config)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.net.head.bias, halves["out.2.bias"].float())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": True}, "num_heads is True; it must be a whole number above 0"),
        ({"num_head_channels": 0}, "num_head_channels is 0; it must be a whole number above 0, or -1"),
        ({"learn_sigma": "True"}, "learn_sigma is 'True'; it must be True or False"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must be a number in \[0, 1\)"),
        ({"attention_resolutions": [16]}, r"attention_resolutions is \[16\]; it must be text"),
        ({"attention_resolutions": "a"}, "does not describe a network: invalid literal"),
        ({"noise_schedule": "sqrt"}, "noise_schedule is 'sqrt'; only 'linear' and 'cosine'"),
        ({"num_heads_upsample": 2}, "another num_heads_upsample than num_heads cannot be read"),
        ({"num_channels": 48}, "makes a tensor of shape"),
        ({"num_res_blocks": 2}, "lacks the tensor"),
        ({"learn_sigma": False}, "out.2.weight makes a tensor of shape"),
        ({"channel_mult": "", "image_size": 48}, "there is no default of channel_mult for image_size 48"),
        ({"diffusion_steps": 4000}, "rescale_timesteps is not given, and matters with 4000 steps"),
        ({"num_heads": 5}, "64 channels cannot be split into 5 attention heads"),
    ],
    ids=str,
)
def test_a_wrong_configuration(tmp_path, changes, message):
    golden = Golden("guided_uncond")
    path = write(tmp_path / "m.pt", golden.tensors)
    with pytest.raises(PretrainedError, match=message):
        pretrained.load(path, "guided", config=golden.config | changes)
    with pytest.raises(PretrainedError, match="does not hold its configuration; give config="):
        pretrained.load(path, "guided")
    with pytest.raises(PretrainedError, match="holds other things than tensors"):
        pretrained.load(write(path, {"step": 3}), "guided", config=golden.config)
