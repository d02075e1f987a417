"""The configuration that a run folder holds: --config=configs/stored.py:RUN/config.json."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import default


def get_config(path: str) -> ConfigDict:
    """Read a resolved configuration back; keys of an older version keep today's defaults.

    Raises:
        ValueError: the file is not readable, or holds a key that does not exist.
    """
    try:
        values = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error}); restore it, or use another --workdir") from error
    if not isinstance(values, dict):
        raise ValueError("no settings; restore it, or use another --workdir")
    config = default.get_config()
    with config.unlocked():
        _fill(config, values)
    return config


def _fill(config: ConfigDict, values: dict[str, Any]) -> None:
    for key, value in values.items():
        if key not in config:
            raise ValueError(f"the key {key!r} is not known to this version; remove it there")
        if isinstance(value, dict) != isinstance(config[key], ConfigDict):
            raise ValueError(f"the key {key!r} is {value!r}; restore it, or use another --workdir")
        if isinstance(value, dict):
            _fill(config[key], value)
        elif value is not None:
            config[key] = tuple(value) if isinstance(value, list) else value
