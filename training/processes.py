"""The processes that train together: who this one is, and what they agree upon (torch.distributed, by torchrun)."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.nn.parallel import DistributedDataParallel

from models import ScoreModel
from training.sharding import PATIENCE, is_sharded


@dataclass(frozen=True)
class Processes:
    """Of those that share each batch, this one.

    Every method is called by all of them in the same order; alone, none does anything.

    Attributes:
        rank: 0 .. count - 1; 0 is the one that prints and writes.
        count: of all.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def parallel(self, model: nn.Module) -> nn.Module:
        """The same model, whose gradients become the mean over the processes; that of shares is so already."""
        if self.count == 1 or is_sharded(model):
            return model
        if not isinstance(model, ScoreModel):
            raise TypeError(f"only a score model is shared by several processes, not {type(model).__name__}")
        device = next(model.parameters()).device
        devices = [device] if device.type == "cuda" else None
        return model.around(DistributedDataParallel(model.net, device_ids=devices, gradient_as_bucket_view=True))

    def apart(self, model: nn.Module) -> AbstractContextManager[None]:
        """Context in which gradients may stay with this process; ``model`` is what ``parallel`` gave.

        Those of shares do not: they would take the memory of the whole network.
        """
        if self.count > 1 and isinstance(model.net, DistributedDataParallel):
            return model.net.no_sync()
        return nullcontext()

    def total(self, x: Tensor) -> Tensor:
        """The sum of what each has, on the device of x."""
        if self.count > 1:
            x = x.clone()
            distributed.all_reduce(x)
        return x

    def mean(self, x: Tensor) -> Tensor:
        """The mean of what each has, on the device of x."""
        return self.total(x) / self.count

    def average(self, gradients: Sequence[Tensor]) -> None:
        """Make each of them the mean over the processes, in one message."""
        if self.count > 1:
            flat = _flatten_dense_tensors(gradients)
            distributed.all_reduce(flat)
            flat /= self.count
            torch._foreach_copy_(list(gradients), list(_unflatten_dense_tensors(flat, gradients)))

    def least(self, number: int) -> int:
        """The smallest of the numbers that they have."""
        if self.count == 1:
            return number
        least = torch.tensor(number)
        distributed.all_reduce(least, distributed.ReduceOp.MIN)
        return int(least)

    def latest(self, words: Sequence[str], word: str) -> str:
        """Of what each says, the word that stands last in ``words``; it does not wait for a GPU."""
        if self.count == 1:
            return word
        number = torch.tensor(words.index(word))
        distributed.all_reduce(number, distributed.ReduceOp.MAX)
        return words[int(number)]

    def all(self, fact: bool) -> bool:
        """Whether it is so for each of them."""
        return self.latest(("yes", "no"), "yes" if fact else "no") == "yes"

    def told(self, word: str | None) -> str | None:
        """What the first one says."""
        if self.count == 1:
            return word
        box = [word]
        distributed.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]


ALONE = Processes()


def _of_attempt(store: distributed.Store) -> distributed.Store:
    """What is said since torchrun started all again, which keeps its store: addresses of the dead must not be found."""
    return distributed.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def first_to_say(line: str) -> bool:
    """Whether this process is the first of those that torchrun has started to say this; True where it did not.

    They need not be connected, and any of them may be missing.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        return True
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = distributed.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10))
        return _of_attempt(store).add(f"said {line}", 1) == 1
    except (KeyError, ValueError, RuntimeError):  # torchrun is gone
        return True


@contextmanager
def joined(rank: int, count: int) -> Iterator[Processes]:
    """The processes that torchrun has started, connected; for one alone, nothing.

    Raises:
        ValueError: torchrun did not start them, or they do not find each other.
    """
    if count == 1:
        yield ALONE
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(f"{count} processes are to train together, but {', '.join(missing)} is not set; use torchrun")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and distributed.is_nccl_available() else "gloo"
    try:
        store, _, _ = next(distributed.rendezvous("env://", rank, count, timeout=PATIENCE))
        distributed.init_process_group(backend, store=_of_attempt(store), rank=rank, world_size=count, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the {count} processes do not find each other: {str(error).splitlines()[0]}") from error
    try:
        yield Processes(rank, count)
    finally:
        distributed.destroy_process_group()
