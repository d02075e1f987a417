"""EDM's augmentation of training images, which does not leak into samples (arXiv 2206.00364, appendix F.2).

Each image is flipped, scaled, turned, stretched and moved, each at random and independently, and the network is told
how by nine numbers. Told nine zeros, it draws images that were not augmented.

A point p of the image, in pixels from its centre (x to the right, y down), moves to

    M p,    M = move . stretch . turn . scale . flips

and the new image at u is the old one at M^-1 u.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from data.draws import StepDraws

AUGMENTATION_DIMS = 9
"""Numbers that the network is told; see ``Drawn.conditions``."""
SCALE, STRETCH, MOVE = 0.2, 0.2, 0.125
"""Standard deviations: of log2 of the growth, of log2 of the stretch, and of the shifts in widths and heights."""


class Drawn(NamedTuple):
    """What is done to each image of a batch, all (B,); zeros do nothing.

    Attributes:
        flip_x: 1 where it is mirrored left to right, else 0.
        flip_y: top to bottom, likewise.
        scale: log2 of its growth, in units of ``SCALE``.
        turn: angle in radians, from x towards y (clockwise as one sees it).
        stretch: log2 of its growth along the direction below, and of its shrinking across, in units of ``STRETCH``.
        direction: angle of that.
        move_x: to the right, in units of ``MOVE`` widths of the image.
        move_y: down, in units of ``MOVE`` heights.
    """

    flip_x: Tensor
    flip_y: Tensor
    scale: Tensor
    turn: Tensor
    stretch: Tensor
    direction: Tensor
    move_x: Tensor
    move_y: Tensor

    def conditions(self) -> Tensor:
        """What the network is told, (B, 9).

        Both flips; scale; cos(turn) - 1 and sin(turn); stretch cos(direction) and stretch sin(direction); both moves.
        """
        parts = [self.flip_x, self.flip_y, self.scale, self.turn.cos() - 1, self.turn.sin()]
        parts += [self.stretch * self.direction.cos(), self.stretch * self.direction.sin(), self.move_x, self.move_y]
        return torch.stack(parts, 1)

    def source(self, height: int, width: int) -> Tensor:
        """M^-1 without the flips, in pixels, (B, 2, 3): where in the old image a pixel of the new one lies."""
        shift = torch.stack([MOVE * width * self.move_x, MOVE * height * self.move_y], 1)
        across = _rotation(self.direction)
        squeeze = _diagonal(torch.exp2(-STRETCH * self.stretch), torch.exp2(STRETCH * self.stretch))
        shrink = _diagonal(torch.exp2(-SCALE * self.scale), torch.exp2(-SCALE * self.scale))
        linear = shrink @ _rotation(-self.turn) @ across @ squeeze @ across.mT
        return torch.cat([linear, -linear @ shift.unsqueeze(2)], 2)


@dataclass(frozen=True)
class Augmentation:
    """The transformations at random.

    Attributes:
        probability: of each of them but the flip from left to right, which is done to every second image; EDM takes
            0.12 for CIFAR-10 and 0.15 for faces.

    Raises:
        ValueError: it is outside [0, 1].
    """

    probability: float

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"the probability of an augmentation is {self.probability}; it must lie in [0, 1]")

    def __call__(self, x: Tensor, draws: StepDraws) -> tuple[Tensor, Tensor]:
        """Augment images.

        Args:
            x: (B, C, H, W), floating point.
            draws: their random numbers.

        Returns:
            the images, and what was done to each (B, 9).

        Raises:
            ValueError: x is not such a batch.
        """
        if x.ndim != 4 or not x.is_floating_point():
            raise ValueError(f"images (B, C, H, W) in floating point are augmented, got {x.dtype} {tuple(x.shape)}")
        columns = draws.rows(
            "augmentation", lambda generator: torch.stack(self.draw(draws.batch, generator, draws.device), 1)
        )
        drawn = Drawn(*columns.to(x.device).unbind(1))
        return transform(x, drawn), drawn.conditions().to(x.dtype)

    def draw(self, batch: int, generator: torch.Generator | None, device: torch.device | str | None = None) -> Drawn:
        """What is to be done to each of a batch of images, in float32."""
        flip_x, flip_y, turn, direction, oblique, *chances = torch.rand(10, batch, generator=generator, device=device)
        scale, stretch, move_x, move_y = torch.randn(4, batch, generator=generator, device=device)
        on = [(chance < self.probability).float() for chance in chances]
        return Drawn(
            flip_x=(flip_x < 0.5).float(),
            flip_y=on[0] * (flip_y < 0.5),
            scale=on[1] * scale,
            turn=on[2] * math.pi * (2 * turn - 1),
            stretch=on[3] * stretch,
            direction=(oblique < 0.5) * math.pi * (2 * direction - 1),  # else along x or, if it is negative, y
            move_x=on[4] * move_x,
            move_y=on[4] * move_y,
        )


def transform(x: Tensor, drawn: Drawn) -> Tensor:
    """Images (B, C, H, W) after what was drawn for them.

    Flips are exact, and what stays where it is comes back as it was. All else is one resampling: bicubic at four points
    in every new pixel, whose mean it is; beyond its border an image goes on as in a mirror.
    """
    x = torch.where(_each(drawn.flip_x), x.flip(-1), x)
    x = torch.where(_each(drawn.flip_y), x.flip(-2), x)
    moved = (drawn.conditions()[:, 2:] != 0).any(1)
    if not moved.any():
        return x
    height, width = x.shape[2:]
    half = torch.tensor([width / 2, height / 2], device=x.device)
    source = drawn.source(height, width)[moved]
    pixels = torch.cat([source[..., :2] * half, source[..., 2:]], 2) / half.unsqueeze(1)  # in half widths and heights
    size = [len(source), x.shape[1], 2 * height, 2 * width]
    grid = functional.affine_grid(pixels, size, align_corners=False).to(x.dtype)
    fine = functional.grid_sample(x[moved], grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    x = x.clone()
    x[moved] = functional.avg_pool2d(fine, 2)
    return x


def _each(mask: Tensor) -> Tensor:
    return mask.bool().view(-1, 1, 1, 1)


def _rotation(angle: Tensor) -> Tensor:
    """(B,) -> (B, 2, 2)."""
    c, s = angle.cos(), angle.sin()
    return torch.stack([torch.stack([c, -s], 1), torch.stack([s, c], 1)], 1)


def _diagonal(first: Tensor, second: Tensor) -> Tensor:
    """(B,), (B,) -> (B, 2, 2)."""
    return torch.diag_embed(torch.stack([first, second], 1))
