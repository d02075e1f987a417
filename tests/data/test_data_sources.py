"""One set of images as a folder, a zip, tar shards and a converted array: the same data, the same batches."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from data import get_dataset, train_batches

RNG = np.random.default_rng(0)
SIZES = [(9, 7), (8, 8), (6, 11), (7, 7)]
CLASSES = {f"0000{k // 12}/img{k:08d}.png": k % 5 for k in range(48)}
VECTORS = {name: [k % 2, k // 2 % 2, k // 4 % 2] for k, name in enumerate(CLASSES)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Random images of several sizes, half of them grey, in subfolders that are no classes."""
    root = tmp_path_factory.mktemp("pictures")
    for k, name in enumerate(CLASSES):
        (root / name).parent.mkdir(exist_ok=True)
        shape = SIZES[k % 4] if k % 2 else (*SIZES[k % 4], 3)
        Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8)).save(root / name)
    return root


def with_labels(pictures, root, labels):
    shutil.copytree(pictures, root)
    listing = None if labels is None else [[name, label] for name, label in labels.items()]
    (root / "dataset.json").write_text(json.dumps({"labels": listing}))
    return root


def write_shards(pictures, root, labels, count, suffix):
    """The images in ``count`` shards, with their labels beside them."""
    root.mkdir()
    names = list(labels)
    for shard in range(count):
        with tarfile.open(root / f"part-{shard:03d}.tar", "w") as tar:
            for name in names[shard * len(names) // count : (shard + 1) * len(names) // count]:
                text = str(labels[name]) if suffix == ".cls" else json.dumps({"label": labels[name], "more": "x"})
                info = tarfile.TarInfo(name.replace(".png", suffix))
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text.encode()))
                tar.add(pictures / name, name)
    return root


def assert_same_data(source, other):
    """Equal batches of several epochs, of both splits, with flips and noise."""
    for split in ("train", "test"):
        left, right = source(split), other(split)
        assert (left.shape, left.num_classes, left.num_attributes) == (
            right.shape,
            right.num_classes,
            right.num_attributes,
        )
        steps = [
            train_batches(data, 8, seed=3, dequantize=True, flip=True, workers=workers)
            for data, workers in ((left, 0), (right, 2))
        ]
        for _ in range(12):
            one, two = (next(batches) for batches in steps)
            assert torch.equal(one.x, two.x)
            assert one.y is two.y is None or torch.equal(one.y, two.y)
        steps[1].close()


def of(name, root, **options):
    return lambda split: get_dataset(name, split, root=root, image_size=6, holdout=0.2, **options)


@pytest.mark.parametrize("labels", [CLASSES, VECTORS, None], ids=["classes", "vectors", "none"])
def test_a_zip_is_its_folder(pictures, tmp_path, labels):
    folder = with_labels(pictures, tmp_path / "folder", labels)
    shutil.make_archive(tmp_path / "packed", "zip", folder)
    source = of("folder", folder)
    assert_same_data(source, of("folder", tmp_path / "packed.zip"))
    train = source("train")
    y = train.fetch(range(len(train))).y
    assert y is None if labels is None else y.tolist() == [labels[name] for name in train.names]
    kinds = {"classes": (5, 0), "vectors": (0, 3), "none": (0, 0)}
    name = "none" if labels is None else "classes" if labels is CLASSES else "vectors"
    assert (train.num_classes, train.num_attributes) == kinds[name]


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize(("labels", "suffix"), [(CLASSES, ".cls"), (CLASSES, ".json"), (VECTORS, ".json")])
def test_shards_are_their_folder(pictures, tmp_path, labels, suffix, count):
    folder = with_labels(pictures, tmp_path / "folder", labels)
    shards = write_shards(pictures, tmp_path / "shards", labels, count, suffix)
    assert_same_data(of("folder", folder), of("shards", shards))
    assert_same_data(of("folder", folder), of("shards", shards, cache=tmp_path / "cache"))
    assert_same_data(of("folder", folder), of("shards", shards, cache=tmp_path / "cache"))  # from what was kept
    assert_same_data(of("folder", folder), of("shards", f"{shards}/part-{{000..{count - 1:03d}}}.tar"))
    assert_same_data(of("folder", folder), of("shards", f"pipe:cat {shards}/part-{{000..{count - 1:03d}}}.tar"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("crop", ["center", "none"])
def test_a_converted_array_is_its_folder(pictures, tmp_path, channels, crop):
    options = {"channels": channels, "crop": crop}
    converted = of("folder", pictures, cache=tmp_path / "cache", **options)
    assert_same_data(of("folder", pictures, **options), converted)
    assert_same_data(of("folder", pictures, **options), converted)  # as it was kept


def test_a_converted_zip_keeps_its_labels(pictures, tmp_path):
    folder = with_labels(pictures, tmp_path / "folder", VECTORS)
    shutil.make_archive(tmp_path / "packed", "zip", folder)
    assert_same_data(of("folder", folder), of("folder", tmp_path / "packed.zip", cache=tmp_path / "cache"))


# What is wrong with a label file


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", r"is no table of labels: expected \{\"labels\": \[\[\"IMAGE\", 0\], \.\.\.\]\}"),
        ("[]", "is no table of labels"),
        pytest.param("[" * 100_000, "is no table of labels", id="too deep"),
        ('{"labels": [["a.png"]]}', "is no table of labels"),
        ('{"labels": [["a.png", 0]]}', r"has no label for 1 of 1 images, the first is b\.png"),
        ('{"labels": [["b.png", 0], ["a.png", [0, 1]]]}', "mixes labels of several kinds"),
        ('{"labels": [["b.png", -1]]}', r"the label of b\.png is -1; it must be a class"),
        ('{"labels": [["b.png", 0.5]]}', r"the label of b\.png is 0\.5"),
        ('{"labels": [["b.png", true]]}', r"the label of b\.png is True"),
        ('{"labels": [["b.png", [0, 2]]]}', r"the label of b\.png is \[0, 2\]"),
        ('{"labels": [["b.png", []]]}', r"the label of b\.png is \[\]"),
        ('{"labels": [["b.png", "cat"]]}', r"the label of b\.png is 'cat'"),
    ],
)
def test_a_wrong_label_file(tmp_path, text, match):
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=match):
        get_dataset("folder", root=tmp_path, image_size=8, holdout=0.0)


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def png():
    stream = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ({"a.cls": b"0"}, "there are no images in 1 shards"),
        ({"a.png": b"", "b.png": b"", "b.cls": b"1"}, r"1 of 2 images have no label, the first is a\.png"),
        ({"a.png": b"", "a.cls": b"cat"}, r"the label in a\.cls is b'cat'; it must be a class"),
        ({"a.png": b"", "a.cls": b"-3"}, r"the label in a\.cls is -3"),
        ({"a.png": b"", "a.json": b'{"label": [0, 7]}'}, r"the label in a\.json is \[0, 7\]"),
        ({"a.png": b"", "a.cls": b"9" * 30}, r"the label in a\.cls is 9"),
        ({"a.png": b"", "a.json": b"[" * 100_000}, r"the label in a\.json is b'\["),
        ({"a.png": b"", "a.json": b"[3]"}, r"the label in a\.json is"),
        ({"a.png": b"", "a.cls": b"1", "b.png": b"", "b.json": b'{"label": [0, 1]}'}, "mixes labels of several kinds"),
    ],
)
def test_wrong_labels_in_a_shard(tmp_path, members, match):
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        get_dataset("shards", root=tmp_path, image_size=8, holdout=0.0)


def test_a_rewritten_shard_is_read_anew(tmp_path):
    for label in (b"1", b"2"):  # of one size
        write_tar(tmp_path / "a.tar", {"a.png": png(), "a.cls": label})
        dataset = get_dataset("shards", root=tmp_path / "a.tar", image_size=8, holdout=0.0, cache=tmp_path / "cache")
        assert dataset.fetch([0]).y.tolist() == [int(label)]


def test_shards_with_labels_of_two_kinds(tmp_path):
    write_tar(tmp_path / "a.tar", {"a.png": png(), "a.cls": b"1"})
    write_tar(tmp_path / "b.tar", {"b.png": png()})
    with pytest.raises(ValueError, match=r"b\.tar has labels of another kind than .*a\.tar; all shards must"):
        get_dataset("shards", root=tmp_path, image_size=8)


@pytest.mark.parametrize(
    ("root", "kind", "match"),
    [
        ("nothing", FileNotFoundError, r"1 of 1 shards are missing, the first is .*nothing: give a folder of \.tar"),
        ("x-{0..2}.tar", FileNotFoundError, r"3 of 3 shards are missing, the first is .*x-0\.tar"),
        ("", FileNotFoundError, r"there are no shards in .*: looked for \*\.tar"),
        ("text.tar", ValueError, r"shard .*text\.tar is no complete, uncompressed tar"),
        ("empty.tar", OSError, r"shard .*empty\.tar is empty"),
        ("packed.tar", ValueError, r"shard .*packed\.tar is no complete, uncompressed tar"),
        ("cut.tar", ValueError, r"shard .*cut\.tar (is no complete|ends in the middle)"),
        ("pipe:cat nowhere", OSError, r"shard pipe:cat nowhere cannot be read"),
    ],
)
def test_shards_that_are_none(tmp_path, root, kind, match):
    files = tmp_path / "files"
    files.mkdir()
    (files / "text.tar").write_text("no tar at all" * 100)
    (files / "empty.tar").touch()
    whole = write_tar(tmp_path / "whole.tar", {f"{k}.png": png() for k in range(9)}).read_bytes()
    (files / "cut.tar").write_bytes(whole[: len(whole) * 5 // 9 + 100])
    with tarfile.open(files / "packed.tar", "w:gz") as tar:
        tar.add(tmp_path / "whole.tar", "whole.tar")
    (tmp_path / "bare").mkdir()
    place = root if root.startswith("pipe") else files / root if root else tmp_path / "bare"
    with pytest.raises(kind, match=match):
        get_dataset("shards", root=place, image_size=8)


def test_a_placeholder_for_the_split_holds_nothing_out(tmp_path):
    for split, count in (("train", 5), ("test", 3)):
        write_tar(tmp_path / f"{split}-0.tar", {f"{k}.png": png() for k in range(count)})
    pattern = f"{tmp_path}/{{split}}-{{0..0}}.tar"
    assert [len(get_dataset("shards", split, root=pattern, image_size=8)) for split in ("train", "test")] == [5, 3]


def test_few_remote_shards_are_kept_and_each_is_opened_once_a_pass(tmp_path, monkeypatch):
    """With room for few shards, reading in order opens each once more; the tables kept on the disk need none."""
    from data import shard_tables, shards

    for k in range(40):
        write_tar(tmp_path / f"{k:02d}.tar", {f"{k}-{i}.png": png() for i in range(3)})
    opened = []
    real = shard_tables.open_shard
    for module in (shard_tables, shards):
        monkeypatch.setattr(module, "open_shard", lambda url: opened.append(url) or real(url))
    monkeypatch.setattr(shards, "READERS", 2)
    monkeypatch.setattr(shards, "BUFFER", 12)
    options = {"root": f"{tmp_path}/{{00..39}}.tar", "image_size": 8, "holdout": 0.0, "cache": tmp_path / "cache"}
    get_dataset("shards", **options)
    assert len(opened) == 40
    opened.clear()
    dataset = get_dataset("shards", **options)
    assert opened == []
    for index in range(len(dataset)):
        dataset.fetch([index])
    assert len(opened) == 40
    assert len(dataset._buffers) <= 2 * (2 + 2)


# Images that cannot be read


@pytest.fixture
def with_damage(tmp_path):
    """Ten images, of which 2, 3 and 9 are damaged, as a folder with classes."""
    root = tmp_path / "images"
    root.mkdir()
    for k in range(10):
        Image.new("L", (8, 8), 20 * k).save(root / f"{k}.png")
    for k, content in ((2, b""), (3, b"text"), (9, (root / "9.png").read_bytes()[:45])):
        (root / f"{k}.png").write_bytes(content)
    (root / "dataset.json").write_text(json.dumps({"labels": [[f"{k}.png", k] for k in range(10)]}))
    return root


def as_shard(root):
    members = {}
    for k in range(10):
        members |= {f"{k}.png": (root / f"{k}.png").read_bytes(), f"{k}.cls": str(k).encode()}
    return write_tar(root.parent / "a.tar", members)


@pytest.mark.parametrize("kind", ["folder", "zip", "shards"])
def test_a_damaged_image_takes_its_neighbours_place_or_fails(with_damage, kind, capsys):
    root = with_damage
    if kind == "zip":
        root = shutil.make_archive(root.parent / "packed", "zip", root)
    root = as_shard(root) if kind == "shards" else root
    name = "shards" if kind == "shards" else "folder"
    options = {"root": root, "image_size": 8, "holdout": 0.0}
    strict = get_dataset(name, **options)
    strict.fetch([0, 1, 4])
    for index in (2, 3, 9):
        with pytest.raises(ValueError, match=rf"cannot use image .*\b{index}\.png"):
            strict.fetch([0, index])
    lenient = get_dataset(name, corrupt="skip", **options)
    batch = lenient.fetch(range(10))
    expected = [0, 1, 4, 4, 4, 5, 6, 7, 8, 0]
    assert (batch.x[:, 0, 0, 0] // 20).tolist() == expected == batch.y.tolist()
    lenient.fetch(range(10))
    assert set(lenient.skipped) == {2, 3, 9}
    assert capsys.readouterr().out.count("skipped") == 3


def test_nothing_that_can_be_read(tmp_path):
    for k in range(3):
        (tmp_path / f"{k}.png").touch()
    options = {"root": tmp_path, "image_size": 8, "holdout": 0.0, "corrupt": "skip"}
    with pytest.raises(ValueError, match=r"none of the 3 images of folder/.* can be read; the last: "):
        get_dataset("folder", **options).fetch([1])
    with pytest.raises(ValueError, match=r"none of the 3 images of folder/.* can be read"):
        get_dataset("folder", cache=tmp_path / "cache", **options)


def test_an_unknown_policy(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"unknown policy for corrupt images .* 'ignore'; choose from 'fail', 'skip'"):
        get_dataset("folder", root=tmp_path, image_size=8, corrupt="ignore")


def test_a_zip_with_damaged_members_names_them(tmp_path):
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    archive = shutil.make_archive(tmp_path / "packed", "zip", tmp_path, "a.png")
    content = bytearray((tmp_path / "packed.zip").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(byte ^ 255 for byte in content[middle : middle + 8])
    (tmp_path / "packed.zip").write_bytes(content)
    with pytest.raises(OSError, match=r"packed\.zip/a\.png cannot be unpacked"):
        get_dataset("folder", root=archive, image_size=8, holdout=0.0).fetch([0])
