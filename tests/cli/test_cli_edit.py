"""--mode=edit: an image is restored, varied or relabelled."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from data import get_dataset
from evaluation import image_grid, relabel
from modes.edit_settings import RESTORING


@pytest.fixture
def edit(cli):
    """(run, other arguments, settings of the section ``editing``) -> what comes of it."""

    def call(folder, *arguments, **settings):
        flags = [f"--config.editing.{key}={value}" for key, value in {"num_images": 2, **settings}.items()]
        return cli("--mode=edit", f"--workdir={folder}", "--config.sampling.steps=3", *arguments, *flags)

    return call


def written(folder):
    """The one result: path, arrays, provenance."""
    (path,) = (folder / "samples").glob("edit_*.npz")
    with np.load(path) as file:
        return path, dict(file), json.loads(path.with_suffix(".json").read_text())


def held_out(number):
    """A test digit, as picture levels and as model values."""
    data = get_dataset("digits", "test")
    v = data.fetch([number])
    x = data.quantizer.place(v.x, torch.full(v.x.shape, 0.5))
    return data.quantizer, x, v.y


@pytest.mark.parametrize("task", sorted(set(RESTORING) - {"colourisation"}))
def test_an_image_is_restored(edit, digits, task):
    mask = ["--mask=right"] if task == "inpainting" else []
    out = edit(digits, "--image=3", *mask, task=task, noise=0.0).good()
    path, arrays, provenance = written(digits)
    quantizer, x, _ = held_out(3)
    assert arrays["x"].shape == (2, 1, 8, 8)
    assert np.array_equal(arrays["source"][0], quantizer.to_uint8(x)[0])
    if task == "inpainting":
        known = arrays["source"][1, 0, :, :4]
        assert np.array_equal(known, arrays["source"][0, 0, :, :4])
        assert len(np.unique(arrays["source"][1, 0, :, 4:])) == 1
    assert f"{task}: 2 images by pseudo_inverse and dpmpp_sde, 4 network evaluations each" in out
    assert str(path.with_suffix(".png")) in out
    assert provenance["editing"]["task"] == task
    assert provenance["image"] == "3"


def test_what_is_known_of_the_image_is_kept(edit, digits):
    """By a method that needs no trained network: the levels come back."""
    out = edit(digits, "--image=4", "--mask=top", "--config.sampling.steps=30", method="replacement", noise=0.0).good()
    _, arrays, _ = written(digits)
    kept = arrays["x"][:, :, 4:].astype(int) - arrays["source"][0][:, 4:].astype(int)
    assert abs(kept).max() <= 255 / 16  # a level
    assert (arrays["x"][0, 0, :4] != arrays["x"][1, 0, :4]).any()
    assert float(out.split("comes back within ")[1].split(" ")[0]) < 0.05


def test_results_that_went_astray_are_told(edit, digits):
    """Two steps from pure noise straight to small noise: the guidance is far too strong there."""
    words = "note: the results do not fit what is known of the image; raise sampling.steps, or try another method"
    assert words in edit(digits, "--image=3", "--mask=top", "--config.sampling.steps=2").good()
    assert (
        words not in edit(digits, "--image=3", "--mask=top", "--config.sampling.steps=30", method="replacement").good()
    )


def test_a_picture_of_the_user_s(edit, digits, tmp_path):
    """It is the measurement itself: small, for super-resolution, or with a hole."""
    Image.fromarray(np.arange(0, 256, 16, dtype=np.uint8).reshape(4, 4)).save(tmp_path / "small.png")
    edit(digits, f"--image={tmp_path}/small.png", task="super_resolution").good()
    path, arrays, _ = written(digits)
    assert path.name.startswith("edit_super_resolution_small_")
    assert arrays["source"].shape == (1, 1, 8, 8)
    assert np.array_equal(arrays["source"][0, 0], arrays["source"][0, 0, ::2, ::2].repeat(2, 0).repeat(2, 1))
    path.unlink()
    edit(digits, f"--image={tmp_path}/small.png", task="super_resolution", degrade=True).good()
    assert len(written(digits)[1]["source"]) == 2


def test_the_picture_shows_source_and_results_in_a_row(edit, digits):
    edit(digits, "--image=3", "--mask=center", "--config.sampling.trajectory=2").good()
    path, arrays, _ = written(digits)
    quantizer = get_dataset("digits").quantizer
    pictures = np.concatenate([arrays["source"], arrays["x"]])
    levels = torch.from_numpy(np.rint(pictures / 255 * 16).astype(np.uint8))
    expected = image_grid(quantizer.encode(levels), quantizer, columns=4)
    assert np.array_equal(np.asarray(Image.open(path.with_suffix(".png"))), expected)
    assert path.with_name(f"{path.stem}_trajectory.gif").exists()


def test_variations_begin_where_it_is_said(edit, digits):
    out = edit(digits, "--image=3", "--config.sampling.t_start=0.001", "--config.sampling.t_end=0.0005",
               task="image_to_image").good()  # fmt: skip
    assert "from time 0.001 on by dpmpp_sde, 4 network evaluations" in out
    _, arrays, _ = written(digits)
    assert abs(arrays["x"].astype(int) - arrays["source"].astype(int)).max() <= 255 / 16 * 2
    assert "from time 0.259 on by ddim" in edit(digits, "--image=3", "--sampler=ddim", task="image_to_image").good()


def test_the_same_call_gives_the_same_images_and_another_seed_others(edit, digits):
    def drawn(seed):
        edit(digits, "--image=3", "--mask=left", f"--config.sampling.seed={seed}").good()
        path, arrays, _ = written(digits)
        path.unlink()
        return arrays["x"]

    assert np.array_equal(drawn(0), drawn(0))
    assert not np.array_equal(drawn(0), drawn(1))


def test_relabelling_goes_through_the_code(edit, labelled, model_of):
    tight = ["--config.interpolation.rtol=1e-4", "--config.interpolation.atol=1e-4"]
    edit(labelled, "--image=3", "--config.sampling.labels=5,0", *tight, task="relabel").good()
    path, arrays, _ = written(labelled)
    quantizer, x, y = held_out(3)
    _, sde, model = model_of(labelled)
    wanted = torch.tensor([5, 0])
    solver = {"rtol": 1e-4, "atol": 1e-4}
    expected = relabel(sde, model, x.expand(2, 1, 8, 8), before=y.expand(2), after=wanted, **solver)
    assert np.array_equal(arrays["x"], quantizer.to_uint8(expected.x))
    path.unlink()
    edit(labelled, "--image=3", "--config.sampling.labels=5", *tight, task="relabel", labels="none").good()
    _, arrays, _ = written(labelled)
    unknown = relabel(sde, model, x, before=torch.tensor([-1]), after=torch.tensor([5]), **solver)
    assert np.array_equal(arrays["x"], quantizer.to_uint8(unknown.x))


def test_a_conditional_model_is_told_the_label_of_a_held_out_image(edit, labelled):
    def drawn(*flags, **settings):
        edit(labelled, "--image=3", "--mask=left", *flags, **settings).good()
        path, arrays, _ = written(labelled)
        path.unlink()
        return arrays["x"]

    own = int(held_out(3)[2])
    assert np.array_equal(drawn(), drawn(labels=own))
    assert np.array_equal(drawn(), drawn(f"--config.sampling.labels={own}"))
    assert not np.array_equal(drawn(), drawn(labels="none"))
    assert not np.array_equal(drawn(), drawn("--config.sampling.guidance=3"))


MISTAKES = {
    "": "--image is missing; give a picture, or the number of a held-out image of the run's data",
    "--image=": "--image= is empty; give a path, or leave it out",
    "--image=nix.png": "there is no file nix.png; give the path of the image",
    "--image=297": "--image=297: the split 'test' of 'digits' has 297 images, numbered from 0",
    "--image=3 --mask=lft": "there is no file lft; give the path of the mask (the regions left, right, top, bottom, c",
    "--image=3 --config.editing.task=deblurring": "editing.task is 'deblurring', with a mask; leave --mask out",
    "--image=3 --config.editing.task=inpaintin": "unknown task (editing.task) 'inpaintin'",
    "--image=3 --config.editing.method=ddrm": "unknown method (editing.method) 'ddrm'; choose from 'dps', 'moment_m",
    "--image=3 --config.editing.noise=-1": "config.editing.noise is -1.0; it must be at least 0",
    "--image=3 --config.editing.sampler=nix": "unknown sampler 'nix'",
    "--image=3 --config.sampling.labels=3": "sampling.labels is '3', but the model is unconditional; train one with",
    "--image=3 --config.editing.labels=3": "the model is unconditional, and knows no labels; train one with",
}


@pytest.mark.parametrize(("flags", "message"), MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_is_one_line(edit, digits, bytes_of, flags, message):
    before = bytes_of(digits)
    given = flags.split(" ") if flags else []
    mask = [] if "--mask" in flags else ["--mask=left"]
    assert message in edit(digits, *given, *mask).fault()
    assert bytes_of(digits) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["task=inpainting"], "editing.task is 'inpainting', without a mask; give --mask, such as --mask=bottom"),
        (["task=colourisation"], "the model knows images of 1 channel(s); only those of 3 can be colourised"),
        (["task=super_resolution", "factor=3"], "editing.factor is 3, which does not divide the sides of the model's"),
        (["task=super_resolution", "factor=1"], "config.editing.factor is 1; it must be at least 2"),
        (["task=deblurring", "blur=0"], "config.editing.blur is 0.0; it must be above 0"),
        (
            ["task=deblurring", "blur=9"],
            "editing.blur is 9 pixels, and the model's images have 8 x 8; give a smaller one",
        ),
        (["task=relabel"], "the model is unconditional, and knows no labels; train one with model.conditional=True"),
    ],
)
def test_a_task_that_does_not_fit(edit, digits, flags, message):
    assert message in edit(digits, "--image=3", **dict(flag.split("=") for flag in flags)).fault()


def test_labels_that_are_missing(edit, labelled, tmp_path):
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "x.png")
    image = f"--image={tmp_path}/x.png"
    assert (
        "sampling.labels is empty; say what the image is to show"
        in edit(labelled, image, task="relabel", labels=3).fault()
    )
    assert (
        "editing.labels is empty; say what the image shows"
        in edit(labelled, image, "--config.sampling.labels=3", task="relabel").fault()
    )
    assert (
        "with training.label_dropout=0 the model never learned to do without a label; say what"
        in edit(labelled, image, "--mask=left", "--config.training.label_dropout=0").fault()
    )


def test_an_image_shows_one_label(edit, labelled):
    outcome = edit(labelled, "--image=3", "--config.sampling.labels=3", task="relabel", labels="1,2")
    assert "editing.labels is '1,2'; one image shows one label, so give one" in outcome.fault()


def test_points_cannot_be_edited(edit, trained):
    assert "'toy/checkerboard' has no images to edit" in edit(trained, "--image=3", "--mask=left").fault()


@pytest.mark.parametrize("flag", ["--image=3", "--mask=left"])
def test_other_modes_take_no_image(cli, digits, flag):
    assert (
        "--image and --mask are for --mode=edit; --mode=sample has no use for them"
        in cli("--mode=sample", f"--workdir={digits}", flag).fault()
    )
