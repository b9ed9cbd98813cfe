"""A record with all that it says: for people as indented lines, for programs as lines of key and value. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from lightningstore.service.cli import units
from lightningstore.service.cli.table import EMPTY
from lightningstore.service.traces.texts import printable

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
_DURATION = re.compile(r"-?\d+(\.\d+)?s")
#: Keys whose numbers are counts, and are grouped by thousands.
_COUNTS = ("count", "depth", "length", "items", "streams", "tokens")
#: Keys that hold the caller's own JSON: shown as it is, also what looks like a time.
_PAYLOADS = frozenset(
    {
        "input",
        "metadata",
        "value",
        "stats",
        "attributes",
        "prompt",
        "response",
        "sampling_parameters",
    }
)


def described(record: dict[str, Any], now: datetime | None = None) -> Iterator[str]:
    """Yield the lines that show a record: a line a key, those inside it indented, long texts as blocks."""
    yield from _object(record, "", now or datetime.now(UTC))


def _object(record: dict[str, Any], indent: str, now: datetime) -> Iterator[str]:
    width = max((len(key) for key, value in record.items() if not _is_block(value)), default=0)
    for key, value in record.items():
        label = f"{indent}{printable(str(key))}:"
        if key in _PAYLOADS and isinstance(value, (dict, list)) and value:
            yield label
            for line in json.dumps(value, indent=2, ensure_ascii=False).splitlines():
                yield f"{indent}  {printable(line)}"
        elif isinstance(value, dict) and value:
            yield label
            yield from _object(value, f"{indent}  ", now)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for number, item in enumerate(value, 1):
                yield f"{indent}{printable(str(key))} {number}:"
                yield from _object(item, f"{indent}  ", now)
        elif isinstance(value, str) and "\n" in value:
            yield label
            for line in value.splitlines():
                yield f"{indent}  {printable(line)}"
        else:
            yield f"{label:<{len(indent) + width + 2}} {_text(str(key), value, now)}"


def _is_block(value: Any) -> bool:
    """Tell whether a value takes lines of its own below its key."""
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict)
    return isinstance(value, dict) and bool(value)


def _text(key: str, value: Any, now: datetime) -> str:
    """Return a plain value as people read it."""
    if value in (None, "", [], {}):
        return EMPTY
    if isinstance(value, list):
        return printable(", ".join(map(str, value)))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        if key.endswith("_bytes"):
            return units.size(value)
        return f"{value:,}" if key.endswith(_COUNTS) else str(value)
    if isinstance(value, str) and key not in _PAYLOADS:
        if key.endswith("time") and _TIME.fullmatch(value):
            age = (now - datetime.fromisoformat(value)).total_seconds()
            return f"{value} ({units.age(age)} ago)"
        if _DURATION.fullmatch(value):
            return units.span(float(value[:-1]))
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def flat(record: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the plain values of a record by their paths: `attempts.0.failure.message`. Payloads are JSON."""
    if isinstance(record, dict) and record:
        for key, value in record.items():
            inner = f"{path}.{key}" if path else str(key)
            if key in _PAYLOADS:
                yield printable(inner), json.dumps(value, ensure_ascii=False)
            else:
                yield from flat(value, inner)
    elif isinstance(record, list) and record:
        for number, value in enumerate(record):
            yield from flat(value, f"{path}.{number}")
    elif record in (None, [], {}):
        yield printable(path), ""
    else:
        text = record if isinstance(record, str) else json.dumps(record)
        yield printable(path), printable(text)
