"""C++ kernels as shared libraries: made once, kept, and made anew where damage would kill the process."""

import shutil
from pathlib import Path

import pytest

from models.fused import library as libraries

pytestmark = pytest.mark.skipif(libraries.library("norm_silu") is None, reason="needs a C++ compiler")
FUNCTION = "norm_silu_forward_float32"


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A compiler that has its result already and notes its calls; returns what it notes, one argument a line."""
    made, calls, script = libraries.library("norm_silu")._name, tmp_path / "calls", tmp_path / "compiler"
    script.write_text(
        f"""#!/bin/sh
for last; do :; done
[ "$last" = --version ] && exit
printf '%s\\n' "$@" >> {calls}
cp {made} "$last"
"""
    )
    script.chmod(0o755)
    calls.touch()
    for name, value in {"CXX": str(script), "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SCORE_SDE_FUSED", raising=False)
    return calls


def found():
    """As a new process finds it."""
    return libraries.library.__wrapped__("norm_silu")


def kept(tmp_path):
    (path,) = (tmp_path / "cache" / "score-sde").iterdir()
    return path


def calls_of(notes):
    return notes.read_text().splitlines().count("-shared")


def test_it_is_compiled_once(compiler, tmp_path):
    assert hasattr(found(), FUNCTION)
    stamp = kept(tmp_path).stat().st_mtime_ns
    assert hasattr(found(), FUNCTION)
    assert (calls_of(compiler), kept(tmp_path).stat().st_mtime_ns) == (1, stamp)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"garbage",
        lambda content: content[:40_000] + bytes(40_000) + content[80_000:],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    ],
    ids=["cut off", "empty", "garbage", "zeros inside", "a bit"],
)
def test_a_damaged_one_is_made_anew(compiler, tmp_path, damage):
    assert found() is not None
    path = kept(tmp_path)
    whole = path.read_bytes()
    copy = tmp_path / "damaged"  # the loaded file stays as it is
    copy.write_bytes(damage(whole))
    copy.replace(path)
    assert hasattr(found(), FUNCTION)
    assert calls_of(compiler) == 2
    assert kept(tmp_path).read_bytes() == whole


def test_a_compiler_may_have_arguments(compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", f"{tmp_path / 'compiler'} -O1 '-DNAME=a b'")
    assert hasattr(found(), FUNCTION)
    assert compiler.read_text().splitlines()[:2] == ["-O1", "-DNAME=a b"]
    assert not libraries.lacks_compiler()


def test_quotes_that_do_not_end_name_no_compiler(compiler, monkeypatch):
    monkeypatch.setenv("CXX", "g++ 'x")
    assert libraries.lacks_compiler()
    assert found() is None


def test_an_empty_name_is_none(monkeypatch):
    monkeypatch.setenv("CXX", "")
    assert libraries.lacks_compiler() == (shutil.which("g++") is None)


@pytest.mark.parametrize(
    ("work", "told"),
    [
        ("printf 'f\\374r' >&2; exit 1", "f\ufffdr"),
        ("kill -9 $$", "SIGKILL"),
        ("echo at work >&2; sleep 60", "timed out after 1 seconds"),
        ("exit 0", "No such file"),
    ],
    ids=["another encoding", "killed", "hangs", "makes nothing"],
)
def test_one_that_fails_is_told_of(compiler, tmp_path, monkeypatch, work, told):
    if "sleep" in work:
        monkeypatch.setattr(libraries, "PATIENCE", 1)
    (tmp_path / "compiler").write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit\n{work}\n')
    with pytest.warns(UserWarning, match="so the same is computed in plain PyTorch") as warnings:
        assert found() is None
    assert told in str(warnings[0].message)
    assert list((tmp_path / "cache" / "score-sde").iterdir()) == []


def test_a_home_that_is_not_known_is_told_of(compiler, monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the rules of XDG leave aside
    with pytest.warns(UserWarning, match="Could not determine home directory"):
        assert found() is None


@pytest.mark.parametrize("word", ["0", " 0", "false", "OFF", "no"])
def test_it_can_be_switched_off(compiler, monkeypatch, word):
    monkeypatch.setenv("SCORE_SDE_FUSED", word)
    assert found() is None
    assert calls_of(compiler) == 0
