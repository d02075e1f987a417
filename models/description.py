"""A score model without its weights, in plain values: what a configuration, a file and a checkpoint have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from models.chain import ChainIndex
from models.networks import MODELS
from models.score_model import ScoreModel
from sde_lib import SDES, lookup


@dataclass(frozen=True)
class Description:
    """All that makes a ``ScoreModel`` but its weights, and the data that it knows: their range, levels and labels.

    Attributes:
        network: a key of ``MODELS``.
        options: arguments of the network.
        process: a key of ``SDES``.
        process_options: arguments of the process.
        prediction: as in ``ScoreModel``.
        conditioning: likewise, by name.
        chain: arguments of ``ChainIndex``, for the conditioning "chain".
        sigma_data: as in ``ScoreModel``.
        low: model value of the darkest level.
        high: of the brightest.
        levels: of a pixel; 0 for data without levels.
        dequantized: whether it was trained on levels that are spread over their bins, so that its density is of these.
        label_names: of the classes or attributes that the network is told; empty where they have none.
    """

    network: str
    options: Mapping[str, Any]
    process: str = "vp"
    process_options: Mapping[str, float] = field(default_factory=dict)
    prediction: str = "eps"
    conditioning: str = "time"
    chain: Mapping[str, Any] = field(default_factory=dict)
    sigma_data: float = 0.5
    low: float = -1.0
    high: float = 1.0
    levels: int = 256
    dequantized: bool = False
    label_names: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"data on [{self.low}, {self.high}]; give low < high")
        if not self.sigma_data > 0:
            raise ValueError(f"sigma_data is {self.sigma_data}; it must be above 0")

    def build_network(self) -> nn.Module:
        """The network alone, with fresh weights."""
        return lookup(MODELS, self.network, "network")(**self.options)

    def around(self, net: nn.Module, precision: str = "float32") -> ScoreModel:
        """The score model of a network."""
        return ScoreModel(
            net,
            lookup(SDES, self.process, "process")(**self.process_options),
            self.prediction,
            ChainIndex(**self.chain) if self.conditioning == "chain" else self.conditioning,
            sigma_data=self.sigma_data,
            precision=precision,
        )

    def build(self, precision: str = "float32") -> ScoreModel:
        """The score model, with fresh weights.

        Raises:
            ValueError: an unknown name, or a value that is not accepted.
            TypeError: an argument that the network or the process does not have.
        """
        net = self.build_network().to(memory_format=torch.channels_last)  # in which convolutions are fastest
        return self.around(net, precision)
