"""From raw samples to model inputs: encoding, dequantisation and mirroring."""

import pytest
import torch
from scipy import stats

from data.dataset import Batch, TensorDataset
from data.draws import StepDraws
from data.loader import prepare
from data.quantizer import Quantizer
from data.randomness import make_generator

LENGTH = 10


def draws(batch):
    return StepDraws(5, 0, batch, range(batch))


@pytest.fixture
def dataset():
    x = torch.randint(256, (LENGTH, 3, 4, 5), generator=make_generator("pixels"), dtype=torch.uint8)
    return TensorDataset("ten", x, torch.arange(LENGTH), quantizer=Quantizer(), num_classes=LENGTH)


def test_prepare_encodes(dataset):
    raw = dataset.fetch(range(LENGTH))
    batch = prepare(raw, dataset.quantizer, draws(LENGTH), dequantize=False, flip=False)
    assert batch.x.dtype == torch.float32
    torch.testing.assert_close(batch.x, raw.x / 127.5 - 1, rtol=0, atol=2e-7)
    assert torch.equal(batch.y, raw.y)


def test_prepare_dequantizes_with_the_draws(dataset):
    raw = dataset.fetch(range(LENGTH))
    batch = prepare(raw, dataset.quantizer, draws(LENGTH), dequantize=True, flip=False)
    assert torch.equal(batch.x, dataset.quantizer.place(raw.x, draws(LENGTH).uniform("dequantize", raw.x.shape[1:])))


def test_each_image_is_mirrored_whole_or_not_at_all_half_of_the_time(dataset):
    raw = dataset.fetch([index % LENGTH for index in range(4000)])
    before = raw.x.clone()
    x = prepare(raw, dataset.quantizer, draws(4000), dequantize=False, flip=True).x
    plain = dataset.quantizer.encode(raw.x)
    kept = (x == plain).flatten(1).all(1)
    mirrored = (x == plain.flip(-1)).flatten(1).all(1)
    assert torch.all(kept ^ mirrored)
    assert stats.binomtest(int(mirrored.sum()), 4000).pvalue > 1e-4
    assert torch.equal(raw.x, before)


def test_dequantized_pixels_are_mirrored_with_their_levels(dataset):
    raw = dataset.fetch(range(LENGTH))
    options = {"dequantize": True, "flip": True}
    x = prepare(raw, dataset.quantizer, draws(LENGTH), **options).x
    levels = dataset.quantizer.decode(x)
    assert all(torch.equal(v, w) or torch.equal(v, w.flip(-1)) for v, w in zip(levels, raw.x, strict=True))


def test_continuous_data_pass_unchanged():
    raw = Batch(torch.randn(6, 2))
    assert torch.equal(prepare(raw, None, draws(6), dequantize=True, flip=False).x, raw.x)


def test_only_images_are_flipped():
    with pytest.raises(ValueError, match=r"only images .* got shape \(6, 2\); set flip to False"):
        prepare(Batch(torch.randn(6, 2)), None, draws(6), dequantize=False, flip=True)
