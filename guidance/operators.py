"""Linear measurements y = A x of images: what is known of an image that is to be restored.

A method needs A, its adjoint, and (a A A^T + b I)^-1, which is cheap for all of these: A A^T is a multiple of a
projection, or diagonal after a Fourier transform or a singular value decomposition.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from guidance.conjugate_gradients import conjugate_gradients
from sde_lib import match_dims

CUTOFF = 1e-6
"""Eigenvalues below this share of the largest count as 0, and are not inverted."""


class LinearOperator(ABC):
    """A linear map from images (B, *) to measurements (B, *)."""

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """A x."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y."""

    @abstractmethod
    def solve(self, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
        """(a A A^T + b I)^-1 y, on the measurements that A can give; a and b are numbers, or (B,)."""

    def measure(self, x: Tensor, noise_std: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """A x + noise_std n, with n ~ N(0, I)."""
        y = self.apply(x)
        return y + noise_std * torch.randn(y.shape, generator=generator, device=y.device, dtype=y.dtype)

    def pinv(self, y: Tensor) -> Tensor:
        """A^+ y, the smallest x with this measurement."""
        return self.adjoint(self.solve(y, 1.0, 0.0))

    def count(self, y: Tensor) -> int:
        """How many numbers are measured of one image."""
        return y[0].numel()


class Inpainting(LinearOperator):
    """The known pixels; y is x with zeros elsewhere.

    Args:
        mask: True where a pixel is known; of the shape of an image, or one that broadcasts to it, such as (H, W).

    Raises:
        ValueError: no pixel is known.
    """

    def __init__(self, mask: Tensor) -> None:
        if mask.dtype != torch.bool or not mask.any():
            raise ValueError(
                f"the mask of known pixels is {mask.dtype} with {int((mask != 0).sum())} known ones; give a boolean "
                "tensor, True where a pixel is known, with at least one"
            )
        self.mask = mask

    def apply(self, x: Tensor) -> Tensor:
        """X where it is known, else 0."""
        return x * self.mask.to(x.device)

    def measure(self, x: Tensor, noise_std: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """See ``LinearOperator.measure``; there is no noise where nothing is measured."""
        return self.apply(super().measure(x, noise_std, generator))

    def adjoint(self, y: Tensor) -> Tensor:
        """The same: A is a projection."""
        return self.apply(y)

    def solve(self, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
        """Y / (a + b) where it is known."""
        return self.apply(y) / _each(a, b, y)

    def count(self, y: Tensor) -> int:
        """Known values of one image."""
        return int(self.mask.expand(y.shape[1:]).sum())


class Colourisation(LinearOperator):
    """The grey image, y = sum_c w_c x_c, (B, 1, H, W).

    Args:
        weights: of the channels; by default those of ITU-R 601, by which colour files become grey.
    """

    def __init__(self, weights: Sequence[float] = (0.299, 0.587, 0.114)) -> None:
        self.weights = torch.tensor(weights, dtype=torch.float64)

    def apply(self, x: Tensor) -> Tensor:
        """The weighted sum of the channels."""
        if x.shape[1] != len(self.weights):
            raise ValueError(f"there are {len(self.weights)} weights, but images of {x.shape[1]} channels")
        return (self._weights(x) * x).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        """Y by the weights in each channel."""
        return self._weights(y) * y

    def solve(self, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
        """Y / (a |w|^2 + b)."""
        return y / _each(a * float(self.weights.square().sum()), b, y)

    def _weights(self, x: Tensor) -> Tensor:
        return self.weights.to(x).view(-1, 1, 1)


class SuperResolution(LinearOperator):
    """The small image, means of blocks of factor x factor pixels.

    Args:
        factor: at least 2; it must divide the sides of the image.
    """

    def __init__(self, factor: int) -> None:
        if factor < 2:
            raise ValueError(f"the factor of super-resolution is {factor}; give a whole number from 2 on")
        self.factor = factor

    def apply(self, x: Tensor) -> Tensor:
        """Means of blocks."""
        if any(side % self.factor for side in x.shape[2:]):
            raise ValueError(f"images of {tuple(x.shape[2:])} have no whole number of blocks of {self.factor}")
        return functional.avg_pool2d(x, self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        """Y / factor^2 in every pixel of its block."""
        return y.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3) / self.factor**2

    def solve(self, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
        """Y / (a / factor^2 + b)."""
        return y / _each(a / self.factor**2, b, y)


class Deblurring(LinearOperator):
    """The blurred image: a convolution that goes on at the opposite border (circular).

    Args:
        kernel: (h, w), its middle at (h // 2, w // 2).
    """

    def __init__(self, kernel: Tensor) -> None:
        if kernel.ndim != 2 or not kernel.any():
            raise ValueError(f"the kernel of the blur has shape {tuple(kernel.shape)}; give (h, w), and not all zeros")
        self.kernel = kernel.to(torch.float64)

    @classmethod
    def gaussian(cls, std: float) -> "Deblurring":
        """The blur by a normal density of this standard deviation in pixels, cut at four of them."""
        if not std > 0:
            raise ValueError(f"the width of the blur is {std} pixels; it must be above 0")
        reach = max(1, round(4 * std))
        places = torch.arange(-reach, reach + 1, dtype=torch.float64)
        line = torch.exp(-0.5 * (places / std).square())
        return cls(torch.outer(line, line) / line.sum().square())

    def apply(self, x: Tensor) -> Tensor:
        """The convolution."""
        return self._filter(x, self._transfer(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """The correlation with the same kernel."""
        return self._filter(y, self._transfer(y).conj())

    def solve(self, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
        """In Fourier space, over a |H|^2 + b."""
        power = self._transfer(y).abs().square().expand(1, 1, -1, -1)
        return self._filter(y, _inverse(_column(a, power, y) * power + _column(b, power, y)))

    def _transfer(self, x: Tensor) -> Tensor:
        """H, the Fourier transform of the kernel on the grid of the image, wrapped around its borders."""
        height, width = x.shape[2:]
        rows, columns = (torch.arange(n) - n // 2 for n in self.kernel.shape)
        wrapped = torch.zeros(height, width, dtype=torch.float64)
        places = ((rows % height).unsqueeze(1).expand(self.kernel.shape), (columns % width).expand(self.kernel.shape))
        return torch.fft.fft2(wrapped.index_put(places, self.kernel, accumulate=True)).to(x.device)

    @staticmethod
    def _filter(x: Tensor, transfer: Tensor) -> Tensor:
        return torch.fft.ifft2(torch.fft.fft2(x.double()) * transfer).real.to(x)


class Matrix(LinearOperator):
    """Any matrix on flattened images, by its singular value decomposition; for small problems.

    Args:
        matrix: (m, d).
        shape: of one image, d elements in all.
    """

    def __init__(self, matrix: Tensor, shape: Sequence[int]) -> None:
        if matrix.ndim != 2 or matrix.shape[1] != torch.Size(shape).numel():
            raise ValueError(f"a matrix {tuple(matrix.shape)} does not fit images of shape {tuple(shape)}")
        self.matrix, self.shape = matrix.to(torch.float64), tuple(shape)
        self._left, self._values, _ = torch.linalg.svd(self.matrix)

    def apply(self, x: Tensor) -> Tensor:
        """(B, *) -> (B, m)."""
        return x.flatten(1) @ self.matrix.T.to(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """(B, m) -> (B, *)."""
        return (y @ self.matrix.to(y)).reshape(-1, *self.shape)

    def solve(self, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
        """In the basis of the left singular vectors."""
        left = self._left.to(y)
        power = functional.pad(self._values.square(), (0, len(left) - len(self._values))).to(y).expand(1, -1)
        return (y @ left * _inverse(_column(a, power, y) * power + _column(b, power, y))) @ left.T


class FunctionOperator(LinearOperator):
    """Any linear function of torch: its adjoint by autograd, its inverse by conjugate gradients.

    Args:
        fn: (B, *) -> (B, *), linear.
        shape: of one image.
        iterations: of conjugate gradients.
    """

    def __init__(self, fn: Callable[[Tensor], Tensor], shape: Sequence[int], iterations: int = 50) -> None:
        self.fn, self.shape, self.iterations = fn, tuple(shape), iterations

    def apply(self, x: Tensor) -> Tensor:
        """fn(x)."""
        return self.fn(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """The gradient of y . fn(x) in x."""
        with torch.enable_grad():
            x = torch.zeros(len(y), *self.shape, device=y.device, dtype=y.dtype, requires_grad=True)
            (gradient,) = torch.autograd.grad(self.fn(x), x, y)
        return gradient

    def solve(self, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
        """By conjugate gradients."""
        scale_a, scale_b = _column(a, y, y), _column(b, y, y)
        return conjugate_gradients(
            lambda v: scale_a * self.apply(self.adjoint(v)) + scale_b * v, y, iterations=self.iterations
        )


OPERATORS: dict[str, type[LinearOperator]] = {
    "inpainting": Inpainting,
    "colourisation": Colourisation,
    "super_resolution": SuperResolution,
    "deblurring": Deblurring,
    "matrix": Matrix,
    "function": FunctionOperator,
}
"""Name -> class."""


def _each(a: Tensor | float, b: Tensor | float, y: Tensor) -> Tensor:
    """A + b for each image of y."""
    return _column(a, y, y) + _column(b, y, y)


def _column(value: Tensor | float, like: Tensor, y: Tensor) -> Tensor:
    """A number, or one for each image, to multiply what has the axes of ``like``."""
    value = torch.as_tensor(value, device=y.device, dtype=like.dtype)
    return match_dims(value, like) if value.ndim else value


def _inverse(values: Tensor) -> Tensor:
    """1 / values, and 0 where they are a negligible share of the largest of an image."""
    largest = values.flatten(1).amax(1)
    small = values <= CUTOFF * match_dims(largest, values)
    return torch.where(small, 0.0, 1 / torch.where(small, 1.0, values))
