"""The pages of docs/ that are run as they stand, and that what they state of the house and of costs is so."""

import re
import sys

import numpy as np
import pytest
import torch
from command_line import DIGITS
from diffusers_folders import VARIANTS, save, theirs
from PIL import Image
from snippets import DOCS, blocks, run_page, same
from stored_images import write_celeba
from test_layers_of_house import MAY_IMPORT

from configs import celeba64
from models import MODELS
from samplers import SAMPLERS
from sde_lib import SDES
from training import builders, training_flops

TABLES = (SDES, SAMPLERS, MODELS)
SMALL = [flag for flag in DIGITS if not flag.startswith("--config=")]
PLANE = ["--config.data.size=100", "--config.model.width=8", "--config.likelihood.divergence=hutchinson"]
FACES = [*SMALL, "--config.training.epochs=0", "--config.sampling.batch_size=1", "--config.training.accumulation=1"]
SMALL_FACES = [*FACES, "--config.data.image_size=16"]


@pytest.fixture
def reader(elsewhere, monkeypatch):
    """An empty working directory, from which files can be imported; what a page registers is forgotten after it."""
    monkeypatch.syspath_prepend(str(elsewhere))
    tables, modules = [dict(table) for table in TABLES], set(sys.modules)
    yield elsewhere
    for table, before in zip(TABLES, tables, strict=True):
        table.clear()
        table.update(before)
    for name in set(sys.modules) - modules:
        if name in ("square", "midpoint", "plain") or name.startswith("own_"):
            del sys.modules[name]


def test_the_tour(reader, cli):
    names = run_page("tour.md", cli)
    assert names["x"].shape == (2000, 2)


@pytest.mark.parametrize("page", ["your_process.md", "your_sampler.md", "your_network.md", "your_guidance.md"])
def test_a_page_of_what_is_yours(page, reader, cli):
    run_page(page, cli, [*SMALL, *PLANE])


def test_your_images(reader, cli):
    (reader / "pictures").mkdir()
    for k in range(8):
        Image.new("RGB", (20, 16), (30 * k, 255 - 30 * k, 99)).save(reader / "pictures" / f"{k}.png")
    run_page("your_images.md", cli, SMALL_FACES)
    run = reader / "runs" / "folder-pictures"
    (samples,) = (run / "samples").glob("*.npz")
    assert np.load(samples)["samples"].shape == (1, 3, 16, 16)
    assert list((run / "likelihood").glob("*.json"))
    arrays = [np.load(path) for path in (reader / "cache").glob("*.npy")]
    assert sum(len(array) for array in arrays) == 8  # both splits, of one size: nothing is lost, nothing is twice
    assert min(len(array) for array in arrays) >= 1


def test_the_mistakes_with_images_are_told_as_the_page_says(reader, cli):
    page = (DOCS / "your_images.md").read_text()
    folder = reader / "pictures"
    run = ("--mode=train", f"--config=configs/folder.py:{folder.name}", *SMALL_FACES)
    for expected in ("there is nothing at pictures", "no images in"):
        assert f"`{expected}" in page
        assert expected in cli(*run).fault()
        folder.mkdir(exist_ok=True)
    for k in range(8):
        Image.new("RGB", (20, 16), (30 * k, 0, 99)).save(folder / f"{k}.png")
    (folder / "0.png").write_bytes(b"no image")
    assert "`cannot use image ...: not an image`" in page
    assert "cannot use image pictures/0.png: not an image" in cli(*run).fault()


def test_migrating(reader, cli):
    """Its commands, on weights in the layouts that they name (those of score_sde are read in other tests)."""
    save(reader / "ddpm-cifar10-32", theirs(**VARIANTS["attention"]))
    lines = [block for block in blocks("migrating.md") if block.language == "bash"]
    assert len(lines) == 1
    for line in lines[0].text.splitlines():
        words = line.partition("#")[0].split()[2:]
        if not any(".pth" in word for word in words):
            few = ["--config.sampling.num_images=1", "--config.sampling.trajectory=0", "--config.sampling.steps=2"]
            cli(*words, *few).good()


def test_the_commands_of_celeba64(reader, cli, monkeypatch):
    write_celeba(reader / "FOLDER")
    small = theirs(**VARIANTS["attention"])
    save(reader / "ddpm-celebahq-256", small)
    blocks_of = [block for block in blocks("celeba64.md") if block.language == "bash"]
    for block, flags in zip(blocks_of, (SMALL_FACES, [*FACES[2:], "--config.sampling.steps=2"]), strict=True):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = line.partition("#")[0].split()[2:]
            wanted = [flag for flag in flags if "model." not in flag] if "ddpm-celebahq-256" in line else flags
            cli(*words, *([] if "--mode=import" in words else wanted)).good()


def test_celeba64_states_what_follows_from_its_settings():
    page, config = (DOCS / "celeba64.md").read_text(), celeba64.get_config()
    images, batch = 162_770, config.training.batch_size
    steps = -(-config.training.epochs * images // batch)
    config.data.name = "none"
    with torch.device("meta"):
        model = builders.build_model(config, builders.build_dataset(config, "train"), torch.device("cpu"))
    parameters = sum(p.numel() for p in model.parameters())
    flops = training_flops(model, (3, 64, 64))
    sample = 64 * (config.sampling.steps + 1) * flops.forward
    rate = 6322 * 12.44e9
    assert f"{steps:,} of {batch} images" in page
    assert f"{parameters / 1e6:.1f} M parameters" in page
    assert f"{flops.total / 1e9:.0f} GFLOP an image" in page
    assert f"{flops.total * batch / 1e12:.2f} TFLOP a step" in page
    assert f"{flops.total * images * config.training.epochs:.2e} in all".replace("e+", "e") in page
    assert f"{parameters * 16 / 1e9:.2f} GB" in page
    assert f"{images * 3 * 64 * 64 / 1e9:.1f} GB for training" in page
    assert f"{steps * 13.4 / 86400:.0f} days" in page
    assert f"{flops.total * images * config.training.epochs / 260e12 / 3600:.1f} h, if" in page
    assert f"{flops.total * images * config.training.epochs / rate / 3600:.1f} h |" in page
    assert f"{steps * 0.077 / 3600:.0f} h |" in page
    assert f"{sample:.1e} operations".replace("e+", "e") in page
    assert f"calculated {sample / rate:.0f} s" in page


def test_the_rooms_of_the_architecture_are_those_that_there_are():
    page = (DOCS / "architecture.md").read_text()
    rooms = {room for room in MAY_IMPORT if (DOCS.parent / room).is_dir()}
    assert set(re.findall(r"^\| \[(\w+)/\]", page, re.MULTILINE)) == rooms
    files = re.findall(r"`((?:\w+/)+\w+\.py)`", page)
    assert files
    assert [file for file in files if not (DOCS.parent / file).is_file()] == []
    for name, file in re.findall(r"`([A-Z_]+)`, `(\w+/\w+\.py)`", page):
        assert re.search(rf"^{name}\b", (DOCS.parent / file).read_text(), re.MULTILINE), name


def test_the_index_has_every_page():
    listed = set(re.findall(r"\]\((\w+\.md)\)", (DOCS / "README.md").read_text()))
    assert listed == {path.name for path in DOCS.glob("*.md")} - {"README.md"}


def test_the_picture_of_the_tour_can_be_made_again(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(DOCS))
    import tour_picture

    tour_picture.main(["--steps", "4", "--out", str(tmp_path / "tour.png")])
    with Image.open(tmp_path / "tour.png") as made, Image.open(DOCS / "images" / "tour.png") as kept:
        assert made.size == kept.size


# The comparison itself.


@pytest.mark.parametrize(
    ("shown", "printed", "agree"),
    [
        ("loss 0.32, 7 steps\n", "loss 0.34,  7 steps", True),
        ("loss 0.32", "loss 0.35", False),
        ("loss 0.32", "lost 0.32", False),
        ("7 steps", "8 steps", False),
        ("error 3.4e-03", "error 3.6e-03", True),
        ("error 3.4e-03", "error 3.4e-02", False),
        ("mean -1.0, 1.0", "mean 1.0, -1.0", False),
        ("True", "False", False),
        ("", "something", False),
    ],
)
def test_what_counts_as_the_same_output(shown, printed, agree):
    assert same(shown, printed) is agree
