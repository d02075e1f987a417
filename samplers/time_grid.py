"""Time grids: float64 tensors of steps + 1 decreasing times from t_start to t_end. Step sizes are read off the grid."""

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from samplers.whole_numbers import whole_steps
from sde_lib import SDE, lookup

Rule = Callable[[SDE, Tensor, float, float, float], Tensor]
"""(sde, u in [0, 1], t_start, t_end, rho) -> times."""


def uniform(sde: SDE, u: Tensor, t_start: float, t_end: float, rho: float) -> Tensor:
    """Equal steps in t."""
    return t_start + u * (t_end - t_start)


def quadratic(sde: SDE, u: Tensor, t_start: float, t_end: float, rho: float) -> Tensor:
    """Equal steps in sqrt(t) (arXiv 2010.02502, appendix D.2)."""
    return (t_start**0.5 + u * (t_end**0.5 - t_start**0.5)).square()


def log_snr(sde: SDE, u: Tensor, t_start: float, t_end: float, rho: float) -> Tensor:
    """Equal steps in the log-SNR (arXiv 2206.00927)."""
    start, end = sde.log_snr(u.new_tensor([t_start, t_end]))
    return sde.time_from_log_snr(start + u * (end - start))


def karras(sde: SDE, u: Tensor, t_start: float, t_end: float, rho: float) -> Tensor:
    """Equal steps in (sigma / alpha)^(1/rho) (arXiv 2206.00364, equation 5)."""
    start, end = (-sde.log_snr(u.new_tensor([t_start, t_end])) / (2 * rho)).exp()
    return sde.time_from_log_snr(-2 * rho * (start + u * (end - start)).log())


def asinh(sde: SDE, u: Tensor, t_start: float, t_end: float, rho: float) -> Tensor:
    """Equal steps in asinh of l over rho, with l = log(alpha / sigma).

    They are small where signal and noise are of one size; far from there, where the noise or the data alone decide,
    they grow in proportion to |l|. This grid is the project's own; docs/samplers.md has what ``deis`` measures on it.
    """
    start, end = torch.asinh(sde.log_snr(u.new_tensor([t_start, t_end])) / (2 * rho))
    return sde.time_from_log_snr(2 * rho * torch.sinh(start + u * (end - start)))


GRIDS: dict[str, Rule] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "log_snr": log_snr,
    "karras": karras,
    "asinh": asinh,
}
"""Name -> rule."""

LOGARITHMIC = ("log_snr", "asinh")
"""Grids that have no end where the log-SNR is infinite."""

NATURAL_RHO = {"karras": 7.0, "asinh": 2.0}
"""Name -> the rho of a grid that has one."""


def time_grid(
    sde: SDE,
    grid: str | Sequence[float] | Tensor,
    steps: int,
    t_end: float,
    t_start: float | None = None,
    rho: float | None = None,
) -> Tensor:
    """The grid from t_start (by default T) to t_end, both hit exactly.

    Args:
        sde: the process, whose log-SNR some grids follow.
        grid: a key of ``GRIDS``, or the times themselves, as numbers or as text "1, 0.5, 0.01" (then ``steps`` and the
            ends are read off them).
        steps: number of steps.
        t_end: last time.
        t_start: first time.
        rho: exponent of the grid "karras" (7), or extent of the dense part of "asinh" (2).

    Returns:
        float64 (steps + 1,), strictly decreasing.

    Raises:
        ValueError: unknown name, no step, or times that do not decrease within [0, T].
    """
    if not isinstance(grid, str) or _NUMBERS.match(grid):
        times = _numbers(grid)
    else:
        times = _by_rule(sde, grid, steps, sde.T if t_start is None else t_start, t_end, rho)
    if times.ndim != 1 or len(times) < 2 or not (times.diff() < 0).all() or times[0] > sde.T or times[-1] < 0:
        first = ", ".join(f"{v:g}" for v in times.flatten()[:6].tolist())
        source = f" from grid {grid!r} with t_end {t_end!r}" if isinstance(grid, str) else ""
        raise ValueError(
            f"a time grid needs at least two times that decrease within [0, {sde.T:g}]; got "
            f"{times.numel()} of shape {tuple(times.shape)}{source}: {first}{', ...' if times.numel() > 6 else ''}"
        )
    return times


def _by_rule(sde: SDE, grid: str, steps: int, start: float, end: float, rho: float | None) -> Tensor:
    """Times by a rule of ``GRIDS``; the ends are those given, not their image under a map and its inverse."""
    rule, steps = lookup(GRIDS, grid, "time grid"), whole_steps(steps)
    if not sde.log_snr(torch.tensor(start, dtype=torch.float64)).isfinite() and grid in (*LOGARITHMIC, "karras"):
        raise ValueError(
            f"at t = {start:g} {sde!r} has no signal: give the times, beginning later (such as '0.99, 0.9, ...'), "
            "or grid 'uniform' with a sampler that needs none (reverse_diffusion)"
        )
    if not 0 <= end < start:
        raise ValueError(f"t_end is {end!r}; it must lie in [0, {start:g}), where the grid begins")
    if not sde.log_snr(torch.tensor(end, dtype=torch.float64)).isfinite() and grid in LOGARITHMIC:
        raise ValueError(
            f"t_end is {end:g}, where {sde!r} has no noise: grid {grid!r} needs a t_end above 0 (such as 0.001); "
            "uniform, quadratic and karras reach 0"
        )
    rho = NATURAL_RHO.get(grid, 1.0) if rho is None else rho
    times = rule(sde, torch.linspace(0, 1, steps + 1, dtype=torch.float64), start, end, rho)
    times[0], times[-1] = start, end
    return times


def with_noise_at_the_end(sde: SDE, times: Tensor) -> Tensor:
    """The times, for methods that ask for the score at the last of them too.

    Raises:
        ValueError: there is no noise at that time, and so no score of a network.
    """
    if sde.sigma(times[-1]) == 0:
        raise ValueError(
            f"t_end is {float(times[-1]):g}, where {sde!r} has no noise, and this method needs the score there: "
            "give a t_end above 0 (such as 0.001)"
        )
    return times


_NUMBERS = re.compile(r"\s*[-+.\d]|.*,")
"""Text that is meant as times."""


def _numbers(grid: str | Sequence[float] | Tensor) -> Tensor:
    """Times that were given, float64."""
    try:
        words = [float(word) for word in grid.split(",") if word.strip()] if isinstance(grid, str) else grid
        return torch.as_tensor(words, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"the times {grid!r} are not numbers; give such as '1, 0.5, 0.01'") from None
