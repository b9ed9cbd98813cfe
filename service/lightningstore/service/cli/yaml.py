"""JSON values as YAML. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

#: Texts that YAML takes for texts without quotation marks.
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def lines(value: Any, indent: str = "") -> Iterator[str]:
    """Yield the lines of a value: YAML 1.2, which YAML 1.1 reads alike."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _entry(f"{indent}{_scalar(key)}:", item, indent)
    elif isinstance(value, list) and value:
        for item in value:
            inner = list(lines(item, f"{indent}  "))
            yield f"{indent}- {inner[0].removeprefix(indent + '  ')}"
            yield from inner[1:]
    else:
        yield f"{indent}{_scalar(value)}"


def _entry(head: str, item: Any, indent: str) -> Iterator[str]:
    if isinstance(item, (dict, list)) and item:
        yield head
        yield from lines(item, f"{indent}  ")
    else:
        yield f"{head} {_scalar(item)}"


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, float) and "e" in text and "." not in text:
        return text.replace("e", ".0e")  # YAML 1.1 takes 1e-05 for a text
    # JSON leaves characters as they are that YAML has no place for.
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)
