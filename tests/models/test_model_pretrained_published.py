"""Where the settings of a checkpoint come from that does not hold them."""

import json

import pytest
import torch
from ml_collections import ConfigDict
from models_golden import Golden

from models import pretrained
from models.pretrained import PretrainedError, guided, score_sde
from models.pretrained.files import skeleton
from models.pretrained.published import GUIDED, PUBLISHED, SCORE_SDE, settings_of


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_configuration_makes_a_network(name):
    module = score_sde if name in SCORE_SDE else guided
    description = module.describe(PUBLISHED[name])
    count = sum(p.numel() for p in skeleton(description).parameters())
    assert 30e6 < count < 600e6
    assert "deep" not in name or count > 100e6
    assert description.process == name.split("/")[0] or name in GUIDED


def test_the_networks_of_cifar10_have_their_sizes():
    """As score_sde_pytorch's own code counts them; the deep ones have twice the blocks."""
    sizes = {
        "vp/cifar10_ddpm_continuous": 35_218_947,
        "vp/cifar10_ddpmpp_continuous": 61_804_419,
        "ve/cifar10_ncsnpp_continuous": 62_758_915,
    }
    for name, size in sizes.items():
        assert sum(p.numel() for p in skeleton(score_sde.describe(SCORE_SDE[name])).parameters()) == size


def test_the_discrete_networks_are_told_their_steps():
    discrete = score_sde.describe(SCORE_SDE["vp/cifar10_ddpm"]).build()
    continuous = score_sde.describe(SCORE_SDE["vp/cifar10_ddpm_continuous"]).build()
    t = torch.tensor([0.5], dtype=torch.float64)
    assert float(continuous.c_noise(continuous.sde, t)) == 999 * 0.5
    kept = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[[300]]
    t = discrete.sde.time_from_log_snr((kept / (1 - kept)).log())
    torch.testing.assert_close(discrete.c_noise(discrete.sde, t), torch.tensor([300.0], dtype=torch.float64))


def test_a_name_is_read_off_the_path(tmp_path):
    assert settings_of(tmp_path / "64x64_diffusion.pt", None) is GUIDED["64x64_diffusion"]
    path = tmp_path / "ve" / "cifar10_ncsnpp_continuous" / "checkpoint_24.pth"
    assert settings_of(path, None) is SCORE_SDE["ve/cifar10_ncsnpp_continuous"]
    assert settings_of(tmp_path / "my.pt", None) is None
    assert settings_of(tmp_path / "my.pt", "vp/ddpm/celebahq") is SCORE_SDE["vp/ddpm/celebahq"]


def test_every_way_to_give_settings(tmp_path):
    golden, path = Golden("guided_uncond"), tmp_path / "m.pt"
    torch.save(golden.tensors, path)
    with pytest.raises(PretrainedError, match="does not hold its configuration"):
        pretrained.load(path)
    file = tmp_path / "flags.json"
    file.write_text(json.dumps(golden.config))
    for config in (golden.config, ConfigDict(golden.config), file, str(file)):
        assert pretrained.load(path, config=config).net.in_channels == 3
    file.rename(tmp_path / "m.json")  # beside the checkpoint
    assert pretrained.load(path).net.in_channels == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("ve/cifar10", "config is 've/cifar10'; give a mapping, a JSON file, or a published name: ve/cifar10_ncsnpp_c"),
        ("default_cifar10.py", "config is 'default_cifar10.py'; give"),
        ("none.json", "no file none.json"),
        (3, "config is int; give a mapping"),
    ],
)
def test_settings_that_are_none(tmp_path, config, message):
    torch.save(Golden("guided_uncond").tensors, tmp_path / "m.pt")
    with pytest.raises(PretrainedError, match=message):
        pretrained.load(tmp_path / "m.pt", config=config)
