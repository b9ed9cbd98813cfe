"""SQL of a back end in files beside its modules: named statements, and migrations.

A statement is written as `-- name: x`, a sentence about it, and its text.
"""

from __future__ import annotations

import re
from importlib.resources import files


def load(package: str, name: str) -> dict[str, str]:
    """Return the statements of a package's file, by name."""
    text = files(package).joinpath(name).read_text()
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)[1:]
    return {
        parts[i]: re.sub(r"^--.*\n", "", parts[i + 1], flags=re.MULTILINE).strip()
        for i in range(0, len(parts), 2)
    }


def migrations(package: str) -> list[tuple[int, str]]:
    """Return a package's migration scripts in order, each with the schema version that it produces."""
    folder = files(package).joinpath("migrations")
    names = sorted(item.name for item in folder.iterdir() if item.name.endswith(".sql"))
    return [(int(name.split("_")[0]), folder.joinpath(name).read_text()) for name in names]
