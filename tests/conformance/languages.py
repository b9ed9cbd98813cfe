"""The languages that have clients, and which of them this machine can build.

As a program it prints the names of these, and reports on stderr which are skipped and why.
`--require all` (or some names) makes a missing one an error. Needs only Python itself.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = Path(__file__).with_name("languages.json")


@dataclass(frozen=True)
class Language:
    """A language that has a client."""

    name: str
    #: As people write it.
    title: str
    #: Commands that it takes to build the client.
    tools: tuple[str, ...]
    #: Where the client is.
    folder: str
    #: Packages that pkg-config must know.
    packages: tuple[str, ...] = ()
    #: What its driver may leave out: an op, or "export" and the exporter.
    unsupported: frozenset[str] = frozenset()

    def missing(self) -> str:
        """Say what this machine lacks to build it; empty if nothing."""
        for tool in self.tools:
            if shutil.which(tool) is None:
                return f"no {tool}"
        for package in self.packages:
            if not _has_package(package):
                return f"pkg-config finds no {package}"
        if self.name != "python" and not list((ROOT / self.folder).glob("*.mk")):
            return f"no {self.folder}/*.mk"
        return ""


def _has_package(name: str) -> bool:
    if shutil.which("pkg-config") is None:
        return False
    return subprocess.run(["pkg-config", "--exists", name], check=False).returncode == 0


def load() -> dict[str, Language]:
    """Return all languages, in the order of the table."""
    return {
        name: Language(
            name,
            entry["title"],
            tuple(entry["tools"]),
            entry["folder"],
            tuple(entry.get("packages", ())),
            frozenset(entry.get("unsupported", ())),
        )
        for name, entry in json.loads(FILE.read_text()).items()
    }


def wanted(text: str, languages: dict[str, Language]) -> list[str]:
    """Return the names that a list with commas, or "all", stands for. Raises SystemExit."""
    names = list(languages) if text == "all" else [name for name in text.split(",") if name]
    unknown = [name for name in names if name not in languages]
    if unknown:
        sys.exit(f"unknown language: {', '.join(unknown)}; known: {', '.join(languages)}")
    return names


def main() -> None:
    """Print the languages that can be built here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--require", default="", help="all, or names with commas")
    parser.add_argument("--only", default="all", help="all, or names with commas")
    options = parser.parse_args()
    languages = load()
    missing = {name: languages[name].missing() for name in wanted(options.only, languages)}
    required = wanted(options.require, languages)
    print(*(name for name, why in missing.items() if not why))
    for name, why in missing.items():
        if why:
            print(f"left out: {languages[name].title} ({why})", file=sys.stderr)
    lacking = [name for name in required if missing.get(name, "")]
    if lacking:
        sys.exit(f"required, but cannot be built here: {', '.join(lacking)}")


if __name__ == "__main__":
    main()
