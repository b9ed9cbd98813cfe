"""Namespaces on the command line: made, named by every command, deleted, and as files."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.process import run, serve
from tests.integration.test_cli_answers import completed
from tests.integration.test_cli_work import Shell, shell

__all__ = ["shell"]  # the fixture

pytestmark = pytest.mark.asyncio


async def test_namespaces_are_made_listed_changed_and_deleted(shell: Shell) -> None:
    limits = ["--retain-finished", "7d", "--max-size", "20GiB", "--max-queue-length", "1000"]
    limits += ["--keep-resource-versions", "3"]
    labels = ["--label", "team=rl", "--label", "gpu=h100"]
    told = await shell("namespaces", "create", "run-1", "--description", "first", *labels, *limits)
    assert told == "run-1\tcreated\n"
    first, second = await shell.rows("namespaces")
    assert first[0] == "default"
    assert second[:6] == ["run-1", "604800", str(20 << 30), "1000", "first", "gpu=h100, team=rl"]
    assert await shell.rows("namespaces", "list") == [first, second]
    assert "7d        20.0 GiB" in await shell("namespaces", "-o", "table")
    found = await shell.json("namespaces", "get", "run-1")
    assert found["labels"] == {"team": "rl", "gpu": "h100"}
    assert (found["retain_finished"], found["keep_resource_versions"]) == ("604800s", 3)
    assert "VERSIONS KEPT" in await shell("namespaces", "-o", "wide")
    changes = ["--label", "gpu-", "--label", "x=y", "--max-size", "default"]
    changes += ["--retain-finished", "none", "--description", ""]
    assert await shell("namespaces", "update", "run-1", *changes) == "run-1\tchanged\n"
    found = await shell.json("namespaces", "get", "run-1")
    assert found["labels"] == {"team": "rl", "x": "y"}
    assert (found["description"], found["max_bytes"], found["max_queue_length"]) == ("", None, 1000)
    assert found["retain_finished"] == "0s"
    assert "nothing to change" in await shell("namespaces", "update", "run-1", code=2)
    assert await shell("namespaces", "delete", "run-1", "--yes") == "run-1\tdeleted\n"
    assert "no namespace 'run-1'" in await shell("namespaces", "get", "run-1", code=1)


async def test_deletion_asks_first_and_spares_running_attempts(shell: Shell) -> None:
    await shell("namespaces", "create", "run-1")
    await shell("enqueue", "1", "--namespace", "run-1")
    told = await shell("namespaces", "delete", "run-1", code=2)
    assert "--yes is required when stdin is not a terminal" in told
    await shell("claim", "--namespace", "run-1")
    told = await shell("namespaces", "delete", "run-1", "--yes", code=1)
    assert "1 attempt is running in it; use force" in told
    assert len(await shell.rows("namespaces")) == 2
    await shell("namespaces", "delete", "run-1", "--yes", "--force")
    assert len(await shell.rows("namespaces")) == 1


async def test_every_command_works_in_the_namespace_that_is_named(shell: Shell) -> None:
    address = shell.server.address
    await shell("--address", address, "namespaces", "create", "run-1", LIGHTNINGSTORE_ADDRESS="x:1")
    named = {"LIGHTNINGSTORE_NAMESPACE": "run-1"}
    rollout_id = (await shell("enqueue", "1", **named)).strip()
    assert await shell.rows("rollouts") == []
    for where in (["rollouts", "--namespace", "run-1"], ["--namespace", "run-1", "rollouts"]):
        assert [row[0] for row in await shell.rows(*where)] == [rollout_id]
    told = await shell("claim", **named)
    assert told.startswith(rollout_id)
    await shell("report", rollout_id, "latest", "succeeded", **named)
    assert await shell("wait", rollout_id, **named) == f"{rollout_id}\tsucceeded\n"
    assert rollout_id in await shell("export", "--namespace", "run-1")
    assert await shell("export") == ""
    assert (await shell.json("status", "--namespace", "run-1"))["namespace"] == "run-1"
    assert (await shell.json("status"))["namespace"] == "default"
    assert (await shell.json("status", "--namespace", "run-1"))["statistics"]["rollouts"] != []


async def test_health_of_a_namespace(shell: Shell) -> None:
    await shell("namespaces", "create", "run-1")
    assert await shell("health", "--namespace", "run-1") == "SERVING\n"
    told = await shell("health", "--namespace", "run-2", code=1)
    assert told == "lightningstore: the server has no namespace 'run-2' (NOT_FOUND)\n"
    assert "create it with: lightningstore namespaces create run-2" in await shell(
        "rollouts", "--namespace", "run-2", code=1
    )


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["namespaces", "create", "BAD"], "must be 1 to 63 of a-z"),
        (["namespaces", "create", "n", "--label", "novalue"], "neither KEY=VALUE nor KEY-"),
        (["namespaces", "create", "n", "--max-size", "huge"], "is not a size like 4096"),
        (["namespaces", "create", "n", "--retain-finished", "soon"], "is not a duration"),
        (["namespaces", "create", "n", "--retain-finished", "nan"], "is not a duration"),
        (["namespaces", "create", "n", "--retain-finished", "inf"], "is not a duration"),
        (["namespaces", "create", "n", "--max-queue-length", "x"], "'x' is not a whole number"),
        (["servers", "move"], "Missing argument 'NAMESPACE'"),
        (["namespaces", "make"], "make"),
        (["rollouts", "--namespace", "BAD"], "must be 1 to 63 of a-z"),
        (["check", "--namespace", "BAD"], "must be 1 to 63 of a-z"),
        (["check", "--all", "--namespace", "n"], "exclude each other"),
    ],
)
async def test_wrong_usage_of_namespaces_is_exit_code_2(
    shell: Shell, arguments: list[str], why: str
) -> None:
    wrong, usage = (await shell(*arguments, code=2)).splitlines()
    assert why in wrong
    assert usage.startswith(f"usage: lightningstore {arguments[0]} ")


async def test_the_namespace_that_moves_is_not_the_one_of_the_call(shell: Shell) -> None:
    await shell("namespaces", "create", "run-1")
    told = await shell("servers", "move", "nope", "--namespace", "run-1", code=1)
    assert told.startswith("lightningstore: no namespace 'nope'")  # and no warning before
    told = await shell(
        "servers", "move", "run-1", "--to", "x:1", LIGHTNINGSTORE_NAMESPACE="nope", code=1
    )
    assert told.startswith("lightningstore: address: this is a single server")


async def test_names_of_namespaces_are_completed(shell: Shell) -> None:
    await shell("namespaces", "create", "run-1")
    assert await completed(shell, "rollouts --namespace r") == ["run-1"]
    assert await completed(shell, "namespaces delete r") == ["run-1"]


async def test_files_of_a_folder_are_named_by_their_namespace(tmp_path: Path) -> None:
    server = await serve("--port", "0", "--data", "stores", folder=tmp_path)
    shell = Shell(server, tmp_path)
    await shell("namespaces", "create", "run-1")
    await shell.client.close()
    assert await server.stop() == 0
    folder = {"LIGHTNINGSTORE_DATA": "stores"}
    checked = await run("check", "--all", folder=tmp_path, **folder)
    assert checked == (0, "default: ok\nrun-1: ok\n", "")
    for arguments in (["--data", "stores"], ["--data", "stores", "--namespace", "run-1"]):
        assert await run("check", *arguments, folder=tmp_path) == (0, "ok\n", "")
    code, out, _ = await run("vacuum", "--namespace", "run-1", folder=tmp_path, **folder)
    assert (code, out.partition(":")[0]) == (0, "stores/run-1.db")
    code, _, errors = await run("check", "--db", "a.db", "--data", "stores", folder=tmp_path)
    assert code == 2
    assert "--data and --db exclude each other" in errors


async def test_files_of_namespaces_are_backed_up_checked_and_restored(tmp_path: Path) -> None:
    server = await serve("--port", "0", "--db", "s.db", folder=tmp_path)
    shell = Shell(server, tmp_path)
    await shell("namespaces", "create", "run-1", "--description", "kept")
    rollout_id = (await shell("enqueue", "1", "--namespace", "run-1")).strip()
    await shell.client.close()
    assert await server.stop() == 0

    async def files(*arguments: str) -> tuple[int, str, str]:
        return await run(*arguments, folder=tmp_path, LIGHTNINGSTORE_DB="s.db")

    code, _, errors = await files("backup", "run-1.backup", "--namespace", "run-1")
    assert (code, errors) == (0, "")
    assert await files("check", "--all") == (0, "default: ok\nrun-1: ok\n", "")
    code, out, _ = await files("--namespace", "run-1", "vacuum")
    assert (code, out.partition(":")[0]) == (0, "s.db.d/run-1.db")
    with closing(sqlite3.connect(tmp_path / "s.db.d/run-1.db", isolation_level=None)) as file:
        file.execute("UPDATE inputs SET input_json = x''")
    (tmp_path / "s.db.d/run-2.db").write_text("not a store")
    code, out, _ = await files("check", "--all")
    assert code == 1
    assert f"run-1: the input of rollout '{rollout_id}' is empty\n" in out
    assert "run-2: s.db.d/run-2.db is not a SQLite database" in out
    (tmp_path / "s.db.d/run-2.db").unlink()
    code, _, errors = await files("restore", "run-1.backup", "--namespace", "run-1")
    assert code == 1
    assert "exists already" in errors
    code, _, _ = await files("restore", "run-1.backup", "--namespace", "run-1", "--replace")
    assert code == 0
    code, _, errors = await files("restore", "run-1.backup", "--namespace", "run-3", "--db", "t.db")
    assert code == 0, errors

    server = await serve("--port", "0", "--db", "s.db", folder=tmp_path)
    shell = Shell(server, tmp_path)
    (row,) = await shell.rows("rollouts", "--namespace", "run-1")
    assert row[0] == rollout_id
    code, _, _ = await files("restore", "run-1.backup", "--namespace", "late")
    assert code == 0
    told = await shell("namespaces", "create", "late", code=1)
    assert "late.db was added while the server was running: restart the server" in told
    assert (await shell.json("namespaces", "get", "run-1"))["description"] == "kept"
    await shell.client.close()
    assert await server.stop() == 0
