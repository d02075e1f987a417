"""The networks by name."""

from torch import nn

from models.adm import ADM
from models.dit import DiT
from models.mlp import MLP
from models.ncsnpp import NCSNpp
from models.unet import UNet

MODELS: dict[str, type[nn.Module]] = {"unet": UNet, "ncsnpp": NCSNpp, "adm": ADM, "dit": DiT, "mlp": MLP}
"""Name -> network, F(x, c_noise, y)."""
