"""Install the client alone with the oldest and with the newest of its dependencies, and use it.

The oldest are the lower bounds of pyproject.toml, read from it; the newest what pip finds.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def lower_bounds() -> list[str]:
    """Return the client's requirements pinned to their lower bounds."""
    text = (ROOT / "pyproject.toml").read_text()
    block = text.split("dependencies = [", 1)[1].split("]", 1)[0]
    return [f"{name}=={version}" for name, version in re.findall(r'"([\w-]+)>=([\d.]+)', block)]


def environment(name: str, requirements: list[str]) -> Path:
    """Return the Python of a virtual environment that holds the client and these requirements."""
    folder = ROOT / f".venv-client-{name}"
    python = folder / "bin" / "python"
    stamp = folder / "stamp"
    wanted = "\n".join([*requirements, (ROOT / "pyproject.toml").read_text()])
    if not stamp.exists() or stamp.read_text() != wanted:
        # The pip of this environment fills it: to bring one takes longer.
        venv = [sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)]
        subprocess.run(venv, check=True)
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        options = ["--disable-pip-version-check", "--no-compile"]
        subprocess.run([*pip, *options, *requirements, "-e", str(ROOT)], check=True)
        stamp.write_text(wanted)
    return python


def main() -> None:
    """Run use_client.py at both ends against one server."""
    ends = {"oldest": lower_bounds(), "newest": []}
    pythons = {name: environment(name, pins) for name, pins in ends.items()}
    with tempfile.TemporaryDirectory() as folder:
        command = [str(ROOT / ".venv/bin/lightningstore"), "serve", "--port", "0"]
        command += ["--http-port", "0"]
        server = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split(" on ")[1].split(",")[0]
            for name, python in pythons.items():
                print(f"{name}:", flush=True)
                script = Path(__file__).with_name("use_client.py")
                clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
                subprocess.run(
                    [str(python), "-W", "error::UserWarning", str(script), address],
                    check=True,
                    env=clean,
                )
        finally:
            server.terminate()
            server.wait(20)


if __name__ == "__main__":
    main()
