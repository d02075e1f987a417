"""A thread that loads data and fails, and a process that shares a likelihood and dies."""

import os
import random
import signal
import time

import pytest
from injection import STEPS, choices, moments, newest_step, whole_ones

pytestmark = pytest.mark.faults
FAILS = """
from data import batch_indices
from data.arrays import Arrays
fetch = Arrays.fetch

def fails(self, indices):
    if list(indices) == list(batch_indices(len(self), 8, {step}, seed=0)):
        raise {error}
    return fetch(self, indices)

Arrays.fetch = fails
"""
ERRORS = {
    "OSError(5, 'Input/output error')": "Input/output error",
    "MemoryError()": "MemoryError",
    "ValueError('cannot use image 7')": "cannot use image 7",
}
"""What a thread raises -> what is said."""


def test_a_thread_that_loads_fails_and_the_steps_before_are_saved(subject, steps_of):
    run = subject("train")
    for share, error in zip(moments("threads"), choices("threads", list(ERRORS)), strict=False):
        run.renew()
        done = int(share * STEPS)
        status = run.wait(run.start(before=FAILS.format(step=done, error=error)))
        assert ERRORS[error] in run.fault(status)
        assert newest_step(run.folder) == done
        assert steps_of(run.folder) == list(range(1, done + 1))
        own = f"checkpoints/step_{done:08d}/"
        run.check_no_part_is_taken_for_the_whole(but=own)
        run.check_it_goes_on(but=own)


def test_a_process_that_shares_a_likelihood_dies_and_all_are_started_again(subject, tmp_path):
    """As torchrun does it; what they have written in the end is what one alone writes."""
    run = subject("likelihood")
    logs = [tmp_path / "0.log", tmp_path / "1.log"]

    def start():
        return [run.start(log=log, RANK=str(rank), WORLD_SIZE="2") for rank, log in enumerate(logs)]

    for share in moments("processes"):
        run.renew()
        pids = start()
        time.sleep(share * run.seconds)
        for pid in random.Random(share).sample(pids, 2):
            os.kill(pid, signal.SIGKILL)
            run.wait(pid)
        run.check_no_part_is_taken_for_the_whole()
        assert [run.wait(pid) for pid in start()] == [0, 0], [log.read_text() for log in logs]
        assert whole_ones(run.folder) == run.after
