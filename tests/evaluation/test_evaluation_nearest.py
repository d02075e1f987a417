"""Nearest images: what an exhaustive search by another library finds, and what must not be missed."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from data import Quantizer, TensorDataset, get_dataset
from evaluation import nearest as module
from evaluation.nearest import nearest, picture_values, some_of


def images(count, shape=(3, 5, 4), levels=256, seed=0):
    x = torch.randint(levels, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return TensorDataset("images", x, quantizer=Quantizer(levels))


def distances(queries, values):
    """All of them, by scipy."""
    a, b = (np.asarray(x, dtype=float).reshape(len(x), -1) for x in (queries, values))
    return cdist(a, b) / a.shape[1] ** 0.5


@pytest.mark.parametrize("chunk", [1, 7 * 60, 2**23])
@pytest.mark.parametrize("mirror", [False, True])
def test_it_is_the_exhaustive_search(monkeypatch, chunk, mirror):
    monkeypatch.setattr(module, "CHUNK", chunk)
    data, queries = images(40), images(9, seed=1).fetch(range(9)).x
    chosen = range(3, 40, 2)
    values = data.fetch(chosen).x
    table = distances(queries, values)
    mirrored = distances(queries, values.flip(-1)) if mirror else np.full_like(table, np.inf)
    found = nearest(queries, data, chosen, mirror=mirror)
    both = np.minimum(table, mirrored)
    np.testing.assert_allclose(found.distances, both.min(1), rtol=1e-12)
    assert found.indices.tolist() == [chosen[k] for k in both.argmin(1)]
    assert found.mirrored.tolist() == (mirrored.min(1) < table.min(1)).tolist()
    assert found.mirrored.any() == mirror


def test_digits_are_compared_as_they_are_stored_among_samples():
    """Levels 0 .. 16 become 0 .. 255, as ``to_uint8`` spreads those of samples."""
    data = get_dataset("digits", "test")
    values = (data.fetch(range(10)).x.double() * 255 / 16).round().to(torch.uint8)
    assert torch.equal(picture_values(data, range(10)), values)
    found = nearest(values, data, range(len(data)))
    assert found.indices.tolist() == list(range(10))
    assert found.distances.tolist() == [0.0] * 10


def test_large_images_are_averaged_down_and_a_copy_stays_one():
    data = images(6, shape=(3, 128, 192), seed=2)
    queries = torch.cat([data.fetch([4]).x, images(1, shape=(3, 128, 192), seed=3).fetch([0]).x])
    found = nearest(queries, data, range(6))
    assert found.indices[0] == 4
    assert found.distances[0] < 1e-4
    small, values = (x.double().reshape(-1, 3, 64, 2, 64, 3).mean((3, 5)) for x in (queries, data.fetch(range(6)).x))
    np.testing.assert_allclose(found.distances[1], distances(small, values)[1].min(), rtol=1e-9)


def test_some_of_many():
    data = images(10)
    assert list(some_of(data, 100)) == list(range(10))
    assert list(some_of(data, 5)) == [0, 2, 4, 6, 8]
    assert list(some_of(data, 4)) == [0, 3, 6, 9]
    data.shards = (5, 5)  # these are read one after the other
    assert list(some_of(data, 4)) == [0, 1, 2, 3]


def test_mistakes():
    data = images(4)
    with pytest.raises(ValueError, match=r"shape \(3, 5, 5\) cannot be compared with those of \(3, 5, 4\)"):
        nearest(torch.zeros(1, 3, 5, 5), data, range(4))
    with pytest.raises(ValueError, match="no images of 'images' to compare with"):
        nearest(data.fetch([0]).x, data, [])
    with pytest.raises(ValueError, match="'toy/moons' has no images"):
        picture_values(get_dataset("toy", distribution="moons", size=10), [0])
