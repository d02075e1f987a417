"""Streams of noise by name: known answers of the hash, the law of the normals, and names that do not meet."""

import math

import pytest
import torch
from scipy import stats

from samplers.random_streams import _GOLDEN, bits, mix, normal


def unsigned(z):
    return [int(v) % 2**64 for v in z.flatten()]


def test_the_hash_is_splitmix64():
    """Published outputs for the seed 1234567, and Python's whole numbers for others."""
    state = torch.tensor([(1234567 + (j + 1) * _GOLDEN + 2**63) % 2**64 - 2**63 for j in range(5)])
    assert unsigned(mix(state)) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]

    def by_hand(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    inputs = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 12345678901234567])
    assert unsigned(mix(inputs)) == [by_hand(int(z) % 2**64) for z in inputs]


def test_the_normals_are_normal_and_independent():
    """By Kolmogorov and Smirnov, for all, for each place in an image, and in the tails; moments to five sigmas."""
    z = normal(torch.arange(2000), (10, 10), (3, 1)).double()
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(z[:, 0, 0].numpy(), "norm").pvalue > 1e-4
    assert stats.kstest(z[:, 9, 9].numpy(), "norm").pvalue > 1e-4
    n = z.numel()
    beyond = int((z.abs() > 3).sum())
    share = 2 * stats.norm.sf(3)
    assert abs(beyond - n * share) < 5 * math.sqrt(n * share)
    flat = z.flatten(1)
    correlations = torch.corrcoef(flat.T) - torch.eye(100)
    assert correlations.abs().max() < 5.5 / math.sqrt(2000)  # 4950 pairs: beyond once in 5000
    squares = torch.corrcoef(flat.square().T) - torch.eye(100)
    assert squares.abs().max() < 7 / math.sqrt(2000)  # the two of a pair share a radius; heavier tails


@pytest.mark.parametrize("size", [1, 2, 3, 17])
def test_a_shorter_stream_has_pairs_of_its_own_numbers(size):
    z = normal(torch.arange(5), (size,), (1,))
    assert z.shape == (5, size)
    assert z.unique().numel() == z.numel()


def test_names_do_not_meet():
    seeds = torch.arange(50)
    names = [(a, b, c) for a in range(4) for b in range(8) for c in range(8)] + [(0,), (1,), (0, 0), (0, 1)]
    drawn = torch.cat([bits(seeds, name, 4).flatten() for name in names])
    assert drawn.unique().numel() == drawn.numel()


def test_a_part_of_a_name_may_differ_between_seeds():
    seeds, places = torch.tensor([5, 6, 7]), torch.tensor([0, 9, 2**19])
    together = bits(seeds, (0, 3, places), 6)
    for k, place in enumerate(places.tolist()):
        assert torch.equal(together[k : k + 1], bits(seeds[k : k + 1], (0, 3, place), 6))
