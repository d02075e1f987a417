"""Evaluations that are killed, shared among processes, or damaged: nothing is lost, and nothing is computed twice."""

import threading
from collections import Counter

import numpy as np
import pytest
import torch

from data import TensorDataset
from evaluation import Estimate, Parts, evaluate_likelihood

DATA = TensorDataset("points", torch.randn(25, 3, generator=torch.Generator().manual_seed(1)))
OPTIONS = {"batch_size": 4, "repeats": 2, "weighted": True, "seed": 6, "codes": True}


class Counting:
    """An estimator that counts what it computes, and fails at the call of a number."""

    def __init__(self, fails_at=None):
        self.computed, self.fails_at, self.calls = Counter(), fails_at, 0

    def __call__(self, raw, draws):
        self.calls += 1
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        self.computed.update((index, draws.repeat) for index in draws.indices)
        noise = draws.normal("noise", (3,))
        log_prob = -(raw.x + noise).double().square().sum(1)
        return Estimate(log_prob, noise[:, 0].double().square(), 2 + int(draws.indices[0] == 8), raw.x + noise)

    def images(self):
        assert set(self.computed.values()) <= {1}
        return sorted(index for index, repeat in self.computed if repeat == 0)


def run(estimator, folder=None, **changes):
    parts = None if folder is None else Parts(folder)
    return evaluate_likelihood(estimator, DATA, parts=parts, **(OPTIONS | changes))


def assert_same(result, expected):
    """Bit for bit, but for the seconds."""
    figures, others = ({k: v for k, v in vars(report).items() if k != "seconds"} for report, _ in (result, expected))
    assert figures == others
    np.testing.assert_array_equal(result[1], expected[1])


@pytest.fixture(scope="module")
def whole():
    """The uninterrupted evaluation in one process."""
    return run(Counting())


def test_what_is_kept_is_what_was_computed(tmp_path, whole):
    assert_same(run(Counting(), tmp_path / "new" / "parts"), whole)
    rows = Parts(tmp_path / "new" / "parts").load()
    assert rows["index"].tolist() == list(range(25))
    assert rows["log_prob"].shape == rows["variance"].shape == (25, 2)
    np.testing.assert_array_equal(rows["z"], whole[1])
    values = -rows["log_prob"].mean(1) / 3 / np.log(2)
    assert values.tolist() == pytest.approx(whole[0].values, rel=1e-14)
    assert rows["nfe"].tolist() == [2] * 8 + [3] * 4 + [2] * 13


@pytest.mark.parametrize("batch_size", [4, 3, 25])
def test_a_killed_evaluation_goes_on_where_it_was(tmp_path, whole, batch_size):
    first = Counting(fails_at=5)  # the first draw of the third batch
    with pytest.raises(KeyboardInterrupt):
        run(first, tmp_path)
    assert first.images() == list(range(8))
    second = Counting()
    report, codes = run(second, tmp_path, batch_size=batch_size)
    assert second.images() == list(range(8, 25))
    assert report.nfe == 3
    assert_same((report, codes), whole)
    third = Counting()
    assert_same(run(third, tmp_path), whole)
    assert third.calls == 0


def test_a_killed_second_draw_leaves_no_half_batch(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        run(Counting(fails_at=6), tmp_path)
    second = Counting()
    assert_same(run(second, tmp_path), whole)
    assert second.images() == list(range(8, 25))


def test_more_images_than_before_cost_only_the_difference_and_fewer_nothing(tmp_path, whole):
    run(Counting(), tmp_path, num_images=10)
    more = Counting()
    assert_same(run(more, tmp_path), whole)
    assert more.images() == list(range(10, 25))
    fewer = Counting()
    report, codes = run(fewer, tmp_path, num_images=10)
    assert fewer.calls == 0
    assert report.values == whole[0].values[:10]
    np.testing.assert_array_equal(codes, whole[1][:10])


# Several processes


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 1, 0)])
def test_processes_share_every_image_once(tmp_path, whole, order):
    shares = {}
    for rank in order:
        estimator = Counting()
        result = run(estimator, tmp_path, rank=rank, world_size=3)
        shares[rank] = estimator.images()
        assert (result is None) == (rank != 0)
    assert shares[0] == [*range(4), *range(12, 16), 24]
    assert shares[1] == [*range(4, 8), *range(16, 20)]
    assert shares[2] == [*range(8, 12), *range(20, 24)]
    assert_same(result, whole)


def test_the_first_process_waits_for_the_others(tmp_path, whole):
    found, estimators = {}, [Counting() for _ in range(3)]
    others_may_start = threading.Event()

    def work(rank):
        if rank:
            others_may_start.wait(30)
        found[rank] = run(estimators[rank], tmp_path, rank=rank, world_size=3)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    threads[0].join(0.2)
    assert threads[0].is_alive()
    assert not found
    others_may_start.set()
    for thread in threads:
        thread.join(30)
    assert found[1] is found[2] is None
    assert_same(found[0], whole)
    assert sorted(k for estimator in estimators for k in estimator.images()) == list(range(25))


def test_another_number_of_processes_goes_on_with_what_is_there(tmp_path, whole):
    """Process 1 of 3 was killed; one process alone completes the rest."""
    for rank in (2, 1):
        with pytest.raises(KeyboardInterrupt):
            run(Counting(fails_at=3), tmp_path, rank=rank, world_size=3)
    alone = Counting()
    assert_same(run(alone, tmp_path, batch_size=5), whole)
    assert alone.images() == [k for k in range(25) if k not in range(4, 12)]


def test_waiting_reports_what_is_missing_when_it_changes(tmp_path):
    parts, heard = Parts(tmp_path), []
    parts.save({"index": np.array([0, 2])})

    def report(left):
        heard.append(left)
        if left == 3:
            parts.save({"index": np.array([1])})
        if left == 2:
            threading.Timer(0.05, parts.save, [{"index": np.array([3, 4])}]).start()

    parts.wait(range(5), report, every=0.01)
    assert heard == [3, 2]


# Damage


def broken(whole):
    """Ways in which a disk damages a file: (name, what is left of it)."""
    yield "empty", b""
    yield "short", whole[:10]
    yield "half", whole[: len(whole) // 2]
    yield "cut", whole[:-1]
    yield "noise", bytes(range(256)) * 4
    for place in range(0, len(whole), 17):
        yield f"byte {place}", whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :]


def test_no_damage_of_a_file_goes_unnoticed(tmp_path):
    rows = {"index": np.arange(3), "log_prob": np.array([[1.5], [2.5], [3.5]])}
    Parts(tmp_path).save(rows)
    (path,) = tmp_path.iterdir()
    for name, content in broken(path.read_bytes()):
        path.write_bytes(content)
        assert Parts(tmp_path).done() == set(), name
        assert Parts(tmp_path).load() is None, name


@pytest.mark.parametrize("where", [0.3, 0.5, 0.9])
def test_a_damaged_file_is_computed_again(tmp_path, whole, where):
    run(Counting(), tmp_path)
    path = sorted(tmp_path.iterdir())[2]
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 255
    path.write_bytes(content)
    again = Counting()
    assert_same(run(again, tmp_path), whole)
    assert again.images() == [8, 9, 10, 11]


def test_files_that_were_being_written_do_not_count(tmp_path, whole):
    run(Counting(), tmp_path, num_images=8)
    for path in sorted(tmp_path.iterdir()):
        path.rename(path.with_name(f".writing_{path.name}"))
    (tmp_path / ".writing_000000004_77.npz").write_bytes(b"PK half")
    again = Counting()
    assert_same(run(again, tmp_path), whole)
    assert again.images() == list(range(25))


def test_an_image_that_two_have_computed_counts_once(tmp_path):
    parts = Parts(tmp_path)
    parts.save({"index": np.array([2, 3]), "log_prob": np.array([0.2, 0.3])})
    parts.save({"index": np.array([0, 1, 2]), "log_prob": np.array([0.0, 0.1, 0.2])})
    rows = parts.load()
    assert rows["index"].tolist() == [0, 1, 2, 3]
    assert rows["log_prob"].tolist() == [0.0, 0.1, 0.2, 0.3]
    assert parts.done() == {0, 1, 2, 3}


def test_parts_are_removed_whole_and_may_be_absent(tmp_path):
    parts = Parts(tmp_path / "parts")
    assert parts.load() is None
    assert parts.done() == set()
    parts.remove()
    parts.save({"index": np.array([0])})
    parts.remove()
    assert not (tmp_path / "parts").exists()
    assert parts.done() == set()
