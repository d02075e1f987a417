"""SIGKILL at random moments, and between any two file operations: each mode goes on to the bits of a run in one go."""

import os
import signal
import time

import pytest
from injection import COUNT, DIE, moments

import run_lib

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("mode", run_lib.MODES)
def test_killed_it_goes_on_to_the_same_bits(subject, mode, record_property):
    run, killed = subject(mode), 0
    for share in moments(mode):
        run.renew()
        pid = run.start()
        time.sleep(share * run.seconds)
        os.kill(pid, signal.SIGKILL)
        killed += run.wait(pid) == -signal.SIGKILL
        run.check_no_part_is_taken_for_the_whole()
        run.check_it_goes_on()
    assert killed
    operations = moments(f"{mode} files", max(1, COUNT // 2))
    for share in operations:
        run.renew()
        pid = run.start(at_operation=1 + int(share * run.operations), fault=DIE)
        assert run.wait(pid) == -signal.SIGKILL
        run.check_no_part_is_taken_for_the_whole()
        run.check_it_goes_on()
    record_property("SIGKILL", killed + len(operations))
