"""The order of training: permutations of the epochs, shared by processes, and kept to few shards at a time."""

from collections import Counter
from itertools import chain, permutations

import pytest
import torch
from scipy import stats

from data import order
from data.order import batch_indices, epoch_order
from data.randomness import derive_seed

LENGTH = 10
SHARDS = (40, 7, 25, 40, 60, 33, 1, 50, 44, 12)


def endless_order(length, seed, epochs):
    """The sequence by its definition: the permutations of the epochs, one after the other."""
    seeds = [derive_seed(seed, "order", epoch) for epoch in range(epochs)]
    return torch.cat([torch.randperm(length, generator=torch.Generator().manual_seed(s)) for s in seeds]).tolist()


@pytest.mark.parametrize("batch_size", [1, 3, 10, 12, 37])
def test_batches_cut_the_endless_sequence(batch_size):
    order = endless_order(LENGTH, 4, 40)
    for step in range(10):
        expected = order[step * batch_size : (step + 1) * batch_size]
        assert batch_indices(LENGTH, batch_size, step, seed=4) == expected


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_the_shares_of_the_ranks_make_up_the_batch(world_size):
    for step in range(7):
        shares = [batch_indices(LENGTH, 6, step, seed=1, rank=r, world_size=world_size) for r in range(world_size)]
        assert {len(share) for share in shares} == {6 // world_size}
        interleaved = list(chain(*zip(*shares, strict=True)))
        assert interleaved == batch_indices(LENGTH, 6, step, seed=1)


def test_every_epoch_shows_every_sample_once():
    seen = list(chain(*(batch_indices(LENGTH, 4, step, seed=0) for step in range(25))))
    assert set(Counter(seen).values()) == {10}
    for epoch in range(10):
        assert sorted(seen[epoch * LENGTH : (epoch + 1) * LENGTH]) == list(range(LENGTH))


def test_all_orders_are_equally_likely():
    counts = Counter(tuple(batch_indices(4, 4, epoch, seed=2)) for epoch in range(4800))
    assert stats.chisquare([counts[order] for order in permutations(range(4))]).pvalue > 1e-4


def test_seeds_give_different_orders():
    assert batch_indices(100, 100, 0, seed=0) != batch_indices(100, 100, 0, seed=1)
    assert batch_indices(100, 100, 0, seed=0) != batch_indices(100, 100, 1, seed=0)


def test_a_permutation_is_drawn_once_per_epoch():
    epoch_order.cache_clear()
    for step in range(1000):
        batch_indices(200_000, 512, step, seed=9)
    assert epoch_order.cache_info().misses == 3  # 512,000 positions


@pytest.mark.parametrize(
    ("match", "changes"),
    [
        ("batch_size 6 cannot be shared evenly by 4 processes; use a multiple of 4", {"world_size": 4}),
        ("got rank=2, world_size=2", {"rank": 2, "world_size": 2}),
        ("rank=-1", {"rank": -1}),
        ("batch_size=0", {"batch_size": 0}),
        ("step=-1", {"step": -1}),
        ("length=0", {"length": 0}),
    ],
)
def test_wrong_arguments_of_the_order(match, changes):
    with pytest.raises(ValueError, match=match):
        batch_indices(**{"length": LENGTH, "batch_size": 6, "step": 0, "seed": 0} | changes)


# Shards


@pytest.fixture
def few(monkeypatch):
    """Four readers and 32 samples to shuffle in, so that shards of some dozens are large."""
    monkeypatch.setattr(order, "READERS", 4)
    monkeypatch.setattr(order, "BUFFER", 32)
    epoch_order.cache_clear()
    yield
    epoch_order.cache_clear()


def shard_of(index):
    return next(k for k in range(len(SHARDS)) if index < sum(SHARDS[: k + 1]))


def test_data_that_fit_into_the_buffer_are_shuffled_as_a_whole():
    assert torch.equal(epoch_order(312, 5, 2, SHARDS), epoch_order(312, 5, 2))
    assert torch.equal(epoch_order(10_000, 5, 2, (10_000,)).sort().values, torch.arange(10_000))


def test_an_epoch_of_shards_is_a_permutation_and_epochs_differ(few):
    orders = [epoch_order(sum(SHARDS), 3, epoch, SHARDS) for epoch in range(20)]
    for one in orders:
        assert torch.equal(one.sort().values, torch.arange(sum(SHARDS)))
    assert len({tuple(one.tolist()) for one in orders}) == len(orders)


@pytest.mark.parametrize("world_size", [1, 2, 4, 3])
def test_the_global_batch_does_not_depend_on_the_number_of_processes(few, world_size):
    for step in range(60):  # more than two epochs
        alone = batch_indices(312, 12, step, seed=1, shards=SHARDS)
        shares = [
            batch_indices(312, 12, step, seed=1, rank=r, world_size=world_size, shards=SHARDS)
            for r in range(world_size)
        ]
        assert list(chain(*zip(*shares, strict=True))) == alone


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_reader_has_few_shards_open_and_a_process_its_share_of_them(few, world_size):
    """Within an epoch a reader goes through a quarter of the samples, eight at a time, one shard after the other."""
    for epoch in range(5):
        places = epoch_order(312, 1, epoch, SHARDS).tolist()
        for reader in range(4):
            visited = [shard_of(index) for index in places[reader::4]]
            for start in range(0, len(visited), 8):
                assert len(set(visited[start : start + 8])) <= 3  # a window of 8 straddles a border or two
            spans = [(visited.index(k), len(visited) - visited[::-1].index(k)) for k in set(visited)]
            assert sum(end - start for start, end in spans) <= len(visited) + 8 * len(spans)
        shares = [places[rank::world_size] for rank in range(world_size)]
        touched = [len({shard_of(index) for index in share}) for share in shares]
        assert sum(touched) <= len(SHARDS) + 3  # each cut between readers makes one more


def test_windows_are_shuffled_evenly(few):
    """The first place of the first reader is any sample of its window: any of the first eight of the first shard."""
    counts = Counter()
    for seed in range(3000):
        first = int(epoch_order(312, seed, 0, (312,))[0])
        counts[first] += 1
    assert set(counts) == set(range(8))
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4
