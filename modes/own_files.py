"""Python files of the user's own, run before anything is built: they add to the registries.

A line such as ``SDES["cubic"] = CubicVPSDE`` in one of them makes ``--config.sde.name=cubic`` known. The setting
``imports`` names them, so the run folder remembers them, and every mode and process finds what it needs. What they hold
may change while a run lasts: a digest of it keeps apart what was made by one and by the other, and training tells.
"""

import importlib.util
import json
import sys
from pathlib import Path

from data import whole_file
from modes.digest import digest

FILE = "imports.json"
"""What of a run folder remembers the digest of the files that it was trained with."""


def import_files(listed: str, home: Path, run_folder: Path, *, stored: bool = False) -> tuple[str, str]:
    """Run the files.

    Args:
        listed: paths divided by commas, from the working directory or from ``home``.
        home: the folder of run_lib.py.
        run_folder: that of the run; nothing in it is run, so that a folder from somebody else brings no code.
        stored: the list comes from the run folder. Then it holds absolute paths, of this machine: a folder from
            somebody else cannot name a file that came with it.

    Returns:
        the same list, as absolute paths: what a later call from elsewhere finds; and a digest of what was run, "" where
        there are none. What these files import in their turn is not in it.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: it lies in the run folder, is stored without its absolute path, or failed.
    """
    paths, sources = [], []
    for name in filter(None, map(str.strip, listed.split(","))):
        if stored and not Path(name).is_absolute():
            raise ValueError(
                f"the configuration in {run_folder} imports {name}, which no run stores like that, and which is not "
                "run; if it is yours, say so by --config.imports=FILE.py"
            )
        path = next((p.resolve() for p in (Path(name).expanduser(), home / name) if p.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"config.imports names {name}, but there is no such file; give the path of yours")
        if path.is_relative_to(run_folder.resolve()):
            raise ValueError(f"config.imports names {path}, which is in the run folder; code there is not run: move it")
        sources.append(_run(path))
        paths.append(str(path))
    return ",".join(paths), digest([source.hex() for source in sources], 6) if sources else ""


def change_of(run_folder: Path, own: str) -> list[str]:
    """What has changed since ``remember``, in words; nothing where nothing has, or nothing is remembered."""
    try:
        before = json.loads((run_folder / FILE).read_text())["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [f"what the files of imports hold: {before} -> {own}"] if own != before else []


def remember(run_folder: Path, own: str) -> None:
    """Keep the digest in the run folder, if there is one."""
    if own:
        with whole_file(run_folder / FILE) as draft:
            draft.write_text(json.dumps({"digest": own}))


def _run(path: Path) -> bytes:
    """Run a file; returns its content, which is what was run even where somebody is writing it."""
    spec = importlib.util.spec_from_file_location(f"own_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"config.imports names {path}, which is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and inspect look
    source = path.read_bytes()
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:  # a file of the user's may raise anything, and leave
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    return source
