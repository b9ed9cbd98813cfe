"""Install the client alone with the oldest and with the newest of its dependencies, and use it.

The oldest are the lower bounds of pyproject.toml, read from it; the newest what pip finds. The server is also installed beside
the oldest gRPC and protobuf, as in the environment of a training stack that pins them, and used in JSON and by a client.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: What a training stack pins, and the server has to live beside.
PINNED = re.compile("grpcio|protobuf")


def lower_bounds(table: str = "dependencies") -> list[str]:
    """Return a table of requirements pinned to their lower bounds."""
    text = (ROOT / "pyproject.toml").read_text()
    block = text.split(f"{table} = [", 1)[1].split("]", 1)[0]
    return [f"{name}=={version}" for name, version in re.findall(r'"([\w-]+)>=([\d.]+)', block)]


def environment(name: str, requirements: list[str], extra: str = "") -> Path:
    """Return the Python of a virtual environment that holds the package and these requirements."""
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
        subprocess.run([*pip, *options, *requirements, "-e", f"{ROOT}{extra}"], check=True)
        stamp.write_text(wanted)
    return python


@contextmanager
def serving(python: Path, *options: str) -> Iterator[str]:
    """Run a server until the end of the context; provide its address."""
    command = [str(python.with_name("lightningstore")), "serve", "--port", "0", *options]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server,
    ):
        try:
            assert server.stdout is not None
            yield server.stdout.readline().split(" on ")[1].split(",")[0]
        finally:
            server.terminate()
            server.wait(20)


def use_client(python: Path, address: str) -> None:
    """Use a server with the client of an environment."""
    script = Path(__file__).with_name("use_client.py")
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(python), "-W", "error::UserWarning", str(script), address]
    subprocess.run(command, check=True, env=clean)


def call(port: int, method: str, **fields: Any) -> Any:
    """Make a call in JSON."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/lightningstore.v1.LightningStoreService/{method}",
        json.dumps(fields).encode(),
        {"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        return json.load(answer)


def use_json(port: int) -> None:
    """Store a large input, whose message is counted before it is read, and get it back."""
    text = base64.b64encode(json.dumps("x" * 400_000).encode()).decode()
    call(port, "EnqueueRollouts", rollouts=[{"inputJson": text, "queue": "json"}])
    (rollout,) = call(port, "ListRollouts", queues=["json"])["rollouts"]
    assert rollout["inputJson"] == text


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def main() -> None:
    """Run use_client.py at both ends against one server, and then a server with the oldest gRPC and protobuf."""
    ends = {"oldest": lower_bounds(), "newest": []}
    pythons = {name: environment(name, pins) for name, pins in ends.items()}
    with serving(ROOT / ".venv/bin/python", "--http-port", "0") as address:
        for name, python in pythons.items():
            print(f"{name}:", flush=True)
            use_client(python, address)
    pins = [pin for pin in lower_bounds() + lower_bounds("server") if PINNED.match(pin)]
    server = environment("server", pins, "[server]")
    port = free_port()
    with serving(server, "--http-port", str(port)) as address:
        print(f"server with {', '.join(pins)}:", flush=True)
        use_json(port)
        use_client(pythons["newest"], address)


if __name__ == "__main__":
    main()
