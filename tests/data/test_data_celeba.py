"""CelebA in the layouts in which people have it."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from data.celeba import CelebA

NUMBERS = [1, 2, 3, 162770, 162771, 170000, 182637, 182638, 202599]
OFFICIAL = {"train": NUMBERS[:4], "valid": NUMBERS[4:7], "test": NUMBERS[7:]}
SHUFFLED = {"train": NUMBERS[::2], "valid": NUMBERS[1::4], "test": NUMBERS[3::4]}  # unlike the official ranges
NAMES = [f"{number}_o_Clock_Attribute" for number in range(40)]
ATTRIBUTES = np.random.default_rng(0).integers(0, 2, (len(NUMBERS), 40))


def file_name(number):
    return f"{number:06d}.jpg"


def write_images(folder, numbers=NUMBERS):
    """Images of one grey each: number i of the list has level 10 + 20 i."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        level = 10 + 20 * NUMBERS.index(number)
        Image.new("RGB", (178, 218), (level,) * 3).save(folder / file_name(number))


def write_partition(path, separator=" ", header=""):
    code = {number: code for code, split in enumerate(("train", "valid", "test")) for number in SHUFFLED[split]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header + "".join(f"{file_name(number)}{separator}{code[number]}\n" for number in NUMBERS))


def write_attributes_txt(path):
    """The official table: a count, names with a trailing blank, columns of two characters."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (
        f"{file_name(n)} {' '.join(f'{2 * a - 1:2d}' for a in row)}" for n, row in zip(NUMBERS, ATTRIBUTES, strict=True)
    )
    path.write_text(f"{len(NUMBERS)}\n{' '.join(NAMES)} \n" + "\n".join(rows) + "\n")


def write_attributes_csv(path):
    rows = (",".join([file_name(n), *map(str, 2 * row - 1)]) for n, row in zip(NUMBERS, ATTRIBUTES, strict=True))
    path.write_text(",".join(["image_id", *NAMES]) + "\n" + "\n".join(rows) + "\n")


def torchvision_layout(root):
    write_images(root / "img_align_celeba")
    write_partition(root / "list_eval_partition.txt")
    write_attributes_txt(root / "list_attr_celeba.txt")


def kaggle_layout(root):
    write_images(root / "img_align_celeba" / "img_align_celeba")
    write_partition(root / "list_eval_partition.csv", ",", "image_id,partition\n")
    write_attributes_csv(root / "list_attr_celeba.csv")


def official_layout(root):
    write_images(root / "Img" / "img_align_celeba")
    write_partition(root / "Eval" / "list_eval_partition.txt")
    write_attributes_txt(root / "Anno" / "list_attr_celeba.txt")


LAYOUTS = [torchvision_layout, kaggle_layout, official_layout]


@pytest.fixture(
    params=[(layout, how) for layout in LAYOUTS for how in ("", "parent", "zip", "images.zip")],
    ids=lambda param: f"{param[0].__name__}-{param[1]}",
)
def root(request, tmp_path):
    """The data as a folder, as its parent, all in one zip, and with the images in a zip beside the tables."""
    layout, how = request.param
    layout(tmp_path / "celeba" if how == "parent" else tmp_path / "data" if how == "zip" else tmp_path)
    if how == "zip":
        shutil.make_archive(tmp_path / "celeba", "zip", tmp_path / "data")
        shutil.rmtree(tmp_path / "data")
        return tmp_path / "celeba.zip"
    if how == "images.zip":
        (images,) = {path.parent for path in tmp_path.rglob("*.jpg")}
        outer = next(path for path in (images, *images.parents) if path.parent.name != "img_align_celeba")
        shutil.make_archive(outer, "zip", images.parent, images.name)
        shutil.rmtree(outer)
    return tmp_path


def test_every_layout_gives_the_same_data(root):
    for split, numbers in SHUFFLED.items():
        dataset = CelebA(split, root=str(root), image_size=8)
        assert [name.split("/")[-1] for name in dataset.names] == [file_name(number) for number in numbers]
        assert (dataset.shape, dataset.num_classes, dataset.quantizer.levels) == ((3, 8, 8), 0, 256)
        batch = dataset.fetch(range(len(dataset)))
        assert batch.y is None
        levels = torch.tensor([10 + 20 * NUMBERS.index(number) for number in numbers])
        assert torch.equal(batch.x, levels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8))


def test_attributes_follow_the_order_of_the_split(root):
    for split, numbers in SHUFFLED.items():
        table = ATTRIBUTES[[NUMBERS.index(number) for number in numbers]]
        dataset = CelebA(split, root=root, image_size=8, attributes="all")
        assert (dataset.label_names, dataset.num_attributes) == (tuple(NAMES), 40)
        batch = dataset.fetch(range(len(dataset)))
        assert batch.y.dtype == torch.int64
        np.testing.assert_array_equal(batch.y, table)
        some = CelebA(split, root=root, image_size=8, attributes=f"{NAMES[7]}, {NAMES[2]}")
        assert some.label_names == (NAMES[7], NAMES[2])
        np.testing.assert_array_equal(some.fetch(range(len(some))).y, table[:, [7, 2]])


def test_without_partition_file_the_official_ranges_hold(tmp_path):
    write_images(tmp_path / "img_align_celeba")
    for split, numbers in OFFICIAL.items():
        dataset = CelebA(split, root=tmp_path)
        assert dataset.names == [file_name(number) for number in numbers]
    with pytest.raises(FileNotFoundError, match=r"'all' were asked for, but list_attr_celeba\.txt or \.csv is not in"):
        CelebA(root=tmp_path, attributes="all")


def test_the_default_is_the_central_140_at_64_pixels(tmp_path):
    rows, columns = np.mgrid[:218, :178]
    (tmp_path / "img_align_celeba").mkdir()
    inside = (abs(columns - 88.5) < 70) & (abs(rows - 108.5) < 70)
    picture = Image.fromarray(np.uint8(255 * inside))
    picture.save(tmp_path / "img_align_celeba" / "000001.jpg", quality=100)
    x = CelebA(root=tmp_path).fetch([0]).x
    assert x.shape == (1, 3, 64, 64)
    assert int(x.min()) > 240
    assert int(CelebA(root=tmp_path, crop="none").fetch([0]).x.min()) == 0


def test_a_missing_data_set_says_what_goes_where(tmp_path):
    write_partition(tmp_path / "celeba" / "list_eval_partition.txt")
    (tmp_path / "img_align_celeba").mkdir()  # but empty
    with pytest.raises(FileNotFoundError) as caught:
        CelebA(root=tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "img_align_celeba/000001.jpg ... 202599.jpg or img_align_celeba.zip (not found)" in message
    assert "list_eval_partition.txt or .csv (optional; found)" in message
    assert "list_attr_celeba.txt or .csv (optional; not found)" in message
    assert "Large-scale CelebFaces Attributes" in message
    assert "\n" not in message


def test_a_root_that_is_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere, which does not exist"):
        CelebA(root=tmp_path / "nowhere")


def test_missing_images_are_counted_at_once(tmp_path):
    torchvision_layout(tmp_path)
    for number in SHUFFLED["valid"]:
        (tmp_path / "img_align_celeba" / file_name(number)).unlink()
    message = r"2 of the 2 images of the valid split are missing in .*, the first is 000002\.jpg; get"
    with pytest.raises(FileNotFoundError, match=message):
        CelebA("valid", root=tmp_path)
    assert len(CelebA("train", root=tmp_path)) == len(SHUFFLED["train"])


def test_an_empty_split(tmp_path):
    write_images(tmp_path / "img_align_celeba", NUMBERS[:2])
    with pytest.raises(ValueError, match=r"the test split of CelebA in .* is empty"):
        CelebA("test", root=tmp_path)


def test_file_names_without_number_need_the_partition_file(tmp_path):
    write_images(tmp_path / "img_align_celeba", NUMBERS[:2])
    (tmp_path / "img_align_celeba" / "copy of 1.jpg").touch()
    with pytest.raises(
        ValueError, match=r"without list_eval_partition.txt .* 'copy of 1\.jpg' is not like 000001\.jpg"
    ):
        CelebA(root=tmp_path)


def test_malformed_attributes(tmp_path):
    torchvision_layout(tmp_path)
    attributes = tmp_path / "list_attr_celeba.txt"
    lines = attributes.read_text().splitlines()
    for text, match in {
        "\n".join(
            lines[:2] + lines[3:]
        ): r"list_attr_celeba.txt lacks 1 images of this split, the first is 000001\.jpg",
        "\n".join(
            [*lines[:2], lines[2] + " 1", *lines[3:]]
        ): "40 attributes are named, but the row of 000001.jpg has 41",
        "\n".join([*lines[:2], lines[2][:-2] + " 7", *lines[3:]]): "its values must be 1 and -1",
        "": "is no CelebA attribute table: it has no rows",
    }.items():
        attributes.write_text(text)
        with pytest.raises(ValueError, match=match):
            CelebA(root=tmp_path, attributes="all")
        assert len(CelebA(root=tmp_path)) == len(SHUFFLED["train"])  # which needs none


@pytest.mark.parametrize("text", ["000001.jpg train\n", "000001.jpg 7\n", "", "\udcff\udcfe"])
def test_a_malformed_partition(tmp_path, text):
    torchvision_layout(tmp_path)
    (tmp_path / "list_eval_partition.txt").write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"is no CelebA partition table: expected lines like '000001\.jpg 0'"):
        CelebA(root=tmp_path)


@pytest.mark.parametrize(
    ("attributes", "match"),
    [
        (f"{NAMES[3]},{NAMES[3]}", "one is named twice"),
        ("3_o_clock_Attribute", "unknown attribute of celeba .* '3_o_clock_Attribute'.*did you mean '3_o_Clock_"),
        (f"{NAMES[3]},", "unknown attribute of celeba"),
    ],
)
def test_attributes_that_are_not_there(tmp_path, attributes, match):
    torchvision_layout(tmp_path)
    with pytest.raises(ValueError, match=match):
        CelebA(root=tmp_path, attributes=attributes)


def test_a_damaged_zip(tmp_path):
    torchvision_layout(tmp_path)
    shutil.make_archive(tmp_path / "celeba", "zip", tmp_path)
    archive = tmp_path / "celeba.zip"
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"celeba\.zip is not a complete zip archive .*; get it again"):
        CelebA(root=archive)


def test_unknown_split(tmp_path):
    with pytest.raises(
        ValueError, match="unknown split of celeba 'val'; choose from 'test', 'train', 'valid'; did you"
    ):
        CelebA("val", root=tmp_path)
