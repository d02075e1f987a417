"""The strip and the animation: which moments, at which scale, and that the files show them."""

import numpy as np
import pytest
import torch
from PIL import Image

from data import Quantizer
from evaluation import Trajectory, generate
from evaluation.pictures import image_grid
from samplers import get_sampler
from sde_lib import VESDE, VPSDE, GaussianMixture

SHAPE = (1, 4, 4)


def blank_and_full(sde):
    """Images that are all dark or all bright, with their exact score."""
    means = torch.stack([torch.full(SHAPE, level) for level in (-0.9, 0.9)])
    return GaussianMixture([0.5, 0.5], means, std=0.02).score_fn(sde)


def draw(sde, sampler, moments, *, n=5, batch_size=3, **options):
    trajectory = Trajectory(sde, moments, images=2)
    run = get_sampler(sampler, **options)
    result = generate(run, sde, blank_and_full(sde), SHAPE, n, batch_size=batch_size, on_step=trajectory)
    return trajectory, result.x


@pytest.mark.parametrize(("steps", "moments", "expected"), [(12, 4, 4), (12, 12, 12), (3, 9, 3), (10, 1, 1)])
def test_equally_spaced_moments_of_the_first_batch(steps, moments, expected):
    trajectory, x = draw(VPSDE(), "ddim", moments, steps=steps)
    assert len(trajectory.frames) == expected
    assert all(part.shape == (2, *SHAPE) for frame in trajectory.frames for part in frame)
    if steps >= 10:  # the last moment is the end of the grid: what was denoised before it is nearly the sample
        torch.testing.assert_close(trajectory.frames[-1][1], x[:2], atol=0.05, rtol=0)


def test_adaptive_methods_are_shown_at_equal_times():
    times = []

    class Watched(Trajectory):
        def __call__(self, first, progress):
            before = len(self.frames)
            super().__call__(first, progress)
            times.extend([progress.t] * (len(self.frames) - before))

    sde = VPSDE()
    trajectory = Watched(sde, 5, images=2)
    generate(get_sampler("ode"), sde, blank_and_full(sde), SHAPE, 2, batch_size=2, on_step=trajectory)
    assert len(times) == 5
    for k, t in enumerate(times):
        assert 1 - t >= (k + 0.99) / 5
        assert 1 - t < (k + 1) / 5 + 0.3  # the next step of the solver


def test_a_variance_exploding_state_is_shown_at_unit_scale():
    trajectory, _ = draw(VESDE(), "ddim", 10, steps=10)
    first = trajectory.frames[0][0]
    assert 0.3 < float(first.square().mean().sqrt()) < 3  # sigma is 21 there


def test_the_files_hold_every_moment_and_end_with_the_samples(tmp_path):
    trajectory, x = draw(VPSDE(), "unipc", 4, steps=12)
    quantizer = Quantizer()
    strip, film = trajectory.save(x, quantizer, tmp_path / "deep" / "way")
    cell = image_grid(x[:1], quantizer).shape[:2]
    with Image.open(strip) as picture:
        pixels = np.asarray(picture.convert("RGB"))
        assert picture.width // cell[1] == 5  # four moments and the end
        assert picture.height // cell[0] == 4  # two images, each as x_t and denoised
    assert np.array_equal(pixels[: cell[0], -cell[1] :], image_grid(x[:1], quantizer))  # top right: the finished image
    with Image.open(film) as animation:
        assert animation.n_frames == 5


def test_points_are_shown_as_their_density(tmp_path):
    sde = VPSDE()
    trajectory = Trajectory(sde, 3, images=200)
    law = GaussianMixture([1.0], torch.zeros(1, 2), std=0.5)
    result = generate(get_sampler("ddim"), sde, law.score_fn(sde), (2,), 200, batch_size=200, on_step=trajectory)
    strip, film = trajectory.save(result.x, None, tmp_path / "points")
    assert strip.is_file()
    assert film.is_file()


@pytest.mark.parametrize(("moments", "images", "named"), [(0, 4, "moments"), (4, 0, "images")])
def test_numbers_that_make_no_sense(moments, images, named):
    with pytest.raises(ValueError, match=f"{named} is 0; it must be at least 1"):
        Trajectory(VPSDE(), moments, images)
