"""Named SQL statements: `-- name: x`, a sentence about it, the statement."""

from __future__ import annotations

import re
from importlib.resources import files


def load(name: str) -> dict[str, str]:
    """Return the statements of a file beside this module, by name."""
    text = files(__package__).joinpath(name).read_text()
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)[1:]
    return {
        parts[i]: re.sub(r"^--.*\n", "", parts[i + 1], flags=re.MULTILINE).strip()
        for i in range(0, len(parts), 2)
    }


def migrations() -> list[tuple[int, str]]:
    """Return the migration scripts in order, each with the schema version that it produces."""
    folder = files(__package__).joinpath("migrations")
    names = sorted(item.name for item in folder.iterdir() if item.name.endswith(".sql"))
    return [(int(name.split("_")[0]), folder.joinpath(name).read_text()) for name in names]
