"""The configuration: first what differs from the default, then all of it; and the commands that were run."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from evaluation.report.markup import Markup, folded, join, note, table, tag
from evaluation.report.records import finite, read_lines
from evaluation.report.section import Source

COMMANDS = "commands.jsonl"
MOST_COMMANDS = 50


def configuration(source: Source) -> Markup | None:
    """A table of differences, and the whole, folded."""
    if not source.config:
        return None
    default = dict(_flat(_plain(source.default)))
    differs = [(key, value) for key, value in _flat(_plain(source.config)) if default.get(key) != value]
    rows = [[tag("code", key), _value(value), _value(default.get(key))] for key, value in differs]
    shown = (
        table(["setting", "here", "default"], rows, "What differs from the default")
        if rows
        else note("All is as in the default.")
    )
    return join(shown, folded("The whole configuration", tag("pre", json.dumps(source.config, indent=2))))


def _plain(tree: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(tree))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(value: Any) -> Markup:
    return tag("code", value if isinstance(value, str) and value else json.dumps(value))


def commands(source: Source) -> Markup | None:
    """What was run, when, how long it took, and on what."""
    found = read_lines(source.folder / COMMANDS)
    if not found:
        return None
    rows = [
        [
            str(one.get("date", ""))[:16].replace("T", " "),
            one.get("mode", ""),
            _duration(one.get("seconds")),
            tag("code", one.get("command", "")),
        ]
        for one in reversed(found[-MOST_COMMANDS:])
    ]
    left = len(found) - len(rows)
    machines: dict[str, list[str]] = {}
    for one in found:
        modes = machines.setdefault(str(one.get("machine", "")), [])
        mode = str(one.get("mode", ""))
        modes += [mode] if mode and mode not in modes else []
    ran = [tag("li", f"{', '.join(modes)}: {machine}") for machine, modes in machines.items() if machine]
    return join(
        table(["date (UTC)", "mode", "took", "command"], rows, "Commands, the newest first"),
        note(f"{left} earlier ones are in {COMMANDS}.") if left else None,
        tag("h3", "Environment") if ran else None,
        tag("ul", *ran) if ran else None,
    )


def _duration(seconds: Any) -> str:
    seconds = finite(seconds)
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
