"""The command line on a terminal, with the client alone installed, and what it imports."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from lightningstore.client import AsyncLightningStore, Failure, LightningStore
from lightningstore.service.traces.texts import cells

from tests.integration.process import COMMAND, ENVIRONMENT

pytestmark = pytest.mark.asyncio

LONG = "math500-train-00012-0f3a7c91-6c1e-4f7d-9a0a-1c9f3f2f7f11-sample-{:02d}-of-16-policy-v00042"
WORKER = "gpu-node-17.cluster.internal.example.com-pid-123456-worker-3"
#: What `lightningstore[server]` brings.
SERVER_ONLY = (
    *("aiohttp", "aiosqlite", "re2", "grpc_health", "grpc_reflection", "grpc_status"),
    *("prometheus_client", "psutil", "pydantic_settings", "pydantic", "uvloop", "rich"),
)
#: What would make a command slow to start.
HEAVY = (*SERVER_ONLY, "opentelemetry.sdk", "sqlite3", "requests")
#: Modules that a command may have imported when it ends: `trace` has those of triplets. Raise it for a reason alone.
MODULES = 370
#: Runs a command as if some packages were not installed, and prints the modules that it has imported.
PROGRAM = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from lightningstore.service.cli.entry import main
try:
    main()
finally:
    print("modules", *sys.modules, file=sys.stderr)
"""
READS = [
    ["health"],
    ["status"],
    ["rollouts"],
    ["rollout", "latest"],
    ["attempts", "latest"],
    ["attempt", "latest"],
    ["spans", "latest"],
    ["triplets", "latest"],
    ["samples", "latest"],
    ["trace", "latest"],
    ["workers"],
    ["worker", WORKER],
    ["resources"],
    ["resource", "latest"],
]


class Ran(NamedTuple):
    """What a program printed."""

    code: int
    out: str
    errors: str
    modules: frozenset[str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with long ids, long errors and 70 rollouts."""
    process = subprocess.Popen(
        [COMMAND, "serve", "--port", "0", "--http-port", "0"],
        cwd=tmp_path_factory.mktemp("store"),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    address = process.stdout.readline().partition(" on ")[2].partition(",")[0]
    with LightningStore(address, timeout=10) as store:
        store.add_resources({"prompt": "p"}, resources_id="rs-1")
        store.enqueue_rollouts([{"input": {"question": "x" * 300}} for _ in range(60)])
        for n in range(10):
            made = store.start_rollout(
                {"q": n}, rollout_id=LONG.format(n), mode="train", worker_id=WORKER
            )
            failure = Failure("RuntimeError", "line 1\nno luck " * 50)
            store.update_attempt(
                made.rollout_id, made.attempt.attempt_id, status="failed", failure=failure
            )
    yield address
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0


def program(arguments: list[str], address: str, missing: tuple[str, ...] = ()) -> Ran:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(missing=missing), *arguments],
        env={**ENVIRONMENT, "LIGHTNINGSTORE_ADDRESS": address},
        capture_output=True,
        check=False,
        text=True,
        timeout=50,
    )
    errors, _, modules = ran.stderr.rpartition("modules ")
    return Ran(ran.returncode, ran.stdout, errors, frozenset(modules.split()))


async def on_terminal(
    columns: int, *arguments: str, address: str, typed: str = "", code: int = 0
) -> list[str]:
    """Run a command on a terminal of a number of columns, and type; returns the lines that it shows."""
    mine, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    environment = {**ENVIRONMENT, "LIGHTNINGSTORE_ADDRESS": address, "TERM": "xterm"}
    environment.pop("COLUMNS", None)
    process = await asyncio.create_subprocess_exec(
        COMMAND, *arguments, stdin=its, stdout=its, stderr=its, env=environment
    )
    os.close(its)
    os.write(mine, typed.encode())

    def read() -> bytes:
        shown = b""
        while True:
            try:
                block = os.read(mine, 65536)
            except OSError:  # the other end is closed
                return shown
            if not block:
                return shown
            shown += block

    shown = await asyncio.to_thread(read)
    assert await process.wait() == code, shown
    os.close(mine)
    return shown.decode().replace("\r\n", "\n").splitlines()


@pytest.mark.parametrize("columns", [100, 60])
async def test_a_list_on_a_terminal_is_one_line_a_row_with_what_was_left_out(
    server: str, columns: int
) -> None:
    coloured = await on_terminal(columns, "rollouts", address=server)
    assert any("\x1b[31mfailed" in line for line in coloured)
    lines = [re.sub(r"\x1b\[\d+m", "", line) for line in coloured]
    assert max(map(cells, lines)) <= columns
    heading, *rows, footer = lines
    assert {"ROLLOUT", "STATUS", "AGE", "FAILURE"} <= set(heading.split())
    hidden = {100: "1 column", 60: "4 columns"}[columns]
    assert footer == f"50 of 70 rollouts, newest first; {hidden} hidden (--wide)"
    assert len(rows) == 50
    assert len({row.split()[0] for row in rows}) == 50  # ids can be told apart
    assert sum("…" in row.split()[0] for row in rows) == 10


async def test_details_on_a_terminal_cut_nothing(server: str) -> None:
    shown = "\n".join(await on_terminal(60, "rollout", LONG.format(3), address=server))
    assert LONG.format(3) in shown
    assert WORKER in shown
    assert shown.count("no luck line 1") == 49
    assert " ago)" in shown


async def test_name_of_a_namespace_is_typed_before_it_is_deleted(server: str) -> None:
    with LightningStore(server, timeout=10) as store:
        store.create_namespace("run-1")
        shown = await on_terminal(
            80, *("namespaces", "delete", "run-1"), address=server, typed="run-2\n", code=1
        )
        assert any("Type run-1 to delete it with everything in it" in line for line in shown)
        assert "'run-2' is not 'run-1': nothing was deleted" in shown[-1]
        assert store.get_namespace("run-1").name == "run-1"
        shown = await on_terminal(
            80, *("namespaces", "delete", "run-1"), address=server, typed="run-1\n"
        )
        assert shown[-1].endswith("run-1\tdeleted")
        assert "run-1" not in [namespace.name for namespace in store.list_namespaces()]
        absent = await on_terminal(
            80, *("namespaces", "delete", "run-1"), address=server, typed="\n", code=1
        )
        assert "no namespace 'run-1'" in absent[-1]


async def test_no_color_is_followed(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "NO_COLOR", "1")
    assert "\x1b" not in "".join(await on_terminal(100, "rollouts", address=server))


async def test_watch_prints_what_has_changed_until_the_rollout_has_finished(
    server: str,
) -> None:
    async with AsyncLightningStore(server, timeout=10) as store:
        made = await store.start_rollout(1, rollout_id="ro-watched")
        watcher = await asyncio.create_subprocess_exec(
            *(COMMAND, "rollout", "ro-watched", "--watch", "-o", "jsonl"),
            env={**ENVIRONMENT, "LIGHTNINGSTORE_ADDRESS": server},
            stdout=asyncio.subprocess.PIPE,
        )
        assert watcher.stdout is not None
        assert b'"status":"preparing"' in await watcher.stdout.readline()
        await store.update_attempt("ro-watched", made.attempt.attempt_id, status="succeeded")
        assert b'"status":"succeeded"' in await watcher.stdout.readline()
        assert await watcher.communicate() == (b"", None)
        assert watcher.returncode == 0


@pytest.mark.parametrize("arguments", READS, ids=" ".join)
async def test_reading_commands_need_the_client_alone_and_import_little(
    server: str, arguments: list[str]
) -> None:
    ran = program(arguments, server, missing=SERVER_ONLY)
    assert (ran.code, ran.errors.count("Traceback")) == (0, 0), ran.errors
    assert ran.out or arguments[0] in ("spans", "triplets", "samples")
    assert [name for name in HEAVY if name in ran.modules] == []
    assert len(ran.modules) <= MODULES


@pytest.mark.parametrize("argument", ["--version", "--help"])
async def test_version_and_help_import_no_command(server: str, argument: str) -> None:
    ran = program([argument], server, missing=(*SERVER_ONLY, "grpc"))
    assert ran.code == 0
    assert "lightningstore" in ran.out
    assert "google.protobuf" not in ran.modules


async def test_a_command_of_the_server_says_what_to_install(server: str) -> None:
    ran = program(["serve"], server, missing=SERVER_ONLY)
    assert ran.code == 1
    assert ran.errors.count("\n") == 1
    assert ran.errors.startswith("lightningstore: `lightningstore serve` needs the server")
    assert "pip install 'lightningstore[server]'" in ran.errors


async def test_a_reader_that_has_enough_ends_a_list_quietly(server: str, tmp_path: Path) -> None:
    shell = f"{COMMAND} rollouts --limit 70 -o yaml | head -n 1"
    process = await asyncio.create_subprocess_shell(
        shell,
        env={**ENVIRONMENT, "LIGHTNINGSTORE_ADDRESS": server},
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    assert (out.count(b"\n"), errors) == (1, b"")
