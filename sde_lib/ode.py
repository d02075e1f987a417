"""Integrating dx/dt = fn(t, x): torchdiffeq's methods, with scipy's as a reference behind the same call."""

import math
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from sde_lib.registry import lookup

State = TypeVar("State", Tensor, tuple[Tensor, ...])

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "explicit_adams": 4, "implicit_adams": 5}
"""Methods of fixed steps, and their orders of convergence."""
SCIPY = {f"scipy_{name.lower()}": name for name in ("RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA")}
METHODS: dict[str, str] = (
    dict.fromkeys(ADAPTIVE, "adaptive") | dict.fromkeys(FIXED, "fixed") | dict.fromkeys(SCIPY, "scipy")
)
"""Name -> kind. Adaptive and scipy methods obey the tolerances, fixed ones need a number of steps."""

WEIGHTLESS = {"dopri5": {2}, "dopri8": {2, 3, 4, 5}}
"""Stages of a step that serve later stages only: neither result nor error estimate of the step has weights for them."""

ADAMS_MAX_ORDER = 5
"""Four-step Adams methods. torchdiffeq's default of 12 makes the explicit one diverge at practical steps."""


class IntegrationError(RuntimeError):
    """An ODE that could not be solved: the message says why, and what to try."""


class ODESolution(NamedTuple):
    """State at the end time, of the initial state's structure, and the evaluations of the drift that it took."""

    x: Any
    nfe: int


def integrate(
    fn: Callable[[Tensor, State], State],
    x: State,
    t0: float,
    t1: float,
    *,
    method: str = "dopri5",
    rtol: float | tuple[float, ...] = 1e-5,
    atol: float | tuple[float, ...] = 1e-5,
    steps: int | None = None,
    grid: Sequence[float] | None = None,
    breakpoints: Sequence[float] = (),
    max_nfe: int = 10_000,
    on_step: Callable[[float, State], None] | None = None,
    time_of: Callable[[float], float] = float,
    drift_alone: Callable[[Tensor, State], State] | None = None,
) -> ODESolution:
    """Solve dx/dt = fn(t, x) from x(t0) to x(t1); t1 may lie before t0.

    Time runs in float64, the state in its own dtype. Adaptive methods control the largest over the samples of each
    sample's own root-mean-square error, so a sample meets the tolerance whatever else is in its batch, and they land on
    t1: the drift is never evaluated beyond it.

    Args:
        fn: drift; time arrives as a scalar tensor in the state's dtype.
        x: initial state (B, *), or a tuple of such tensors.
        t0: start time.
        t1: end time.
        method: a key of ``METHODS``.
        rtol: relative tolerance (adaptive methods); for a tuple state also one for each part (scipy's methods take the
            tightest for all).
        atol: absolute tolerance (adaptive methods), likewise.
        steps: number of equal steps (fixed methods).
        grid: times from t0 to t1 to step over, in place of equal steps (fixed methods).
        breakpoints: times at which the drift has a kink; adaptive methods step onto those that lie between t0 and t1.
        max_nfe: give up after this many evaluations.
        on_step: called with the time and the state reached after every step (scipy's methods: at the end only).
        time_of: from the variable of integration to the time that messages speak of, where it is another.
        drift_alone: a cheaper fn for stages without weight, where those components that fn does not read, such as an
            integral along the path, may have any finite slope; it changes nothing in the result.

    Raises:
        ValueError: unknown method, or a fixed one without steps or with a grid between other times.
        IntegrationError: max_nfe was reached, or the drift is not finite.
    """
    kind = lookup(METHODS, method, "ODE method")
    if kind == "fixed" and grid is None and (steps is None or steps < 1):
        raise ValueError(f"method {method!r} has fixed steps: give steps, at least 1 (got {steps!r})")
    if grid is not None and (grid[0] != t0 or grid[-1] != t1):
        raise ValueError(f"a grid from {grid[0]} to {grid[-1]} does not lead from t0 = {t0} to t1 = {t1}")
    if t0 == t1:
        return ODESolution(x, 0)
    from torchdiffeq import odeint  # here, because with scipy it takes half a second to import

    counted = _Counted(fn, t0, t1, max_nfe, method, time_of, drift_alone)
    device = _parts(x)[0].device
    times = torch.tensor([t0, t1], dtype=torch.float64, device=device)
    options: dict[str, Any] = {}
    if kind == "adaptive":
        inner: list[float] = sorted(p for p in breakpoints if min(t0, t1) < p < max(t0, t1))
        options = {"step_t": times.new_tensor([*inner, t1]), "norm": _worst_sample_rms}
    elif kind == "scipy":
        options = {"solver": SCIPY[method]}
        rtol, atol = (min(tol) if isinstance(tol, tuple) else tol for tol in (rtol, atol))
    else:
        equal = torch.linspace(t0, t1, (steps or 1) + 1, dtype=torch.float64)
        between = (equal if grid is None else torch.as_tensor(grid, dtype=torch.float64)).to(times)
        between[0], between[-1] = t0, t1
        # torchdiffeq turns time round by its sign when it runs backwards
        options = {"grid_constructor": lambda fn, x, t: between if t[0] == between[0] else -between}
        if method.endswith("_adams"):
            options["max_order"] = ADAMS_MAX_ORDER
    if method in WEIGHTLESS:
        counted.callback_step = counted.begin_step  # type: ignore[attr-defined]  # where torchdiffeq looks for it
    if on_step is not None and kind != "scipy":
        name = "callback_accept_step" if kind == "adaptive" else "callback_step"
        setattr(counted, name, _after_each(on_step))
    try:
        with warnings.catch_warnings():
            # torchdiffeq passes min_step to all of scipy's solvers, of which only LSODA has one.
            warnings.filterwarnings("ignore", "The following arguments have no effect", UserWarning)
            path = odeint(
                counted,
                x,
                times,
                rtol=rtol,
                atol=atol,
                method="scipy_solver" if kind == "scipy" else method,
                options=options,
            )
    except AssertionError as error:  # how torchdiffeq reports that its step has become too small
        if "torchdiffeq" not in traceback.extract_tb(error.__traceback__)[-1].filename:
            raise  # the drift's own
        raise counted.failure(str(error)) from error
    end = path[-1] if isinstance(path, Tensor) else tuple(part[-1] for part in path)
    if len(path if isinstance(path, Tensor) else path[0]) < len(times) and kind == "scipy":
        raise counted.failure("scipy stopped early")
    if on_step is not None:
        on_step(t1, end)  # type: ignore[arg-type]  # of the structure of x
    return ODESolution(end, counted.nfe)


class _Counted:
    """The drift, with its evaluations counted, bounded and checked.

    Times are clamped to the interval: the trial step by which torchdiffeq sizes its first one can lead far beyond t1.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        t0: float,
        t1: float,
        max_nfe: int,
        method: str,
        time_of: Callable[[float], float],
        drift_alone: Callable[..., Any] | None,
    ) -> None:
        self.fn = fn
        self.drift_alone = drift_alone or fn
        self.weightless = WEIGHTLESS.get(method, set())
        self.stage = math.inf  # before the first step
        self.time_of = time_of
        self.low, self.high = min(t0, t1), max(t0, t1)
        self.max_nfe = max_nfe
        self.method = method
        self.nfe = 0
        self.t = float("nan")

    def __call__(self, t: Tensor, x: Any) -> Any:
        t = t.clamp(self.low, self.high)
        if not t.isfinite():
            raise IntegrationError(
                f"{self.method}: the steps are not finite after {self.nfe} evaluations; give rtol and atol between "
                "what the state's dtype resolves and 1"
            )
        self.t = float(t)
        if self.nfe >= self.max_nfe:
            raise IntegrationError(
                f"{self.method} is still at t = {self.time_of(self.t):g} after max_nfe = {self.max_nfe} evaluations: "
                "raise max_nfe, or raise rtol and atol"
            )
        self.nfe += 1
        self.stage += 1
        drift = (self.drift_alone if self.stage in self.weightless else self.fn)(t, x)
        if not all(part.isfinite().all() for part in _parts(drift)):
            raise IntegrationError(
                f"{self.method}: the drift is not finite at t = {self.time_of(self.t):g} (evaluation {self.nfe}): "
                "check the score there; an untrained or diverged network gives this"
            )
        return drift

    def begin_step(self, t: Tensor, x: Any, dt: Tensor) -> None:
        """A callback for torchdiffeq; the first stage of a step is known, being the last one of the step before."""
        self.stage = 1

    def failure(self, reason: str) -> IntegrationError:
        """The error for a solver that gave up."""
        where = f"t = {self.time_of(self.t):g} after {self.nfe} evaluations"
        return IntegrationError(
            f"{self.method} gave up at {where} ({reason}): the tolerance is below what the state's dtype resolves, "
            "or the drift is not smooth; raise rtol and atol, or use float64"
        )


def _after_each(on_step: Callable[[float, Any], None]) -> Callable[[Tensor, Any, Tensor], None]:
    """A callback for torchdiffeq, which calls at the beginning of every step: all but the first end one."""
    first = True

    def begin(t: Tensor, x: Any, dt: Tensor) -> None:
        nonlocal first
        if not first:
            on_step(float(t), x)
        first = False

    return begin


def _parts(state: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else state


def _worst_sample_rms(state: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Largest over samples and components of the root-mean-square over a sample's dimensions."""
    errors = [part.reshape(len(part), -1).square().mean(1).max().sqrt() for part in _parts(state)]
    return torch.stack(errors).max()
