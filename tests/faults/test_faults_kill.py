"""SIGKILL at random moments, and between any two file operations: each mode goes on to the bits of a run in one go."""

import signal

import pytest
from injection import DIE, LASTING, moments

import run_lib

pytestmark = pytest.mark.faults


def check(run):
    run.check_no_part_is_taken_for_the_whole()
    run.check_it_goes_on()


@pytest.mark.parametrize("mode", LASTING)
def test_at_random_moments(subject, mode, record_property):
    run, times = subject(mode), moments("kill", mode)
    for share in times:
        assert run.strike(share, signal.SIGKILL) == -signal.SIGKILL
        check(run)
    record_property("SIGKILL", f"{mode}: {len(times)} at random moments")


@pytest.mark.parametrize("mode", run_lib.MODES)
def test_between_two_file_operations(subject, mode, record_property):
    run, times = subject(mode), moments("kill at an operation", mode)
    for share in times:
        run.renew()
        pid = run.start(at_operation=1 + int(share * run.operations), fault=DIE)
        assert run.wait(pid) == -signal.SIGKILL
        check(run)
    record_property("SIGKILL", f"{mode}: {len(times)} between two file operations")
