"""The lock of a folder."""

import errno
import os

import pytest

from training import locked


def test_a_full_disk_is_told_with_the_place_and_the_remedy(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    folder = tmp_path / "run"
    told = r"\.lock cannot be written \(.*No space.*Make room, or allow writing"
    with pytest.raises(OSError, match=told), locked(folder):
        pytest.fail("it is held")
    assert not folder.exists()  # nothing came of it
