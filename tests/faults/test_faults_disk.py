"""A disk that is full or may not be written: one line says so, and what was done counts when it can be again."""

import errno
import os
import shutil

import pytest
from injection import DISTURBED, REFUSE, choices, contents, moments, newest_step, whole_ones

pytestmark = pytest.mark.faults
ERRORS = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EIO")
LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"
READ_ONLY = """
import ctypes, os
libc = ctypes.CDLL(None)
private, bind, read_only = 1 << 18 | 1 << 14, 1 << 12, 1 << 5 | 1
failed = libc.unshare(1 << 17) or libc.mount(b"none", b"/", None, private, None)
failed = failed or libc.mount({0}, {0}, None, bind, None) or libc.mount(None, {0}, None, bind | read_only, None)
if failed: os._exit(77)
"""
"""For root, to whom the permissions of a file say nothing: a mount that this process alone sees."""


def start(run, error, share):
    """Its process id; from that share of its file operations on, they fail.

    With EFBIG, the system itself ends every file at a length, between that of the log and of the largest new file.
    """
    if error != "EFBIG":
        return run.start(at_operation=1 + int(share * run.operations), fault=REFUSE.format(error))
    shortest = len(run.printed) + 600
    largest = max(len(content) for name, content in run.after.items() if name not in run.before)
    return run.start(before=LIMIT.format(shortest + int(share * (largest - shortest))))


@pytest.mark.parametrize("mode", DISTURBED)
def test_that_fails_at_some_moment(subject, mode, record_property):
    run, told = subject(mode), []
    for share, error in zip(moments("disk", mode), choices(f"disk {mode}", ERRORS), strict=False):
        run.renew()
        status = run.wait(start(run, error, share))
        if status == 0:  # all was written, and only what is left of drafts could not be removed
            assert whole_ones(run.folder) == run.after
        else:
            assert os.strerror(getattr(errno, error)) in run.fault(status)
            told.append(error)
        run.check_no_part_is_taken_for_the_whole()
        run.check_it_goes_on()
    record_property("disk", f"{mode}: told {len(told)} of {len(moments('disk', mode))} ({', '.join(sorted(told))})")


@pytest.mark.parametrize("mode", DISTURBED)
def test_a_folder_that_is_read_only(subject, mode):
    run = subject(mode)
    run.renew(done=mode == "train")
    if mode == "train":  # it has something to go on from
        shutil.rmtree(run.folder / "checkpoints" / f"step_{newest_step(run.folder):08d}")
    before = contents(run.folder)
    if os.geteuid():
        permit(run.folder.parent, 0o500)
        status = run.wait(run.start())
        permit(run.folder.parent, 0o700)
    else:
        status = run.wait(run.start(before=READ_ONLY.format(os.fsencode(run.folder.parent))))
    if status == 77:
        pytest.skip("needs the right to mount")
    fault = run.fault(status)
    assert os.strerror(errno.EACCES if os.geteuid() else errno.EROFS) in fault
    assert str(run.folder) in fault
    assert contents(run.folder) == before


def permit(folder, rights):
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        path.chmod(rights)
