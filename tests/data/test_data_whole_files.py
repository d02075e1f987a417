"""Files are whole or absent: of writers that fail, that are killed, and that write the same at once."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from command_line import alive, needs_proc

from data import whole_file


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(path, text):
    with whole_file(path) as draft:
        draft.write_text(text)


BEGIN = """
import signal
from pathlib import Path
from data import whole_file
with whole_file(Path({path!r})) as draft:
    draft.write_text("half")
    signal.pause()
"""


@pytest.fixture
def begun(launcher, tmp_path, tmp_path_factory):
    """A process in the midst of writing ``report.json``."""
    log = tmp_path_factory.mktemp("log") / "log"
    pid = launcher.start(log, before=BEGIN.format(path=str(tmp_path / "report.json")))
    while [path.read_text() for path in tmp_path.glob(".writing_*/*")] != ["half"]:
        assert alive(pid), log.read_text()
        time.sleep(0.001)
    yield pid
    os.kill(pid, signal.SIGKILL)
    launcher.wait(pid)


def test_a_file_has_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "report.json"
    with whole_file(path) as draft:
        draft.write_text("whole")
        assert not path.exists()
        assert draft.suffix == ".json"  # by which some libraries choose the format
    assert path.read_text() == "whole"
    assert names(path.parent) == ["report.json"]


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (OSError("the disk is full"), r"OSError: .*report\.json cannot be written \(the disk is full\)\. Make room"),
        (KeyboardInterrupt(), "KeyboardInterrupt: "),
    ],
)
def test_what_fails_leaves_all_as_it_was(tmp_path, error, seen):
    write(tmp_path / "report.json", "before")
    with pytest.raises(type(error)) as raised, whole_file(tmp_path / "report.json") as draft:  # noqa: PT012
        draft.write_text("half")
        raise error
    assert re.match(seen, f"{type(raised.value).__name__}: {raised.value}")
    assert (tmp_path / "report.json").read_text() == "before"
    assert names(tmp_path) == ["report.json"]


def test_a_folder_takes_the_place_of_the_one_before(tmp_path):
    for content in ({"a": "1", "b": "2"}, {"a": "3"}):
        with whole_file(tmp_path / "export") as draft:
            draft.mkdir()
            for name, text in content.items():
                (draft / name).write_text(text)
        assert {path.name: path.read_text() for path in (tmp_path / "export").iterdir()} == content
        assert names(tmp_path) == ["export"]


def test_a_folder_that_another_one_puts_there_in_between_is_replaced_too(tmp_path, monkeypatch):
    """Between the look for a folder that is in the way, and the renaming."""
    target, replace, others = tmp_path / "export", Path.replace, ["first", "second"]

    def meet(draft, path):
        if others:
            path.mkdir()
            (path / others.pop()).write_text("another")
        return replace(draft, path)

    monkeypatch.setattr(Path, "replace", meet)
    with whole_file(target) as draft:
        draft.mkdir()
        (draft / "mine").write_text("mine")
    assert not others
    assert names(target) == ["mine"]
    assert names(tmp_path) == ["export"]


@needs_proc
def test_two_that_write_the_same_at_once_do_not_meet(tmp_path, begun):
    """The draft of the one is neither removed, nor renamed by the other when it is done."""
    write(tmp_path / "report.json", "whole")
    assert (tmp_path / "report.json").read_text() == "whole"
    assert [path.read_text() for path in tmp_path.glob(".writing_*/*")] == ["half"]
    assert alive(begun)


def test_what_a_killed_one_left_is_removed_by_the_next(tmp_path, launcher):
    log = tmp_path / "log"
    code = BEGIN.format(path=str(tmp_path / "report.json")).replace("signal.pause()", "os.kill(os.getpid(), 9)")
    assert launcher.wait(launcher.start(log, before=code)) == -signal.SIGKILL
    log.unlink()
    assert len(names(tmp_path)) == 1
    write(tmp_path / "other.json", "other")
    write(tmp_path / "another_report.json", "another")
    assert len(names(tmp_path)) == 3  # each looks after its own
    write(tmp_path / "report.json", "whole")
    assert names(tmp_path) == ["another_report.json", "other.json", "report.json"]


def test_what_another_machine_writes_is_left_alone(tmp_path):
    theirs = tmp_path / f".writing_elsewhere_{os.getpid()}_report.json"
    theirs.mkdir()
    write(tmp_path / "report.json", "whole")
    assert theirs.exists()
