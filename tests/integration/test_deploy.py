"""What deploy/ promises, as far as it can be tried without a container engine or a systemd to boot."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.process import COMMAND, ENVIRONMENT

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text().replace("\\\n", " ")
UNIT = ROOT / "deploy/lightningstore.service"
#: Where the image has what the tests have in their own environment.
INSTALLED = "/opt/lightningstore/bin/lightningstore"


def instructions(name: str) -> list[str]:
    """Return what follows an instruction of the Dockerfile, time by time."""
    return re.findall(rf"^{name}\s+(.*)$", DOCKERFILE, re.MULTILINE)


def environment() -> dict[str, str]:
    """Return the environment that the image sets."""
    return dict(pair.split("=", 1) for line in instructions("ENV") for pair in line.split())


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_image_copies_what_exists_and_runs_as_nobody_special() -> None:
    for line in instructions("COPY"):
        words = line.split()
        if not words[0].startswith("--from"):
            assert all((ROOT / source).exists() for source in words[:-1]), line
    (user,) = instructions("USER")
    assert user not in ("root", "0")
    (made,) = (line for line in instructions("RUN") if "useradd" in line)
    assert re.search(rf"useradd .*\b{user}\b", made)
    assert f"chown {user} /data" in made
    assert Path(environment()["LIGHTNINGSTORE_DB"]).parent == Path("/data")
    (volume,), (port,) = instructions("VOLUME"), instructions("EXPOSE")
    assert (volume, port) == ("/data", "4747")


@pytest.mark.timeout(300)
def test_image_installs_what_it_starts(tmp_path: Path) -> None:
    """The very line of the Dockerfile, over the files that git knows, in an environment that is new."""
    (line,) = (run for run in instructions("RUN") if "pip install" in run)
    files = subprocess.run(
        [
            "git",
            "ls-files",
            "-coz",
            "--exclude-standard",
            "generated/python",
            "service",
            "client/python",
            "*.toml",
            "*.md",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=False,
    )
    if files.returncode:
        pytest.skip("not a checkout of git")
    source, target = tmp_path / "src", tmp_path / "opt"
    for name in files.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    command = line.replace("/opt/lightningstore", str(target)).replace(
        "python ", f"{sys.executable} ", 1
    )
    done = subprocess.run(
        command, cwd=source, shell=True, capture_output=True, text=True, check=False
    )
    if "No matching distribution" in done.stderr and "hatchling" in done.stderr:
        pytest.skip("no package registry to be reached")
    assert done.returncode == 0, done.stderr[-2000:]
    started = subprocess.run(
        [target / "bin/lightningstore", "--version"], capture_output=True, text=True, check=False
    )
    assert "lightningstore" in started.stdout, started.stderr


def test_health_check_of_the_image_tells_a_server_that_serves(tmp_path: Path) -> None:
    """Entry point and health check as the image has them, but for the port and where things are."""
    (entry,), (check,) = instructions("ENTRYPOINT"), instructions("HEALTHCHECK")
    serve, health = json.loads(entry), json.loads(check.partition("CMD")[2])
    assert (serve[0], health[0]) == (INSTALLED, INSTALLED)
    port = free_port()
    settings = {
        **ENVIRONMENT,
        **environment(),
        "LIGHTNINGSTORE_DB": str(tmp_path / "store.db"),
        "LIGHTNINGSTORE_PORT": str(port),
        "LIGHTNINGSTORE_ADDRESS": f"127.0.0.1:{port}",
    }
    check_now = [COMMAND, *health[1:]]
    assert subprocess.run(check_now, env=settings, capture_output=True, check=False).returncode == 1
    # Open to the network without tokens: the image itself refuses that.
    bare = subprocess.run([COMMAND, *serve[1:]], env=settings, capture_output=True, check=False)
    assert bare.returncode == 1
    assert b"--insecure" in bare.stderr
    with subprocess.Popen(
        [COMMAND, *serve[1:], "--insecure"],
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        assert b" on " in process.stdout.readline()
        try:
            subprocess.run(check_now, env=settings, capture_output=True, check=True, timeout=30)
        finally:
            process.terminate()
        assert process.wait(20) == 0


def test_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    unit = tmp_path / UNIT.name
    text = UNIT.read_text()
    assert INSTALLED in text
    unit.write_text(text.replace(INSTALLED, COMMAND))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )
    mine = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert mine == []
    assert done.returncode == 0, done.stderr
