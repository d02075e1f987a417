"""Networks that do not fit: each process keeps a share of all weights, averages and moments (FSDP2, arXiv 2304.11277).

A block's weights come together for its forward and its backward pass, and go again; its gradient is averaged over the
processes as it is scattered to them. Everything else works on shares as it does on whole tensors. A share knows the
whole that it belongs to (DTensor), so checkpoints hold whole tensors, and know nothing of shares.
"""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, distributed, nn

from models import PRECISIONS, ScoreModel
from models.layers import ConditionEmbedding

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

PATIENCE = timedelta(hours=2)
"""How long processes wait for one that draws samples or writes a checkpoint; one that died, torchrun tells at once."""
Tensors = Mapping[str, Mapping[str, Tensor]]
"""File name -> name -> tensor."""


def shard(model: ScoreModel, count: int, device: torch.device) -> ScoreModel:
    """Leave this process its share of every weight, on a device; all processes must call it, with the same weights.

    The weights may come from elsewhere: they go to the device block by block, each cut before the next comes. The
    network computes in the model's precision; gradients are summed in float32.

    Args:
        model: changed in place. An optimizer over its weights must be made afterwards, a copy of it before.
        count: number of processes.
        device: where the shares are kept; of GPUs the current one.
    """
    # here and not above: these take a second to import
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (count,)),
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=PRECISIONS[model.precision],
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,  # of c_noise, 0 .. 1000, bfloat16 would keep three digits
        ),
    }
    net = model.net.to(memory_format=torch.contiguous_format)  # the layout that can be cut
    net.register_forward_pre_hook(_channels_last)
    net.register_forward_hook(_no_view)
    for part in net.modules():
        if isinstance(part, ConditionEmbedding):  # in float32, whatever the rest
            fully_shard(part, mesh=options["mesh"])
    for block in _blocks(net):
        fully_shard(block, **options)
    fully_shard(net, **options)
    return model


def _blocks(module: nn.Module, listed: bool = False) -> Iterator[nn.Module]:
    """The entries of a network's lists, and of lists in them; single layers remain with the rest of the network."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _blocks(child, listed=True)
        elif listed and next(child.children(), None) is not None:
            yield child


def _channels_last(net: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Images as their convolutions are fastest; the weights, which otherwise see to that, no longer can."""
    x, *others = inputs
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x, *others


def _no_view(net: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
    """A part of the outputs as a tensor of its own: FSDP2 marks what a network returns, and warns of views."""
    return out.clone() if out._is_view() else out


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights are shares."""
    return any(_is_share(weights) for weights in model.parameters())


def whole(value: Tensor) -> Tensor:
    """The whole that a share belongs to; all processes must call it. Other tensors are whole."""
    return value.full_tensor() if _is_share(value) else value


def local(value: Tensor) -> Tensor:
    """The share of this process as a plain tensor; of other tensors all."""
    return value.to_local() if _is_share(value) else value


class Collector:
    """Puts copies of shares together on the first process, on the CPU; all processes must make one, and call it alike.

    It has a group of its own, so that a thread may do it while training goes on.
    """

    def __init__(self) -> None:
        self._group: Any = distributed.new_group(backend="gloo", timeout=PATIENCE)  # a ProcessGroup: all are in it

    def __call__(self, owns: Tensors, copies: Tensors) -> Tensors:
        """The whole tensors, on the first process.

        Args:
            owns: the shares.
            copies: of this process's part of them.
        """
        return {
            name: {
                key: self._collect(own.shape, copies[name][key]) if _is_share(own) else copies[name][key]
                for key, own in group.items()
            }
            for name, group in owns.items()
        }

    def _collect(self, shape: torch.Size, part: Tensor) -> Tensor:
        if distributed.get_rank() > 0:
            if part.numel():
                distributed.send(part, 0, group=self._group)
            return part
        collected = torch.empty(shape, dtype=part.dtype)
        first, *others = collected.chunk(distributed.get_world_size())  # as FSDP2 cuts
        first.copy_(part)
        for rank, rows in enumerate(others, start=1):
            distributed.recv(rows, rank, group=self._group)
        return collected


def like(own: Tensor, value: Tensor) -> Tensor:
    """A copy of ``value`` as ``own`` is: laid out like it in memory, and of a share, this process's share."""
    if not _is_share(own):
        return torch.empty_like(own).copy_(value)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def _is_share(value: Any) -> "TypeGuard[DTensor]":
    return hasattr(value, "full_tensor")  # a DTensor, by what it can do: its class takes a second to import
