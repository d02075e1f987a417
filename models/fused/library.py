"""C++ files beside this one as shared libraries: compiled for this machine's processor when first used, then kept."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

WIDE = ["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []
"""Of the processor's vectors the longest; compilers take 256 bits of themselves."""
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC"]
FLAGS += WIDE
SWITCH = "SCORE_SDE_FUSED"
"""Environment variable; "0" leaves our kernels aside."""
PATIENCE = 120
"""Seconds that a compiler is waited for."""
DIGEST_SIZE = hashlib.sha256().digest_size


def switched_off() -> bool:
    """Whether no kernel of ours is to be used."""
    return os.environ.get(SWITCH, "").strip().lower() in ("0", "false", "no", "off")


def lacks_compiler() -> bool:
    """Whether a compiler is all that kernels on this CPU would need."""
    return platform.system() == "Linux" and not switched_off() and _compiler() is None


def _compiler() -> list[str] | None:
    """The command, with arguments of its own."""
    try:
        command = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    except ValueError:  # quotes that do not end
        return None
    return command if shutil.which(command[0]) else None


@cache
def library(name: str) -> ctypes.CDLL | None:
    """The library of ``name``.cpp; None where it is switched off or there is no compiler (Linux's, with OpenMP).

    It is kept in the user's cache folder under a digest of all that determines it, and made anew where it was damaged.
    A compiler that fails is told of in a warning.
    """
    compiler = _compiler()
    if switched_off() or compiler is None or platform.system() != "Linux":
        return None
    source = Path(__file__).with_name(f"{name}.cpp")
    try:
        path = _folder() / f"{name}-{_digest(source, compiler)}.so"
        if not _is_whole(path):
            _compile(compiler, source, path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: there is no home folder
        said = getattr(error, "stderr", None)
        told = said if isinstance(said, str) and said.strip() else str(error)
        warnings.warn(
            f"{source.name} could not be compiled or loaded, so the same is computed in plain PyTorch, more slowly "
            f"({SWITCH}=0 does so without this message): {told.strip()[-500:]}",
            stacklevel=2,
        )
        return None


def _folder() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = (base if base.is_absolute() else Path.home() / ".cache") / "score-sde"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _digest(source: Path, compiler: list[str]) -> str:
    """Of the source, the flags, the compiler, and the processor that "native" means."""
    version = _run([*compiler, "--version"])
    processor = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    abilities = [line for line in processor if line.startswith(("model name", "flags", "Features", "CPU part"))]
    parts = [source.read_text(), *compiler, *FLAGS, version, *abilities]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _compile(compiler: list[str], source: Path, path: Path) -> None:
    """Beside its place and then moved there, since other processes may do the same at this moment.

    Its own digest is put at the end, where loaders do not look: a damaged library would kill the process.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        _run([*compiler, *FLAGS, str(source), "-o", str(made)])
        content = made.read_bytes()
        made.write_bytes(content + hashlib.sha256(content).digest())
        os.replace(made, path)


def _is_whole(path: Path) -> bool:
    content = path.read_bytes() if path.is_file() else b""
    return hashlib.sha256(content[:-DIGEST_SIZE]).digest() == content[-DIGEST_SIZE:]


def _run(command: list[str]) -> str:
    """Its output; SubprocessError if it fails, or takes as long as no compiler should."""
    done = subprocess.run(command, check=True, capture_output=True, text=True, errors="replace", timeout=PATIENCE)
    return done.stdout
