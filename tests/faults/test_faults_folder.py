"""Two runs in one folder, and the run folder of another configuration."""

import os
import signal
import time

import pytest
from command_line import alive, needs_proc, state
from injection import DISTURBED, contents, moments

import run_lib

pytestmark = pytest.mark.faults
STOP = "if left[0] == 0: os.kill(os.getpid(), signal.SIGSTOP)"


@needs_proc
@pytest.mark.parametrize("mode", DISTURBED)
def test_a_second_one_begins_between_two_file_operations_of_the_first(subject, mode, tmp_path, record_property):
    """It is refused, or both end with the files of one alone, whole at every moment."""
    run, first_log, refused = subject(mode), tmp_path / "first.log", 0

    def end(pid, log):
        """Whether it was refused."""
        status = run.wait(pid)
        if status:
            fault = run.fault(status, log)
            assert "is in use already (by " in fault or (mode == "import" and "holds a run already" in fault)
        run.check_no_part_is_taken_for_the_whole()
        return bool(status)

    for share in moments("second", mode):
        run.renew()
        first = run.start(at_operation=1 + int(share * run.operations), fault=STOP, log=first_log)
        while state(first) != "T":
            assert alive(first), first_log.read_text()
            time.sleep(0.001)
        second_is_refused = end(run.start(), run.log)
        os.kill(first, signal.SIGCONT)
        assert not (end(first, first_log) and second_is_refused)
        assert contents(run.folder) == run.after
        refused += second_is_refused
    record_property("refused", f"{mode}: {refused} of {len(moments('second', mode))}")


CHANGES = {
    **dict.fromkeys(run_lib.MODES, "--config.model.channels=16"),
    **dict.fromkeys(("train", "evaluate"), "--config.model.width=16"),  # of points
    "import": "--config.seed=1",
}


@pytest.mark.parametrize("mode", run_lib.MODES)
def test_a_run_of_another_configuration(subject, cli, mode):
    run = subject(mode)
    run.renew(done=mode in ("train", "import"))
    before = contents(run.folder)
    fault = cli(*run.arguments, CHANGES[mode]).fault()
    if mode == "import":
        assert f"{run.folder} holds a run already" in fault
    else:
        what, new = CHANGES[mode].removeprefix("--config.").split("=")
        assert f"{run.folder} holds a run with other settings: {what} is 8 there and {new} now" in fault
    assert contents(run.folder) == before
