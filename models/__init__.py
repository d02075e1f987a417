"""Networks, and the one wrapper that makes a score of them."""

from torch import nn

from models.adm import ADM
from models.dequantizer import VariationalDequantizer
from models.ema import EMA
from models.mlp import MLP
from models.ncsnpp import NCSNpp
from models.score_model import CONDITIONINGS, PRECISIONS, ScoreModel
from models.unet import UNet

MODELS: dict[str, type[nn.Module]] = {"unet": UNet, "ncsnpp": NCSNpp, "adm": ADM, "mlp": MLP}

__all__ = [
    "ADM",
    "CONDITIONINGS",
    "EMA",
    "MLP",
    "MODELS",
    "PRECISIONS",
    "NCSNpp",
    "ScoreModel",
    "UNet",
    "VariationalDequantizer",
]
