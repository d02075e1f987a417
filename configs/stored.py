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
        raise ValueError(f"{path} is not valid JSON ({error}); restore it, or use another --workdir") from error
    config = default.get_config()
    with config.unlocked():
        _fill(config, values, path)
    return config


def _fill(config: ConfigDict, values: dict[str, Any], path: str) -> None:
    for key, value in values.items():
        if key not in config:
            raise ValueError(f"{path} holds the key {key!r}, which this version does not know; remove it there")
        if isinstance(value, dict):
            _fill(config[key], value, path)
        elif value is not None:
            config[key] = tuple(value) if isinstance(value, list) else value
