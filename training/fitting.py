"""Which batch, and in how many parts, fits into memory."""

from bisect import bisect_left
from collections.abc import Callable

import torch

from models import ScoreModel
from training.device_memory import ran_out
from training.memory import MemoryEstimate


def largest_power(fits: Callable[[int], bool], most: int) -> int:
    """The largest power of two, up to ``most``, that fits; 0 where not even 1 does.

    Args:
        fits: whether so many samples do; no longer true once it is not.
        most: at least 1.
    """
    powers = [2**k for k in range(most.bit_length())]
    found = bisect_left(powers, True, key=lambda samples: not fits(samples))
    return powers[found - 1] if found else 0


def fewest_parts(fits: Callable[[int], bool], whole: int) -> int:
    """The smallest number of equal parts of ``whole`` samples of which one fits; 0 where not even one sample does."""
    divisors = [parts for parts in range(1, whole + 1) if whole % parts == 0]
    found = bisect_left(divisors, True, key=lambda parts: fits(whole // parts))
    return divisors[found] if found < len(divisors) else 0


def really_fits(model: ScoreModel, shape: tuple[int, ...], estimate: MemoryEstimate) -> bool:
    """Whether a pass forwards and backwards survives on a GPU, beside what training will keep there.

    On a CPU this is not tried, and True: there a system ends the process that asks for too much.

    Args:
        model: what is to be trained.
        shape: of one sample.
        estimate: of the pass.
    """
    if next(model.parameters()).device.type != "cuda":
        return True
    try:
        _try(model, shape, estimate)
    except RuntimeError as error:
        if not ran_out(error):
            raise
        return False
    finally:
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
    return True


def _try(model: ScoreModel, shape: tuple[int, ...], estimate: MemoryEstimate) -> None:
    device = next(model.parameters()).device
    both = 2 * sum(p.numel() * p.element_size() for p in model.parameters())  # weights and gradients make themselves
    kept = torch.empty(max(estimate.resident - both, 0), dtype=torch.uint8, device=device)
    x = torch.randn(estimate.samples, *shape, device=device)
    model.eps(x, torch.full((len(x),), model.sde.T / 2, device=device)).square().mean().backward()
    torch.cuda.synchronize(device)
    del kept
