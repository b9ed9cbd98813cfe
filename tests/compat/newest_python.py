"""Print the newest Python on this machine that pyproject.toml names and that is newer than this one, or nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def versions() -> list[int]:
    """Return the minor versions among the classifiers that are newer than this Python's, the newest first."""
    named = re.findall(r"Python :: 3\.(\d+)", (ROOT / "pyproject.toml").read_text())
    return sorted(
        (int(minor) for minor in named if int(minor) > sys.version_info.minor), reverse=True
    )


def candidates(minor: int) -> Iterator[str]:
    """Yield the commands that may be Python 3.`minor`: on the path, and under pyenv, whose shims may be off."""
    if found := shutil.which(f"python3.{minor}"):
        yield found
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=True).stdout
        yield from map(str, Path(root.strip()).glob(f"versions/3.{minor}.*/bin/python3"))


def main() -> None:
    """Print the path."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for minor in versions():
        for python in candidates(minor):
            if not subprocess.run(
                [python, "-c", ""], check=False, env=environment, **quiet
            ).returncode:
                print(python)
                return


if __name__ == "__main__":
    main()
