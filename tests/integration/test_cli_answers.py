"""What commands say where there is nothing yet, where a file exists, and where an address is of something else."""

from __future__ import annotations

import asyncio
import json

import pytest
from lightningstore.client import AsyncLightningStore

from tests.contract.helpers import batch
from tests.integration.process import COMMAND, ENVIRONMENT
from tests.integration.test_cli_work import Shell, finished, shell

__all__ = ["shell"]  # the fixture

pytestmark = pytest.mark.asyncio


async def rewarded(store: AsyncLightningStore, rollout_id: str, value: float) -> None:
    """Make a rollout that has succeeded with a reward."""
    made = await store.start_rollout(1, rollout_id=rollout_id)
    sent = batch(rollout_id, made.attempt.attempt_id, "agentlightning.annotation")
    sent.spans[0].attributes.add(key="agentlightning.reward.0.name").value.string_value = "primary"
    sent.spans[0].attributes.add(key="agentlightning.reward.0.value").value.double_value = value
    await store.add_spans(sent)
    await store.update_attempt(rollout_id, made.attempt.attempt_id, status="succeeded")


async def test_attempt_of_a_queued_rollout_is_none_yet(shell: Shell) -> None:
    await shell.client.enqueue_rollout(1, rollout_id="ro-1")
    for command in ("attempt", "trace"):
        told = await shell(command, "ro-1", code=1)
        assert told == "lightningstore: rollout 'ro-1' is queuing and has no attempt yet\n"
    await shell.client.cancel_rollouts(["ro-1"])
    told = await shell("attempt", "latest", "--watch", code=1)
    assert told == "lightningstore: rollout 'ro-1' is cancelled and had no attempt\n"


async def test_watch_of_an_attempt_waits_for_the_first_one(shell: Shell) -> None:
    await shell.client.enqueue_rollout(1, rollout_id="ro-1")
    watcher = await asyncio.create_subprocess_exec(
        *(COMMAND, "attempt", "ro-1", "--watch", "-o", "jsonl"),
        env={**ENVIRONMENT, "LIGHTNINGSTORE_ADDRESS": shell.server.address},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert watcher.stdout is not None
    assert watcher.stderr is not None
    waiting = b"rollout 'ro-1' is queuing and has no attempt yet; waiting\n"
    assert await watcher.stderr.readline() == waiting
    (claimed,) = await shell.client.dequeue_rollouts()
    assert b'"status":"preparing"' in await watcher.stdout.readline()
    await shell.client.update_attempt("ro-1", claimed.attempt.attempt_id, status="succeeded")
    assert b'"status":"succeeded"' in await watcher.stdout.readline()
    assert await watcher.communicate() == (b"", b"")


async def test_documents_of_rollouts_hold_the_reward(shell: Shell) -> None:
    await rewarded(shell.client, "ro-1", 0.5)
    for arguments in (["wait", "ro-1"], ["cancel", "ro-1"], ["rollouts", "--id", "ro-1"]):
        (record,) = await shell.json(*arguments)
        assert record["reward"] == 0.5, arguments
    line = await shell("wait", "ro-1", "-o", "jsonl")
    assert json.loads(line)["reward"] == 0.5
    for arguments in (["retry", "ro-1"], ["claim"], ["enqueue", "1"]):
        (record,) = await shell.json(*arguments)
        assert "reward" in record, arguments


async def test_picture_of_a_trace_replaces_no_file_unless_told(shell: Shell) -> None:
    await rewarded(shell.client, "ro-1", 1.0)
    picture = shell.folder / "t.svg"
    picture.write_text("mine")
    told = await shell("trace", "ro-1", "-o", "t.svg", code=1)
    assert told == "lightningstore: t.svg exists already; --replace replaces it\n"
    assert picture.read_text() == "mine"
    assert await shell("trace", "ro-1", "-o", "t.svg", "--replace") == "t.svg: 1 line\n"
    assert "<svg" in picture.read_text()


async def test_errors_have_one_form_and_the_words_of_the_command_line(shell: Shell) -> None:
    await rewarded(shell.client, "ro-1", 1.0)
    for arguments in (["rollout", "ro-x"], ["wait", "ro-x"], ["cancel", "ro-x"]):
        told = await shell(*arguments, code=1)
        assert told.endswith("(NOT_FOUND)\n")
        assert "ROLLOUT_NOT_FOUND" not in told
    told = await shell("report", "ro-1", "latest", "failed", code=1)
    assert "STATUS_" not in told
    assert "succeeded" in told
    for arguments in (
        ["import", "none.jsonl"],
        ["export", "-o", "none/x.jsonl"],
        ["trace", "ro-1", "-o", "none/x.svg"],
        ["backup", "none/x.db"],
    ):
        told = await shell(*arguments, code=1)
        assert "Errno" not in told
        assert "none" in told
    assert "1 rollout and 1 span, " in await shell_errors(shell, "export", "-o", "x.jsonl")


async def shell_errors(shell: Shell, *arguments: str) -> str:
    """Run a command that succeeds; returns stderr."""
    process = await asyncio.create_subprocess_exec(
        *(COMMAND, *arguments),
        cwd=shell.folder,
        env={**ENVIRONMENT, "LIGHTNINGSTORE_ADDRESS": shell.server.address},
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode == 0, errors
    return errors.decode()


async def test_limit_may_be_all(shell: Shell) -> None:
    await shell.client.enqueue_rollouts([{"input": n} for n in range(60)])
    assert len(await shell.rows("rollouts", "--limit", "all")) == 60
    assert len(await shell.rows("rollouts", "-L", "7")) == 7
    assert await shell.rows("spans", "latest", "--limit", "all") == []


async def test_https_to_a_server_without_tls_says_so(shell: Shell) -> None:
    address = shell.server.address
    told = await shell("status", "--address", f"https://{address}", code=1)
    assert told == (
        f"lightningstore: the server at {address} does not use TLS: write {address} without https:// "
        "and without certificates\n"
    )


async def completed(shell: Shell, words: str, **environment: str) -> list[str]:
    """Return what a shell offers at the end of some words."""
    given = {
        "_LIGHTNINGSTORE_COMPLETE": "bash_complete",
        "COMP_WORDS": f"lightningstore {words}",
        "COMP_CWORD": str(len(words.split(" "))),
    }
    out = await shell(**{**given, **environment})
    return [line.partition(",")[2] for line in out.splitlines() if line]


async def test_ids_are_completed(shell: Shell) -> None:
    await finished(shell, "succeeded")
    await shell.client.enqueue_rollouts(
        [{"input": 1, "rollout_id": name} for name in ("ro-b-1", "ro-b-2", "other")]
    )
    await shell.client.heartbeat("w-1")
    await shell.client.add_resources({}, resources_id="rs-1")
    # Made ids have hex digits, and may begin like these without the hyphen.
    assert sorted(await completed(shell, "rollout ro-b-")) == ["ro-b-1", "ro-b-2"]
    for command in ("cancel", "delete", "retry", "wait"):
        assert sorted(await completed(shell, f"{command} other ro-b-")) == ["ro-b-1", "ro-b-2"]
    assert await completed(shell, "trace lat") == ["latest"]
    assert await completed(shell, "worker w") == ["w-1"]
    assert sorted(await completed(shell, "resource ")) == ["latest", "rs-1"]
    address = shell.server.address
    nowhere = {"LIGHTNINGSTORE_ADDRESS": "127.0.0.1:1"}
    assert await completed(shell, f"--address {address} rollout oth", **nowhere) == ["other"]
    assert await completed(shell, "rollout ro-b", **nowhere) == []
    assert await completed(shell, "rollout ro-b", LIGHTNINGSTORE_ADDRESS="nonsense") == []
