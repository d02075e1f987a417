"""Networks, and the one wrapper that makes a score of them."""

from models import pretrained
from models.adm import ADM
from models.checkpointing import recompute_blocks
from models.dequantizer import VariationalDequantizer
from models.description import Description
from models.dit import DiT
from models.ema import EMA, Average, PowerEMA, parse_averages, power_std
from models.lowered import lowered
from models.mlp import MLP
from models.ncsnpp import NCSNpp
from models.networks import MODELS
from models.score_model import CONDITIONINGS, PRECISIONS, ScoreModel
from models.unet import UNet

__all__ = [
    "ADM",
    "CONDITIONINGS",
    "EMA",
    "MLP",
    "MODELS",
    "PRECISIONS",
    "Average",
    "Description",
    "DiT",
    "NCSNpp",
    "PowerEMA",
    "ScoreModel",
    "UNet",
    "VariationalDequantizer",
    "lowered",
    "parse_averages",
    "power_std",
    "pretrained",
    "recompute_blocks",
]
