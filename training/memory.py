"""Memory that a pass through the network needs, found without computing anything."""

import copy
import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode  # what torch.compile traces with
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models import ScoreModel, recompute_blocks
from models.layers import products_in
from models.score_model import PRECISIONS
from sde_lib import lookup

WORK = {"training": "weights", "likelihood": "input", "sampling": "nothing"}
"""What a network is used for -> what is differentiated by."""


class MemoryEstimate(NamedTuple):
    """Bytes.

    Attributes:
        resident: what stays: weights; in training their gradients, two moments, and the averages.
        activations: what a batch needs beyond that, at its largest.
        samples: in that batch.
        precision: of the network.
        averages: of the weights; None where nothing is trained.
    """

    resident: int
    activations: int
    samples: int
    precision: str
    averages: int | None

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.resident + self.activations

    def __str__(self) -> str:
        average = "average" if self.averages == 1 else "averages"
        stays = "weights" if self.averages is None else f"weights, gradients, optimizer and {average}"
        samples = "one sample" if self.samples == 1 else f"{self.samples} samples"
        return (
            f"{in_words(self.total)}: {in_words(self.resident)} for {stays}, {in_words(self.activations)} for the "
            f"activations of {samples} in {self.precision}"
        )


def in_words(size: int) -> str:
    """Bytes as MiB, or from 10 GiB on as GiB."""
    return f"{size / 2**20:.0f} MiB" if size < 10 * 2**30 else f"{size / 2**30:.1f} GiB"


def estimate_memory(
    model: ScoreModel,
    shape: tuple[int, ...],
    batch_size: int,
    *,
    work: str = "training",
    averages: int = 1,
    shares: int = 1,
    checkpointing: bool | None = None,
    precision: str | None = None,
) -> MemoryEstimate:
    """Run the network forwards and backwards on tensors that have shapes but no data, and note the most that lives.

    They are the tensors that the network's own device, precision and activation checkpointing would make. Not seen:
    what the kernels take for themselves meanwhile, what the allocator rounds up, the batch, and the program.

    Args:
        model: the score model; left as it is.
        shape: of one sample.
        batch_size: samples that pass at once.
        work: a key of ``WORK``.
        averages: of the weights, that training keeps.
        shares: into which all that stays is cut, of which each process has one.
        checkpointing: as if activation checkpointing were switched so; None for as it is.
        precision: as if the network had this one; None for its own.
    """
    trains = lookup(WORK, work, "work") == "weights"
    precision = precision or model.precision
    weights = _bytes(model.parameters())
    gradients = _bytes(p for p in model.parameters() if p.requires_grad) if trains else 0
    most = _most_alive(
        model, (batch_size, *shape), WORK[work], checkpointing, lookup(PRECISIONS, precision, "precision")
    )
    resident = (1 + averages) * weights + 3 * gradients if trains else weights
    kept = averages if trains else None
    return MemoryEstimate(resident // shares, max(most - gradients, 0), batch_size, precision, kept)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _most_alive(
    model: ScoreModel, shape: tuple[int, ...], by: str, checkpointing: bool | None, dtype: torch.dtype
) -> int:
    """Bytes beside the weights; the score model's own arithmetic on images is next to nothing, and left out."""
    device = next(model.parameters()).device
    fake = FakeTensorMode()
    ghosts = {id(weight): fake.from_tensor(weight) for weight in (*model.parameters(), *model.buffers())}
    living = _Living(ghosts.values())
    net = copy.deepcopy(model.net, {**ghosts})  # finds them in the place of the weights
    net.train(by == "weights")
    if by != "weights":
        net.requires_grad_(False)
    if checkpointing is not None:
        recompute_blocks(net, checkpointing)
    with fake, living, torch.set_grad_enabled(by != "nothing"):
        x = torch.empty(shape, device=device, requires_grad=by == "input")
        with products_in(dtype, device):
            out = net(x, torch.empty(shape[0], device=device))
        if out.requires_grad:
            out.float().square().mean().backward()
    return living.most


class _Living(TorchDispatchMode):
    """Counts the bytes of the storages that live, as operations make them and as they are freed."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self._seen = {id(tensor.untyped_storage()) for tensor in known}
        self._now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # two of three calls, which make nothing
            return args[0].fake_device
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())  # views of one tensor take its memory once
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            weakref.finalize(storage, self._forget, key, size)
            self._now += size
            self.most = max(self.most, self._now)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._now -= size
