"""Images decoded once for all: made block by block, resumed, verified, shared."""

import json
import multiprocessing
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image

from data import ConvertedImages, converted, get_dataset
from data.image_files import ImageFiles

RNG = np.random.default_rng(0)
COUNT = 23


@pytest.fixture
def images(tmp_path):
    """Images of classes 0 .. 22, in a folder."""
    root = tmp_path / "images"
    root.mkdir()
    for k in range(COUNT):
        Image.fromarray(RNG.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(root / f"{k:02d}.png")
    (root / "dataset.json").write_text(json.dumps({"labels": [[f"{k:02d}.png", k] for k in range(COUNT)]}))
    return root


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(converted, "BLOCK", 4)


def source(root, **options):
    return get_dataset("folder", root=root, **{"image_size": 8, "holdout": 0.0} | options)


def convert(root, folder, **options):
    return ConvertedImages(source(root, **options), folder)


def rewrite(path, content):
    """Change a file, as something else than a conversion would: its time of writing changes with it."""
    path.write_bytes(content)
    import os

    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))


def test_the_array_holds_the_decoded_images(images, tmp_path, capsys):
    dataset = convert(images, tmp_path / "cache")
    whole = source(images).fetch(range(COUNT))
    assert dataset.path.parent == tmp_path / "cache"
    np.testing.assert_array_equal(np.load(dataset.path), whole.x)
    batch = dataset.fetch([5, 0, 5])
    assert torch.equal(batch.x, whole.x[[5, 0, 5]])
    assert batch.x.dtype == torch.uint8
    assert torch.equal(batch.y, whole.y[[5, 0, 5]])
    assert dataset.fetch([]).x.shape == (0, 3, 8, 8)
    assert (
        f"{COUNT} images of folder/images are in {dataset.path}; checksum {dataset.checksum}" in capsys.readouterr().out
    )
    with pytest.raises(IndexError, match="index 23 is out of range"):
        dataset.fetch([COUNT])


def test_it_is_made_once_and_without_the_images_at_hand(images, tmp_path, monkeypatch):
    first = convert(images, tmp_path / "cache")
    monkeypatch.setattr(ImageFiles, "decode", lambda self, index: pytest.fail("decoded again"))
    second = convert(images, tmp_path / "cache")
    assert second.path == first.path
    assert second.checksum == first.checksum


def test_other_images_crops_and_sizes_are_other_arrays(images, tmp_path):
    kinds = [{}, {"image_size": 7}, {"crop": "none"}, {"channels": 1}, {"holdout": 0.3}]
    paths = [convert(images, tmp_path / "cache", **options).path for options in kinds]
    Image.new("RGB", (9, 9), "red").save(images / "05.png")  # fewer bytes under the same name
    paths.append(convert(images, tmp_path / "cache").path)
    assert len(set(paths)) == 6


def test_an_interruption_loses_at_most_a_block(images, tmp_path, monkeypatch):
    whole = convert(images, tmp_path / "whole")
    decode, decoded = ImageFiles.decode, []

    def interrupted(self, index):
        decoded.append(index)
        if index == 14:
            raise KeyboardInterrupt
        return decode(self, index)

    monkeypatch.setattr(ImageFiles, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(images, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.npy"))
    monkeypatch.setattr(ImageFiles, "decode", lambda self, index: decoded.append(index) or decode(self, index))
    decoded.clear()
    resumed = convert(images, tmp_path / "cache")
    assert sorted(decoded) == list(range(12, COUNT))  # three blocks of four were done
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    assert resumed.checksum == whole.checksum
    assert not list((tmp_path / "cache").glob("*.writing"))


def test_a_changed_byte_is_noticed_and_a_copy_is_not(images, tmp_path):
    path = convert(images, tmp_path / "cache").path
    shutil.copytree(tmp_path / "cache", tmp_path / "copy")
    assert len(convert(images, tmp_path / "copy")) == COUNT
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    rewrite(path, bytes(content))
    with pytest.raises(ValueError, match=r"\.npy does not hold what was written: delete it, and the images are conv"):
        convert(images, tmp_path / "cache")
    path.unlink()
    assert torch.equal(convert(images, tmp_path / "cache").fetch(range(COUNT)).x, source(images).fetch(range(COUNT)).x)


@pytest.mark.parametrize("content", [b"", b"x" * 5000, b"\x93NUMPY\x01\x00"])
def test_what_is_no_array_any_more_is_noticed(images, tmp_path, content):
    path = convert(images, tmp_path / "cache").path
    for damage in (content, path.read_bytes()[:300]):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=r"\.npy does not hold what was written: delete it"):
            convert(images, tmp_path / "cache")


def test_a_link_that_leads_nowhere_is_an_image_that_cannot_be_read(images, tmp_path):
    (images / "05.png").unlink()
    (images / "05.png").symlink_to(tmp_path / "lost.png")
    with pytest.raises(ValueError, match=r"05\.png.*data\.corrupt=skip"):
        convert(images, tmp_path / "cache")
    assert list(convert(images, tmp_path / "cache", corrupt="skip").skipped) == ["05.png"]


def test_lost_notes_make_it_anew(images, tmp_path):
    path = convert(images, tmp_path / "cache").path
    path.with_suffix(".json").write_text("{")
    assert len(convert(images, tmp_path / "cache")) == COUNT


@pytest.fixture
def damaged(images):
    for k in (0, 9, 10):
        (images / f"{k:02d}.png").write_bytes(b"no image")
    return images


def test_a_corrupt_image_ends_the_conversion_and_what_is_done_is_kept(damaged, tmp_path, monkeypatch):
    (damaged / "00.png").write_bytes((damaged / "01.png").read_bytes())
    with pytest.raises(ValueError, match=r"cannot use image .*09\.png: not an image.*data\.corrupt=skip"):
        convert(damaged, tmp_path / "cache")
    decode, decoded = ImageFiles.decode, []
    monkeypatch.setattr(ImageFiles, "decode", lambda self, index: decoded.append(index) or decode(self, index))
    dataset = convert(damaged, tmp_path / "cache", corrupt="skip")
    assert sorted(decoded) == list(range(8, COUNT))
    assert list(dataset.skipped) == ["09.png", "10.png"]


def test_skipped_images_are_left_out_with_their_labels(damaged, tmp_path, capsys):
    for _ in range(2):  # made, and read back
        dataset = convert(damaged, tmp_path / "cache", corrupt="skip")
        kept = [k for k in range(COUNT) if k not in (0, 9, 10)]
        assert len(dataset) == len(kept)
        batch = dataset.fetch(range(len(dataset)))
        assert batch.y.tolist() == kept
        assert torch.equal(batch.x, source(damaged).fetch(kept).x)
        assert list(dataset.skipped) == ["00.png", "09.png", "10.png"]
    assert "3 left out as unreadable" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"3 of the 23 images of folder/images could not be read, such as 00\.png"):
        convert(damaged, tmp_path / "cache")


def test_a_full_disk_is_said_before_anything_is_written(images, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, COUNT * 192 - 1))
    with pytest.raises(OSError, match=r"the 23 converted images take 0\.00 GB, and .*cache has 0\.00 GB left"):
        convert(images, tmp_path / "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, COUNT * 192))
    assert len(convert(images, tmp_path / "cache")) == COUNT


def test_a_place_that_cannot_be_written(images, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"the converted images cannot be kept in .*file .*: give another folder as data"):
        convert(images, tmp_path / "file")


def _convert_in_another_process(root, folder, results):
    dataset = ConvertedImages(source(root), folder)
    results.put((dataset.checksum, len(dataset)))


def test_two_processes_make_it_together(images, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    arguments = (images, tmp_path / "cache", results)
    workers = [context.Process(target=_convert_in_another_process, args=arguments) for _ in range(3)]
    for worker in workers:
        worker.start()
    answers = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    alone = convert(images, tmp_path / "alone")
    assert answers == [(alone.checksum, COUNT)] * 3
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1
