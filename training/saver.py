"""Checkpoints, and snapshots of averages, written while training goes on."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from training.checkpoint import Checkpoints
from training.sharding import Collector, Tensors, local
from training.state import TrainState


class Saver:
    """Copies the state at once, and writes the copy in a thread; use it as a context, which ends with all written.

    Training waits for the copy only, and for an earlier checkpoint that is still being written. Of a state in shares
    each process copies its own, and the first one puts them together in the thread.

    Args:
        checkpoints: where they go; None for a process that gives its shares, and writes nothing.
        snapshots: where those of averages go, likewise.
        best: where that of the best step goes, likewise.
    """

    def __init__(
        self,
        checkpoints: Checkpoints | None,
        snapshots: Checkpoints | None = None,
        best: Checkpoints | None = None,
    ) -> None:
        self._checkpoints = checkpoints
        self._snapshots = snapshots
        self._best = best
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._collector: Collector | None = None

    def save(self, state: TrainState) -> None:
        """Begin to write a checkpoint of the present step; where the state is in shares, all processes must.

        Raises:
            OSError: the one before could not be written.
        """
        self._begin(self._checkpoints, state, *state.content())

    def snapshot(self, state: TrainState) -> None:
        """Begin to write a snapshot of the averages that are kept for others; see ``save``."""
        self._begin(self._snapshots, state, *state.snapshot())

    def best(self, state: TrainState, **values: Any) -> None:
        """Begin to write the checkpoint of the best step so far, with more plain values; see ``save``."""
        tensors, own = state.content()
        self._begin(self._best, state, tensors, {**own, **values})

    def _begin(
        self, target: Checkpoints | None, state: TrainState, tensors: Tensors, values: Mapping[str, Any]
    ) -> None:
        self.wait()
        if target is None and not state.sharded:
            return
        if self._collector is None and state.sharded:
            self._collector = Collector()
        collector, step = self._collector, state.step
        copies, event = snapshot(tensors)

        def write() -> None:
            if event is not None:
                event.synchronize()
            content = copies if collector is None else collector(tensors, copies)
            if target is not None:
                target.save(step, content, values)

        self._writing = self._pool.submit(write)

    def wait(self) -> None:
        """Return when all is on the disk, or raise what kept it from getting there."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception as error:
            if value is None:
                raise
            tqdm.write(f"and writing failed too: {error}")
        finally:
            self._pool.shutdown()


def snapshot(tensors: Tensors) -> tuple[Tensors, torch.cuda.Event | None]:
    """Copies on the CPU; those from a GPU are there when the event has come, and no later work changes them.

    Of shares, those of this process.
    """
    on_gpu = any(value.is_cuda for group in tensors.values() for value in group.values())

    def copy(value: Tensor) -> Tensor:
        value = local(value.detach())
        target = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
        return target.copy_(value, non_blocking=True)

    copies = {name: {key: copy(value) for key, value in group.items()} for name, group in tensors.items()}
    return copies, torch.cuda.current_stream().record_event() if on_gpu else None
