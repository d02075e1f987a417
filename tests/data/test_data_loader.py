"""Order, randomness and background loading: every batch is a pure function of (data, seed, step, rank)."""

import threading
from itertools import islice

import pytest
import torch

from data.dataset import Batch, Dataset, TensorDataset
from data.draws import StepDraws
from data.loader import eval_batches, prepare, train_batches
from data.order import batch_indices
from data.quantizer import Quantizer
from data.randomness import make_generator

LENGTH = 10


@pytest.fixture
def dataset():
    x = torch.randint(256, (LENGTH, 3, 4, 5), generator=make_generator("pixels"), dtype=torch.uint8)
    return TensorDataset("ten", x, torch.arange(LENGTH), quantizer=Quantizer(), num_classes=LENGTH)


def first_batches(dataset, number, **options):
    options = {"seed": 3, "dequantize": True, "flip": True} | options
    batches = train_batches(dataset, 6, **options)
    taken = list(islice(batches, number))
    batches.close()
    return taken


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)


@pytest.mark.parametrize(("workers", "prefetch"), [(0, 2), (1, 1), (1, 4), (3, 2), (2, 7)])
def test_batches_do_not_depend_on_where_one_starts_nor_on_workers(dataset, workers, prefetch):
    whole = first_batches(dataset, 9)
    for start in (0, 1, 5):
        part = first_batches(dataset, 9 - start, start_step=start, workers=workers, prefetch=prefetch)
        assert_same(part, whole[start:])


def test_batches_differ_between_seeds_steps_and_ranks(dataset):
    shared = {"world_size": 2}
    batches = [*first_batches(dataset, 3, rank=0, **shared), *first_batches(dataset, 3, rank=1, **shared)]
    batches += first_batches(dataset, 3, rank=0, seed=4, **shared)
    noise = {tuple(((batch.x + 1) * 128 % 1).flatten().tolist()) for batch in batches}
    assert len(noise) == 9


def test_the_ranks_together_see_the_single_process_batch_noise_and_flips_included(dataset):
    alone = first_batches(dataset, 4)
    ranks = [first_batches(dataset, 4, rank=rank, world_size=3) for rank in range(3)]
    together = [
        Batch(torch.stack([b.x for b in step], 1).flatten(0, 1), torch.stack([b.y for b in step], 1).flatten())
        for step in zip(*ranks, strict=True)
    ]
    assert_same(together, alone)


def test_batch_is_built_from_its_indices_and_draws(dataset):
    batch = first_batches(dataset, 3)[2]
    raw = dataset.fetch(batch_indices(LENGTH, 6, 2, seed=3))
    expected = prepare(raw, dataset.quantizer, StepDraws(3, 2, 6, range(6)), dequantize=True, flip=True)
    assert_same([batch], [expected])


class Hooked(Dataset):
    """Ten one-dimensional samples whose ``fetch`` first calls a hook."""

    name, shape, quantizer, num_classes = "hooked", (1,), None, 0

    def __init__(self, hook):
        self.hook = hook

    def __len__(self):
        return LENGTH

    def fetch(self, indices):
        self.hook(indices)
        return Batch(torch.tensor(indices, dtype=torch.float32).unsqueeze(1))


def loading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("data")]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_error_while_loading_reaches_the_caller_unchanged(workers):
    class Damaged(Exception):
        pass

    error = Damaged("file 7.png")
    wanted = batch_indices(LENGTH, 2, 3, seed=0)

    def fail_at_step_three(indices):
        if indices == wanted:
            raise error

    batches = train_batches(Hooked(fail_at_step_three), 2, seed=0, dequantize=False, flip=False, workers=workers)
    assert len(list(islice(batches, 3))) == 3
    with pytest.raises(Damaged, match=r"^file 7\.png$") as caught:
        next(batches)
    assert caught.value is error
    assert not loading_threads()


def test_closing_stops_the_threads(dataset):
    batches = train_batches(dataset, 2, seed=0, dequantize=True, flip=False, workers=3, prefetch=5)
    assert not loading_threads()  # nothing starts before the first batch is asked for
    next(batches)
    assert loading_threads()
    batches.close()
    assert not loading_threads()
    assert list(batches) == []


def test_workers_load_at_the_same_time():
    meeting = threading.Barrier(3, timeout=20)  # passed only by three fetches under way at once
    batches = train_batches(Hooked(lambda _: meeting.wait()), 2, seed=0, dequantize=False, flip=False, workers=3)
    assert len(list(islice(batches, 3))) == 3
    meeting.abort()
    batches.close()


@pytest.mark.parametrize(
    ("match", "options"),
    [("workers=-1", {"workers": -1}), ("prefetch=0", {"prefetch": 0}), ("use a multiple of 4", {"world_size": 4})],
)
def test_wrong_arguments_fail_before_the_first_batch(dataset, match, options):
    with pytest.raises(ValueError, match=match):
        train_batches(dataset, 6, seed=0, dequantize=False, flip=False, **options)


def test_evaluation_sees_every_sample_once_in_order(dataset):
    batches = list(eval_batches(dataset, 4))
    assert [len(batch.x) for batch in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([batch.x for batch in batches]), dataset.fetch(range(LENGTH)).x)
    assert torch.cat([batch.y for batch in batches]).tolist() == list(range(LENGTH))


def test_evaluation_of_chosen_samples(dataset):
    batches = list(eval_batches(dataset, 2, indices=[7, 7, 1]))
    assert [batch.y.tolist() for batch in batches] == [[7, 7], [1]]
    assert list(eval_batches(dataset, 2, indices=[])) == []
    with pytest.raises(ValueError, match="at least 1, got 0"):
        eval_batches(dataset, 0)
