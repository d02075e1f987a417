"""SIGTERM at random moments of a training, and while its last checkpoint is written: all that was done is saved."""

import signal

import pytest
from injection import moments, newest_step

pytestmark = pytest.mark.faults
STOP = "if left[0] == 0: os.kill(os.getpid(), signal.SIGTERM)"
LAST = 'if event == "os.mkdir" and "/checkpoints/.writing_step_00000030" in path: os.kill(os.getpid(), signal.SIGTERM)'


def check_what_is_saved(run, status, steps_of):
    """Between two steps it stops in good order, with the last of them saved; else there are none, or all are saved."""
    log, step = run.log.read_text(), newest_step(run.folder)
    assert status in (0, -signal.SIGTERM), log
    assert "Traceback" not in log
    if (run.folder / "metrics.jsonl").exists():
        assert steps_of(run.folder) == list(range(1, step + 1))
    if status:
        assert step in (0, 30)
    else:
        assert f"stopped by SIGTERM after step {step} of 30; all is saved" in log
    return f"checkpoints/step_{step:08d}/"


def test_at_random_moments_of_training(subject, steps_of, record_property):
    run, outcomes = subject("train"), []

    def check(status):
        outcomes.append(status)
        own = check_what_is_saved(run, status, steps_of)
        run.check_no_part_is_taken_for_the_whole(but=own)
        run.check_it_goes_on(but=own)

    for share in moments("SIGTERM", "train"):
        check(run.strike(share, signal.SIGTERM))
    for share in moments("SIGTERM at an operation", "train"):
        run.renew()
        check(run.wait(run.start(at_operation=1 + int(share * run.operations), fault=STOP)))
    assert 0 in outcomes
    record_property("SIGTERM", f"{len(outcomes)}, {outcomes.count(0)} of them between two steps")


def test_while_the_last_checkpoint_is_written(subject, steps_of):
    """It does not begin to draw samples, and to score."""
    run = subject("train")
    run.renew()
    status = run.wait(run.start(at_operation=0, fault=LAST))
    assert check_what_is_saved(run, status, steps_of) == "checkpoints/step_00000030/"
    assert status == 0
    assert not list(run.folder.glob("samples/*.npz"))
    run.check_it_goes_on()
