"""The gradient of a part of a batch: by autograd, with bfloat16 weights, or as one CUDA graph."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from data import StepDraws
from models import ScoreModel, lowered
from models.ema import Model
from training.processes import ALONE, Processes
from training.sharding import is_sharded

LossFn = Callable[[Model, Tensor, Tensor | None, StepDraws], Tensor]
"""(model, x0: (b, *), labels (b, *) or None, their random numbers) -> losses (b,)."""


Part = tuple[Tensor, Tensor | None, StepDraws]
"""(x0, labels, random numbers) of one of the equal parts of a batch."""


class Gradient:
    """Puts the gradient of the mean loss of a batch into that of the weights, by autograd.

    Args:
        model: whose weights want a gradient.
        loss_fn: losses of a part.
        together: the processes that share the batch, over which it is averaged.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn, together: Processes = ALONE) -> None:
        self.model = together.parallel(model)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self._loss_fn = loss_fn
        self._together = together

    def __call__(self, parts: Sequence[Part]) -> Tensor:
        """The mean loss of this process's parts; gradients that were there before are gone."""
        for p in self.parameters:
            p.grad = None
        total = torch.zeros((), device=parts[0][0].device)
        for number, part in enumerate(parts, start=1):
            with nullcontext() if number == len(parts) else self._together.apart(self.model):
                total += self.add(*part, 1 / len(parts))
        return total

    def add(self, x0: Tensor, y: Tensor | None, draws: StepDraws, share: float) -> Tensor:
        """Add the gradient of a part, times its share of the batch; returns its mean loss times that."""
        loss = self._loss_fn(self.model, x0, y, draws).mean() * share
        loss.backward()
        return loss.detach()


class LeanGradient(Gradient):
    """Through a copy of the network whose products have bfloat16 weights, converted once a part and all together.

    Autocast does the same tensor by tensor. The gradients of those weights, which come in bfloat16 either way, are
    added up in float32; so are those of several processes (by ``ReplayedGradient``; DistributedDataParallel would not).
    """

    def __init__(self, model: ScoreModel, loss_fn: LossFn) -> None:
        super().__init__(model, loss_fn)
        net, pairs = lowered(model.net)
        self.model = model.around(net)
        self._weights, self._copies = [p for p, _ in pairs], [own for _, own in pairs]
        self._sums = [torch.empty_like(p) for p in self._weights]

    def add(self, x0: Tensor, y: Tensor | None, draws: StepDraws, share: float) -> Tensor:
        """See ``Gradient``."""
        with torch.no_grad():
            torch._foreach_copy_(self._copies, self._weights)
        loss = super().add(x0, y, draws, share)
        if not self._weights:
            return loss
        found = _gradients(self._copies)
        if self._weights[0].grad is None:
            torch._foreach_copy_(self._sums, found)
            for weight, total in zip(self._weights, self._sums, strict=True):
                weight.grad = total
        else:
            torch._foreach_add_(_gradients(self._weights), [g.float() for g in found])
        for own in self._copies:
            own.grad = None
        return loss


def _gradients(weights: Sequence[Tensor]) -> list[Tensor]:
    return [cast(Tensor, p.grad) for p in weights]  # a backward pass has been


class ReplayedGradient:
    """Another gradient as one CUDA graph: the CPU launches one thing in place of some thousands.

    What is recorded are the operations between the data with their random numbers, which are put in place for each
    part, and the gradient. Dropout follows the seed that is set before.

    Args:
        gradient: what is recorded, at the first call; that of one process.
        together: the processes over which the gradient is averaged.
    """

    def __init__(self, gradient: Gradient, together: Processes = ALONE) -> None:
        self._gradient = gradient
        self._together = together
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, parts: Sequence[Part]) -> Tensor:
        """See ``Gradient``; all parts have the shapes and the number of the first call."""
        if self._graph is None:
            self._graph = self._record(*parts[0], 1 / len(parts))
        for p, place in self._places:
            p.grad = place
        torch._foreach_zero_(self._sums)
        total = torch.zeros_like(self._loss)
        for x0, y, draws in parts:
            self._x0.copy_(x0)
            if self._y is not None and y is not None:
                self._y.copy_(y)
            self._draws.renew(draws)
            self._graph.replay()
            total += self._loss
        self._together.average(self._sums)
        return total

    def _record(self, x0: Tensor, y: Tensor | None, draws: StepDraws, share: float) -> torch.cuda.CUDAGraph:
        self._x0, self._y = x0.clone(), None if y is None else y.clone()
        self._draws = KeptDraws(draws)
        kept: Any = self._draws  # in the place of StepDraws
        random_state = torch.cuda.get_rng_state()

        def run() -> Tensor:
            self._draws.rewind()
            return self._gradient.add(self._x0, self._y, kept, share)

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):  # what is set up at the first call, and gradients that are still to be made
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # another thread may load data
                self._loss = run()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RuntimeError(
                f"the gradient cannot be recorded as a CUDA graph ({str(error).splitlines()[0]}); "
                "--config.training.cuda_graph=False does without"
            ) from error
        self._places = [(p, p.grad) for p in self._gradient.parameters if p.grad is not None]
        self._sums = [place for _, place in self._places]
        torch.cuda.set_rng_state(random_state)
        return graph


class KeptDraws:
    """Random numbers of a part at fixed places in memory, for operations that are recorded once.

    It notes what is asked of the draws it was made with, and ``renew`` draws the same of others.
    """

    def __init__(self, draws: StepDraws) -> None:
        self._draws = draws
        self._asked: list[tuple[str, tuple[Any, ...], Tensor]] = []
        self.rewind()

    def rewind(self) -> None:
        """The next one asked for is the first one."""
        self._next = 0

    def renew(self, draws: StepDraws) -> None:
        """Put those of another step or part in place."""
        for method, arguments, place in self._asked:
            place.copy_(getattr(draws, method)(*arguments))

    def __getattr__(self, name: str) -> Any:
        if name not in ("uniform", "normal_like", "rows"):
            return getattr(self._draws, name)

        def ask(*arguments: Any) -> Tensor:
            if self._next == len(self._asked):
                self._asked.append((name, arguments, getattr(self._draws, name)(*arguments)))
            self._next += 1
            return self._asked[self._next - 1][2]

        return ask


def gradient_of(
    model: Model, loss_fn: LossFn[Model], together: Processes, *, graph: bool
) -> Callable[[Sequence[Part]], Tensor]:
    """The fastest of these for the model's precision and device.

    Args:
        model: what is trained.
        loss_fn: losses of a part.
        together: the processes that share each batch.
        graph: record a CUDA graph where there is a GPU.
    """
    graph = graph and next(model.parameters()).is_cuda
    if is_sharded(model) or (together.count > 1 and not graph):
        return Gradient(model, loss_fn, together)
    gradient = Gradient(model, loss_fn)
    if isinstance(model, ScoreModel) and model.precision == "bfloat16":
        gradient = LeanGradient(model, loss_fn)
    return ReplayedGradient(gradient, together) if graph else gradient
