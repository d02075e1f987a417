"""One look at every sample: moments, levels, copies, what cannot be read, sizes."""

import numpy as np
import pytest
import torch
from PIL import Image

from data import Quantizer, TensorDataset, get_dataset, survey
from data.moments import Moments
from data.survey import BLOCK

G = torch.Generator().manual_seed(0)


def images(levels, y=None, num_classes=0, **quantizer):
    return TensorDataset("given", levels, y, quantizer=Quantizer(**quantizer), num_classes=num_classes)


def noise(n, channels=3, side=4):
    return torch.randint(256, (n, channels, side, side), generator=G, dtype=torch.uint8)


def test_moments_that_come_in_parts_are_those_of_the_whole():
    x = 1e6 + torch.randn(100, 5, generator=G, dtype=torch.float64)  # far from 0: squares would lose the digits
    moments = Moments()
    for part in x.split([1, 40, 59]):
        moments.add(part)
    torch.testing.assert_close(moments.mean, x.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(moments.std, x.std(0, correction=0), rtol=1e-9, atol=0)
    assert torch.equal(moments.least, x.amin(0))
    assert torch.equal(moments.most, x.amax(0))


def test_images_have_the_moments_and_levels_of_their_model_values():
    raw = noise(BLOCK + 10)
    raw[:, 1] //= 2
    found = survey(images(raw, low=0.0, high=1.0))
    x = Quantizer(low=0.0, high=1.0).encode(raw).double()
    torch.testing.assert_close(found.mean, x.mean((0, 2, 3)), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.std, x.transpose(0, 1).flatten(1).std(1, correction=0), rtol=1e-12, atol=0)
    assert found.whole_mean == pytest.approx(float(x.mean()), rel=1e-12)
    assert found.whole_std == pytest.approx(float(x.std(correction=0)), rel=1e-12)
    assert found.levels.tolist() == [torch.bincount(raw[:, c].flatten(), minlength=256).tolist() for c in range(3)]
    assert (found.least.tolist(), found.most.tolist()) == (
        x.amin((0, 2, 3)).float().tolist(),
        x.amax((0, 2, 3)).float().tolist(),
    )
    assert (found.read, found.total, found.constant, found.copies, found.grey) == (len(raw), len(raw), [], 0, False)
    assert found.sizes is None


def test_vectors_are_measured_by_dimension():
    x = torch.randn(50, 3, generator=G) * torch.tensor([1.0, 2.0, 0.0])
    found = survey(TensorDataset("points", x))
    torch.testing.assert_close(found.std, x.double().std(0, correction=0))
    assert found.levels is None
    assert found.constant == []
    assert torch.equal(found.sample.sort(0).values, x.sort(0).values)


def test_copies_images_of_one_value_and_grey_ones_are_found():
    raw = noise(20, channels=1).repeat(1, 3, 1, 1)
    raw[3] = raw[4] = raw[17]
    raw[5], raw[6] = 0, 0
    raw[7, 0], raw[7, 1], raw[7, 2] = 9, 9, 9
    found = survey(images(raw))
    assert (found.copies, found.constant, found.grey) == (2, [5, 6, 7], True)  # those of one value are not copies too
    assert found.equal == [[3, 4, 17]]
    assert found.place(17) == "sample 17 of given"
    raw[8, 0, 0, 0] ^= 1
    assert not survey(images(raw)).grey
    other = survey(images(torch.cat([raw[17:19], noise(3)])))
    assert other.shared_with(found) == [(0, 3), (1, 18)]
    assert found.shared_with(other) == [(3, 0), (4, 0), (17, 0), (18, 1)]


def test_some_samples_are_drawn_by_the_seed_and_keep_their_labels():
    raw = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1).repeat(1, 1, 2, 2)
    dataset = images(raw, torch.arange(256) % 10, num_classes=10)
    found = survey(dataset, num_images=40, sample=7, seed=1)
    assert (found.read, found.total, len(found.labels), found.sample.shape) == (40, 256, 40, (7, 1, 2, 2))
    levels = dataset.quantizer.decode(found.sample)[:, 0, 0, 0].long()
    assert torch.equal(levels % 10, found.sample_labels)
    assert found.levels.sum() == 40 * 4
    assert torch.equal(found.sample, survey(dataset, num_images=40, sample=7, seed=1).sample)
    assert not torch.equal(found.levels, survey(dataset, num_images=40, sample=7, seed=2).levels)


@pytest.mark.parametrize("corrupt", ["fail", "skip"])
def test_every_unreadable_file_is_named_whatever_is_done_with_it_in_training(tmp_path, corrupt):
    rng = np.random.default_rng(0)
    for k in range(12):
        size = (40, 20) if k else (9, 30)
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(tmp_path / f"{k:02d}.png")
    (tmp_path / "03.png").write_bytes((tmp_path / "03.png").read_bytes()[:300])
    (tmp_path / "07.png").write_text("no image")
    dataset = get_dataset("folder", root=tmp_path, image_size=16, crop="none", holdout=0.0, corrupt=corrupt)
    found = survey(dataset)
    assert [name.rsplit("/", 1)[-1] for name in found.unreadable] == ["03.png", "07.png"]
    assert "not an image" in found.unreadable[str(tmp_path / "07.png")]
    assert (found.read, found.total, found.copies) == (10, 12, 0)
    assert found.sizes.tolist() == [[9, 30]] + [[40, 20]] * 9
    centred = get_dataset("folder", root=tmp_path, image_size=16, holdout=0.0)
    assert survey(centred).sizes.tolist() == [[9, 9]] + [[20, 20]] * 9


def test_a_picture_taken_on_its_side_has_the_sizes_it_is_shown_with(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(tmp_path / "a.jpg", exif=exif)
    found = survey(get_dataset("folder", root=tmp_path, image_size=8, crop="none", holdout=0.0))
    assert found.sizes.tolist() == [[20, 40]]


def test_nothing_that_can_be_read_is_an_error(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(ValueError, match=r"nothing of folder.* can be read: cannot use image"):
        survey(get_dataset("folder", root=tmp_path, image_size=8, holdout=0.0))
