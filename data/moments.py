"""Mean, standard deviation and extremes of many values, a part at a time."""

import torch
from torch import Tensor


class Moments:
    """Of each column of rows that come in parts, in float64; parts are joined by Chan's formula, without cancellation.

    Attributes:
        count: number of values of a column so far.
        mean: (C,).
        least: smallest value, (C,).
        most: largest value, (C,).
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self._squares = torch.zeros(0, dtype=torch.float64)
        self.least = self.most = self.mean

    @property
    def std(self) -> Tensor:
        """Standard deviation, of the values themselves and not of a law they might be drawn from, (C,)."""
        return (self._squares / self.count).clamp(min=0).sqrt()

    def add(self, x: Tensor) -> None:
        """Rows (n, C)."""
        x = x.double()
        mean = x.mean(0)
        self._join(len(x), mean, (x - mean).square().sum(0), x.amin(0), x.amax(0))

    def add_counted(self, values: Tensor, counts: Tensor) -> None:
        """Values (L,), of which column c has ``counts[c, l]``, whole numbers (C, L), as many in all for each column."""
        values, weight = values.double(), counts.double()
        count = int(counts[0].sum())
        mean = weight @ values / count
        squares = (weight * (values - mean.unsqueeze(1)).square()).sum(1)
        ends = [[row.nonzero().flatten()[end] for row in counts] for end in (0, -1)]
        self._join(count, mean, squares, *(values[torch.stack(end)] for end in ends))

    def _join(self, count: int, mean: Tensor, squares: Tensor, least: Tensor, most: Tensor) -> None:
        if not self.count:
            self.count, self.mean, self._squares, self.least, self.most = count, mean, squares, least, most
            return
        total, apart = self.count + count, mean - self.mean
        self._squares = self._squares + squares + apart.square() * (self.count * count / total)
        self.mean = self.mean + apart * (count / total)
        self.least, self.most = torch.minimum(self.least, least), torch.maximum(self.most, most)
        self.count = total
