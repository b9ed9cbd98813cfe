"""What deploy/ promises, as far as it can be tried without a container engine or a systemd to boot."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lightningstore.client import AsyncLightningStore
from lightningstore.service.security import permissions as auth
from lightningstore.service.security import tokens

from tests.integration.process import COMMAND, ENVIRONMENT, serve
from tests.ports import free_port
from tests.postgres import PostgresServer

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text().replace("\\\n", " ")
UNIT = ROOT / "deploy/lightningstore.service"
#: The unit as who opens it to the network has it.
OPENED = re.sub(r"^#(Environment|LoadCredential)=", r"\1=", UNIT.read_text(), flags=re.MULTILINE)
#: Where the image has what the tests have in their own environment.
INSTALLED = "/opt/lightningstore/bin/lightningstore"


def instructions(name: str) -> list[str]:
    """Return what follows an instruction of the Dockerfile, time by time."""
    return re.findall(rf"^{name}\s+(.*)$", DOCKERFILE, re.MULTILINE)


def context() -> list[str]:
    """Return what .dockerignore lets into the image's context: it keeps all but that out."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    return [rule[1:] for rule in rules if rule.startswith("!")]


def environment() -> dict[str, str]:
    """Return the environment that the image sets."""
    return dict(pair.split("=", 1) for line in instructions("ENV") for pair in line.split())


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
    assert (volume, port) == ("/data", "4747 4748")


def test_context_of_the_image_holds_what_exists_and_no_keys_or_environments() -> None:
    assert [name for name in context() if not (ROOT / name).exists()] == []
    kept = {Path(name).parts[0] for name in context()}
    assert kept == {"pyproject.toml", "README.md", "LICENSE", "generated", "service", "client"}


@pytest.mark.timeout(300)
def test_image_installs_what_it_starts(tmp_path: Path) -> None:
    """The very line of the Dockerfile, over what its context lets in, in an environment that is new."""
    (line,) = (run for run in instructions("RUN") if "pip install" in run)
    files = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard", *context()],
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


@contextmanager
def serving(settings: dict[str, str], *options: str) -> Iterator[None]:
    """Run the image's entry point, but for where it is."""
    (entry,) = instructions("ENTRYPOINT")
    path, *command = json.loads(entry)
    assert path == INSTALLED
    with subprocess.Popen(
        [COMMAND, *command, *options],
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        try:
            assert b" on " in process.stdout.readline()
            yield
        finally:
            process.terminate()
        assert process.wait(20) == 0


def healthy(settings: dict[str, str]) -> bool:
    """Run the image's health check, but for where it is."""
    (check,) = instructions("HEALTHCHECK")
    path, *command = json.loads(check.partition("CMD")[2])
    assert path == INSTALLED
    done = subprocess.run(
        [COMMAND, *command], env=settings, capture_output=True, check=False, timeout=30
    )
    return done.returncode == 0


def test_health_check_of_the_image_tells_a_server_that_serves(tmp_path: Path) -> None:
    """Entry point and health check as the image has them, but for the port and where things are."""
    port = free_port()
    settings = {
        **ENVIRONMENT,
        **environment(),
        "LIGHTNINGSTORE_DB": str(tmp_path / "store.db"),
        "LIGHTNINGSTORE_PORT": str(port),
        "LIGHTNINGSTORE_ADDRESS": f"127.0.0.1:{port}",
    }
    assert not healthy(settings)
    # Open to the network without tokens: the image itself refuses that.
    bare = subprocess.run([COMMAND, "serve"], env=settings, capture_output=True, check=False)
    assert bare.returncode == 1
    assert b"--insecure" in bare.stderr
    with serving(settings, "--insecure"):
        assert healthy(settings)


def test_documented_certificate_serves_the_opened_unit_and_the_health_check(tmp_path: Path) -> None:
    """The openssl command of docs/security.md, and files of the mode that LoadCredential= gives them."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    page = (ROOT / "docs/security.md").read_text()
    made = re.search(r"^openssl req(?:.*\\\n)*.*$", page, re.MULTILINE)
    assert made is not None
    subprocess.run(made[0], cwd=tmp_path, shell=True, check=True, capture_output=True)
    token = [COMMAND, "token", "new", "--file", "tokens", "--role", "admin", "--name", "a"]
    subprocess.run(token, cwd=tmp_path, check=True, capture_output=True, env=ENVIRONMENT)
    given = dict(
        re.findall(r"^LoadCredential=([^:]+):/etc/lightningstore/(.+)$", OPENED, re.MULTILINE)
    )
    for name, source in given.items():
        assert name == source
        (tmp_path / name).chmod(0o440)
    assert set(re.findall(r"%d/(\S+)", OPENED)) == set(given)
    set_by_unit = " ".join(re.findall(r"^Environment=(.*)$", OPENED, re.MULTILINE)).split()
    port = free_port()
    settings = {
        **ENVIRONMENT,
        **dict(pair.replace("%d", str(tmp_path)).split("=", 1) for pair in set_by_unit),
        "LIGHTNINGSTORE_DB": str(tmp_path / "store.db"),
        "LIGHTNINGSTORE_PORT": str(port),
        "LIGHTNINGSTORE_ADDRESS": f"https://localhost:{port}",
        "LIGHTNINGSTORE_TLS_CA": str(tmp_path / "server.pem"),
    }
    with serving(settings):
        assert healthy(settings)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_tokens_stay_with_the_user_of_the_image_when_root_changes_them(tmp_path: Path) -> None:
    (uid,) = re.findall(r"useradd .*--uid (\d+)", DOCKERFILE)
    assert f"chown -R {uid} " in DOCKERFILE
    for name in ("kept", "revoked"):
        tokens.append(tmp_path / "tokens", auth.new_token(name, auth.Role.RUNNER, None)[1])
    os.chown(tmp_path / "tokens", int(uid), int(uid))
    tokens.remove(tmp_path / "tokens", "revoked")
    found = (tmp_path / "tokens").stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (int(uid), int(uid), 0o600)


@pytest.mark.parametrize("text", [UNIT.read_text(), OPENED], ids=["as it is", "opened"])
def test_unit_is_one_that_systemd_takes(tmp_path: Path, text: str) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    unit = tmp_path / UNIT.name
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


@pytest.mark.asyncio
async def test_servers_of_the_compose_file_share_the_database(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    """The options of the file, but for the addresses, which are those of its network."""
    text = (ROOT / "deploy/compose.yaml").read_text()
    assert "dockerfile: deploy/Dockerfile" in text
    (variable,) = re.findall(r"^ +(LIGHTNINGSTORE_\w+): postgresql://", text, re.MULTILINE)
    commands = [json.loads(line) for line in re.findall(r"command: (\[.*\])", text)]
    assert [command[1:] for command in commands] == [
        ["--advertise", "first:4747"],
        ["--advertise", "second:4747"],
    ]
    option = variable.removeprefix("LIGHTNINGSTORE_").lower().replace("_", "-")
    servers = [
        await serve(command[0], "--port", "0", f"--{option}", postgres.url, folder=tmp_path)
        for command in commands
    ]
    ids = set()
    for server in servers:
        async with AsyncLightningStore(server.address) as store:
            (rollout,) = await store.enqueue_rollouts([{"input": 1}])
            ids.add(rollout.rollout_id)
    for server in servers:
        async with AsyncLightningStore(server.address) as store:
            assert {one.rollout_id for one in await store.list_rollouts()} >= ids
    for server in servers:
        assert await server.stop() == 0
