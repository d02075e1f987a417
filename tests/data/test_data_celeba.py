"""CelebA in the layouts in which people have it."""

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
    params=[(layout, parent) for layout in LAYOUTS for parent in (False, True)],
    ids=lambda param: f"{param[0].__name__}{'-in-parent' if param[1] else ''}",
)
def root(request, tmp_path):
    layout, give_parent = request.param
    layout(tmp_path / "celeba" if give_parent else tmp_path)
    return tmp_path


def test_every_layout_gives_the_same_data(root):
    for split, numbers in SHUFFLED.items():
        dataset = CelebA(split, root=str(root), image_size=8)
        assert dataset.files == [file_name(number) for number in numbers]
        assert (dataset.shape, dataset.num_classes, dataset.quantizer.levels) == ((3, 8, 8), 0, 256)
        batch = dataset.fetch(range(len(dataset)))
        assert batch.y is None
        levels = torch.tensor([10 + 20 * NUMBERS.index(number) for number in numbers])
        assert torch.equal(batch.x, levels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8))


def test_attributes_follow_the_order_of_the_split(root):
    for split, numbers in SHUFFLED.items():
        dataset = CelebA(split, root=root)
        assert dataset.attribute_names == tuple(NAMES)
        assert dataset.attributes.dtype == torch.uint8
        np.testing.assert_array_equal(dataset.attributes, ATTRIBUTES[[NUMBERS.index(number) for number in numbers]])


def test_without_partition_file_the_official_ranges_hold(tmp_path):
    write_images(tmp_path / "img_align_celeba")
    for split, numbers in OFFICIAL.items():
        dataset = CelebA(split, root=tmp_path)
        assert dataset.files == [file_name(number) for number in numbers]
        assert dataset.attributes is None
        assert dataset.attribute_names == ()


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
    assert "img_align_celeba/000001.jpg ... 202599.jpg (not found)" in message
    assert "list_eval_partition.txt or .csv (optional; found)" in message
    assert "list_attr_celeba.txt or .csv (optional; not found)" in message
    assert "Large-scale CelebFaces Attributes" in message
    assert "\n" not in message


def test_a_root_that_is_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere, which is no folder"):
        CelebA(root=tmp_path / "nowhere")


def test_missing_images_are_counted_at_once(tmp_path):
    torchvision_layout(tmp_path)
    for number in SHUFFLED["valid"]:
        (tmp_path / "img_align_celeba" / file_name(number)).unlink()
    message = r"2 of the 2 images of the valid split are missing in .*, the first is 000002\.jpg; unpack"
    with pytest.raises(FileNotFoundError, match=message):
        CelebA("valid", root=tmp_path)
    assert len(CelebA("train", root=tmp_path)) == len(SHUFFLED["train"])


def test_an_empty_split(tmp_path):
    write_images(tmp_path / "img_align_celeba", NUMBERS[:2])
    with pytest.raises(ValueError, match=r"the test split of CelebA under .* is empty"):
        CelebA("test", root=tmp_path)


def test_file_names_without_number_need_the_partition_file(tmp_path):
    write_images(tmp_path / "img_align_celeba", NUMBERS[:2])
    (tmp_path / "img_align_celeba" / "copy of 1.jpg").touch()
    with pytest.raises(
        ValueError, match=r"without list_eval_partition.txt .* 'copy of 1\.jpg' is not like 000001\.jpg"
    ):
        CelebA(root=tmp_path)


def test_malformed_tables(tmp_path):
    torchvision_layout(tmp_path)
    attributes = tmp_path / "list_attr_celeba.txt"
    lines = attributes.read_text().splitlines()
    attributes.write_text("\n".join(lines[:2] + lines[3:]))
    with pytest.raises(
        ValueError, match=r"list_attr_celeba.txt lacks 1 images of this split, the first is 000001\.jpg"
    ):
        CelebA(root=tmp_path).attributes  # noqa: B018
    attributes.write_text("\n".join([*lines[:2], lines[2] + " 1", lines[3][:-3]]))
    with pytest.raises(ValueError, match=r"list_attr_celeba.txt is no CelebA attribute table"):
        CelebA(root=tmp_path).attributes  # noqa: B018
    attributes.write_text("")
    with pytest.raises(ValueError, match="it has no rows"):
        CelebA(root=tmp_path).attribute_names  # noqa: B018
    (tmp_path / "list_eval_partition.txt").write_text("000001.jpg train\n")
    with pytest.raises(ValueError, match=r"is no CelebA partition table: expected lines like '000001\.jpg 0'"):
        CelebA(root=tmp_path)


def test_unknown_split(tmp_path):
    with pytest.raises(
        ValueError, match="unknown split of celeba 'val'; choose from 'test', 'train', 'valid'; did you"
    ):
        CelebA("val", root=tmp_path)
