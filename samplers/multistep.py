"""What multistep methods share: a polynomial through remembered predictions, integrated exactly over the step.

Every solver here has the form

    x_s = c x_t + integral over the step of F(u) m(u) du

with F a prediction of the network (data or noise), u a variable that time is measured in, c and m known exactly. With
predictions F_j at earlier places u_j, F is replaced by the polynomial through them:

    x_s = c x_t + sum_j w_j F_j,    w_j = integral of L_j(u) m(u) du,    L_j the Lagrange polynomials.

The weights hold for any spacing of the grid. A polynomial through k points makes a local error of order k + 1, so k
points make a method of order k. The first steps have fewer points. So that they do not spoil the order, a step with
fewer than order - 1 points is repeated with the prediction at its end as one more point. The next step needs that
prediction anyway, so no evaluation is lost.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from samplers.base import Sampler, Score
from samplers.whole_numbers import known_order
from sde_lib import SDE

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)


class Measure(NamedTuple):
    """The integral over one step: carry c, and a quadrature of m, with mass[q] at place[q]."""

    carry: Tensor | float
    place: np.ndarray
    mass: np.ndarray


class Node(NamedTuple):
    """A remembered prediction: its time, its place u, and its value (B, *)."""

    t: Tensor
    u: float
    value: Tensor


class History(NamedTuple):
    """State of a multistep method: its predictions, newest first; how many it keeps; and the end of the grid."""

    nodes: tuple[Node, ...]
    points: int
    end: Tensor


class Multistep(Sampler):
    """A method of this form: subclasses say what they predict, in which variable, and their measure.

    Args:
        order: number of predictions that a polynomial passes through.
        **options: of ``Sampler``.
    """

    natural_steps = 20
    natural_grid = "log_snr"
    orders: ClassVar[tuple[int, ...]] = (1, 2, 3)

    def __init__(self, order: int = 3, **options: Any) -> None:
        super().__init__(**options)
        self.order = self._points = known_order(order, self.orders)

    @abstractmethod
    def predict(self, score: Score, x: Tensor, t: Tensor) -> Tensor:
        """The prediction F at (x, t), data or noise, shape (B, *)."""

    @abstractmethod
    def place(self, sde: SDE, t: Tensor) -> float:
        """The place u of time t, in the variable in which F is taken to be a polynomial."""

    @abstractmethod
    def measure(self, sde: SDE, t: Tensor, s: Tensor) -> Measure:
        """The step from t to s: the carry c of x_t, and the masses m(u) du at the places of a quadrature."""

    def points(self, steps: int) -> int:
        """How many predictions a run of this many steps passes its polynomial through."""
        return self._points

    def corrects(self, have: int, points: int, last: bool) -> bool:
        """Whether a step with so many of its points is repeated with the prediction at its end."""
        return have < points - 1 and not last

    def init(self, score: Score, x: Tensor, times: Tensor) -> History:
        """No predictions yet."""
        return History((), self.points(len(times) - 1), times[-1])

    def step(self, score: Score, x: Tensor, t: Tensor, s: Tensor, state: History) -> tuple[Tensor, History]:
        """Predict by the polynomial through the past; where it is needed, correct by one through the end too."""
        nodes = state.nodes
        if not nodes or nodes[0].t != t:
            nodes = (self._node(score, x, t), *nodes)
        nodes = nodes[: state.points]
        measure = self.measure(score.sde, t, s)
        ahead = combine(measure, x, nodes)
        if self.corrects(len(nodes), state.points, last=bool(s <= state.end)):
            nodes = (self._node(score, ahead, s), *nodes)
            ahead = combine(measure, x, nodes)
        return ahead, state._replace(nodes=nodes)

    def _node(self, score: Score, x: Tensor, t: Tensor) -> Node:
        return Node(t, self.place(score.sde, t), self.predict(score, x, t))


def combine(measure: Measure, x: Tensor, nodes: Sequence[Node]) -> Tensor:
    """x_s = c x_t + sum_j w_j F_j over the remembered predictions F_j, shape (B, *)."""
    result = measure.carry * x
    for node, weight in zip(nodes, lagrange_weights(measure, [node.u for node in nodes]), strict=True):
        result = result + weight * node.value
    return result


def lagrange_weights(measure: Measure, places: Sequence[float]) -> list[float]:
    """w_j = integral of L_j(u) m(u) du, with L_j the polynomial that is 1 at the j-th place and 0 at the others."""
    weights = []
    for j, own in enumerate(places):
        others = np.array([u for k, u in enumerate(places) if k != j])
        polynomial = np.prod((measure.place[:, None] - others) / (own - others), axis=1)
        weights.append(float(measure.mass @ polynomial))
    return weights


def gauss_legendre(start: float, end: float) -> tuple[np.ndarray, np.ndarray]:
    """Places and weights of a quadrature on [start, end] (end may lie below start; the weights are then negative)."""
    half = 0.5 * (end - start)
    return start + half * (1 + _NODES), half * _WEIGHTS
