"""--mode=interpolate: ways between images through their latent codes."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import get_dataset
from evaluation import image_grid, slerp
from sde_lib import transport


@pytest.fixture
def interpolate(cli):
    """(run, settings of the section ``interpolation``, other arguments) -> what comes of it."""

    def call(folder, *arguments, **settings):
        flags = [f"--config.interpolation.{key}={value}" for key, value in settings.items()]
        return cli("--mode=interpolate", f"--workdir={folder}", *arguments, *flags)

    return call


def arrays(path):
    with np.load(path) as file:
        return dict(file)


def images(indices):
    """Model values of test images, in the middle of their bins."""
    data = get_dataset("digits", "test")
    v = data.fetch(indices).x
    return data.quantizer.place(v, torch.full(v.shape, 0.5))


def test_the_ends_of_the_ways_are_the_images(interpolate, digits):
    out = interpolate(digits, pairs=2, first=5, rtol=1e-4, atol=1e-4).good()
    (path,) = (digits / "samples").glob("interpolation_step_*_test_5_2pairs_3moments.npz")
    found = arrays(path)
    assert found["path"].shape == (2, 3, 1, 8, 8)
    assert found["codes"].shape == (2, 2, 1, 8, 8)
    x = images(range(5, 9)).numpy()
    ends = np.stack([found["path"][:, 0], found["path"][:, -1]], 1)
    errors = ends - x.reshape(ends.shape)
    assert abs(errors).max() < 0.01
    told = re.search(r"2 ways between .* 'test', (\d+) network evaluations; the ends come back within (\S+) \(", out)
    assert int(told[1]) > 20
    assert float(told[2]) == pytest.approx(np.sqrt(np.square(errors, dtype=np.float64).mean()), rel=0.1)
    assert f"data on [-1, 1]): {path.with_suffix('.png')}\n" in out


def test_the_way_is_the_flow_of_the_arc_between_the_codes(interpolate, digits, model_of):
    interpolate(digits, rtol=1e-4, atol=1e-4).good()
    (path,) = (digits / "samples").glob("interpolation*.npz")
    found = arrays(path)
    _, sde, model = model_of(digits)
    x = images(range(4))
    flow = partial(transport, sde, model, rtol=1e-4, atol=1e-4)
    codes = flow(torch.cat([x[0::2], x[1::2]]), sde.t_min, sde.T).x.unflatten(0, (2, 2))
    np.testing.assert_allclose(found["codes"], codes, rtol=0, atol=1e-6)
    ways = slerp(*codes, torch.tensor([0, 0.5, 1]))
    decoded = flow(ways.flatten(0, 1), sde.T, sde.t_min).x.unflatten(0, (2, 3))
    np.testing.assert_allclose(found["path"], decoded, rtol=0, atol=1e-6)


def test_the_picture_has_a_pair_in_every_row(interpolate, digits):
    interpolate(digits).good()
    (path,) = (digits / "samples").glob("interpolation*.png")
    way = torch.from_numpy(arrays(path.with_suffix(".npz"))["path"])
    x = images(range(4))
    rows = torch.cat([x[0::2, None], way, x[1::2, None]], 1).flatten(0, 1)
    expected = image_grid(rows, get_dataset("digits").quantizer, columns=5)
    assert np.array_equal(np.asarray(Image.open(path)), expected)


def test_a_conditional_model_knows_the_classes_of_the_ends(interpolate, labelled, model_of):
    interpolate(labelled, rtol=1e-5, atol=1e-5, pairs=1).good()
    (path,) = (labelled / "samples").glob("interpolation*.npz")
    found = arrays(path)
    y = get_dataset("digits", "test").fetch(range(2)).y
    assert y[0] != y[1]
    _, sde, model = model_of(labelled)
    flow = partial(transport, sde, rtol=1e-5, atol=1e-5)
    codes = flow(partial(model, y=y), images(range(2)), sde.t_min, sde.T).x
    np.testing.assert_allclose(found["codes"][:, 0], codes, atol=5e-3)
    assert abs(flow(model, images(range(2)), sde.t_min, sde.T).x - codes).max() > 0.02
    np.testing.assert_allclose(found["path"][0, [0, -1]], images(range(2)), atol=0.01)


def test_precision_and_split(interpolate, digits):
    out = interpolate(digits, "--config.likelihood.precision=bfloat16", split="train", pairs=1).good()
    assert "1 way between images of the split 'train'" in out


WRONG = {
    "pairs=0": "config.interpolation.pairs is 0; it must be at least 1",
    "pairs=149": "149 pairs from image 0 on need 298 images; the split 'test' has 297. Lower interpolation.pairs or",
    "first=296 pairs=1": "1 pairs from image 296 on need 298 images; the split 'test' has 297",
    "first=-1": "config.interpolation.first is -1; it must be at least 0",
    "moments=1": "config.interpolation.moments is 1; it must be at least 2",
    "moments=abc": "interpolation.moments is 'abc'; it takes a whole number",
    "split=valid": "unknown split of digits 'valid'; choose from 'test', 'train'",
    "rtol=0": "config.interpolation.rtol is 0.0; it must be above 0",
    "atol=inf": "config.interpolation.atol is inf; it must be finite",
}


@pytest.mark.parametrize(("settings", "message"), WRONG.items(), ids=WRONG)
def test_a_wrong_setting(interpolate, digits, bytes_of, settings, message):
    before = bytes_of(digits)
    assert message in interpolate(digits, **dict(setting.split("=") for setting in settings.split(" "))).fault()
    assert bytes_of(digits) == before


def test_too_few_evaluations(interpolate, digits, bytes_of):
    before = bytes_of(digits)
    fault = interpolate(digits, "--config.likelihood.max_nfe=9", pairs=1, rtol=1e-6).fault()
    assert "after max_nfe = 9 evaluations: raise max_nfe, or raise rtol and atol" in fault
    assert bytes_of(digits) == before


def test_points_have_no_images(interpolate, trained, bytes_of):
    before = bytes_of(trained)
    assert "'toy/checkerboard' has no images to interpolate between" in interpolate(trained).fault()
    assert bytes_of(trained) == before


def test_a_run_that_does_not_exist(interpolate):
    assert "no checkpoint in new/checkpoints; train first" in interpolate("new").fault()
    assert not Path("new").exists()
