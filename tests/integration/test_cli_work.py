"""Commands that change a store: enqueue, claim, report, wait, cancel, retry, delete; and what they exit with."""

from __future__ import annotations

import asyncio
import json
import os
import pty
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from lightningstore.client import AsyncLightningStore, Failure
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import Server, start_server

from tests.contract.helpers import batch
from tests.integration.process import COMMAND, ENVIRONMENT, run

pytestmark = pytest.mark.asyncio


class Shell:
    """A server in this process, and commands that call it."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.client = AsyncLightningStore(server.address, timeout=10)

    async def __call__(
        self, *arguments: str, code: int = 0, stdin: str | None = None, **environment: str
    ) -> str:
        """Run a command; returns stdout, or stderr where it fails."""
        environment = {"LIGHTNINGSTORE_ADDRESS": self.server.address, **environment}
        given = None if stdin is None else stdin.encode()
        found, out, errors = await run(*arguments, folder=self.folder, stdin=given, **environment)
        assert found == code, errors
        return out if code == 0 else out + errors

    async def json(self, *arguments: str) -> Any:
        return json.loads(await self(*arguments, "-o", "json"))

    async def rows(self, *arguments: str) -> list[list[str]]:
        return [line.split("\t") for line in (await self(*arguments)).splitlines()]


@pytest_asyncio.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    server = await start_server(Config(port=0, db=tmp_path / "lightningstore.db"))
    shell = Shell(server, tmp_path)
    yield shell
    await shell.client.close()
    await server.stop(1)


async def test_a_life_from_the_queue_to_its_outcome(shell: Shell) -> None:
    rollout_id = (await shell("enqueue", '{"q": 1.50}', "--mode", "val", "--group", "g")).strip()
    assert await shell.rows("rollouts", "--status", "queuing") != []
    ((claimed, attempt, text),) = await shell.rows("claim", "--worker", "w-1")
    assert (claimed, text) == (rollout_id, '{"q": 1.50}')  # byte for byte
    assert "nothing to claim" in await shell("claim", code=1)
    assert await shell.rows("report", claimed, attempt, "running") == [[claimed, "running"]]
    report = ("report", claimed, attempt, "failed", "--type", "ValueError", "--message", "no luck")
    assert await shell.rows(*report) == [[claimed, "failed"]]
    shown = await shell.json("attempt", rollout_id)
    assert (shown["worker_id"], shown["status"]) == ("w-1", "failed")
    assert shown["failure"] == {"type": "ValueError", "message": "no luck", "retryable": None}
    assert await shell.rows("retry", rollout_id) == [[rollout_id, "queuing"]]
    await shell("claim")
    assert await shell.rows("report", "latest", "latest", "succeeded") == [
        [rollout_id, "succeeded"]
    ]
    assert await shell.rows("wait", rollout_id) == [[rollout_id, "succeeded"]]


async def test_rewards_and_scores_are_reported_and_filtered_by(shell: Shell) -> None:
    for reward in ("0.5", "-2", "3"):
        await shell("enqueue", "1", "--id", f"ro{reward}")
        ((rollout_id, attempt, _),) = await shell.rows("claim")
        scores = ("--score", "style=1", "--score", "a=b=0.25")
        await shell("report", rollout_id, attempt, "succeeded", "--reward", reward, *scores)
    await shell("report", "ro0.5", "latest", "succeeded", "--score", "style=2")
    (record,) = await shell.json("rollouts", "--id", "ro0.5")
    assert record["reward"] == 0.5
    assert record["latest_attempt"]["scores"] == {"style": 2, "a=b": 0.25}
    rows = await shell.rows("rollouts", "--min-reward", "0", "--sort", "reward:desc")
    assert [(row[0], row[5]) for row in rows] == [("ro3", "3.0"), ("ro0.5", "0.5")]
    assert [row[0] for row in await shell.rows("rollouts", "--max-reward", "-1")] == ["ro-2"]
    errors = await shell("report", "ro3", "latest", "succeeded", "--score", "style", code=2)
    assert "NAME=NUMBER" in errors


async def test_enqueue_takes_arguments_files_and_stdin(shell: Shell) -> None:
    (shell.folder / "one.json").write_text('{\n "n": 1\n}\n')
    (shell.folder / "many.jsonl").write_text('{"n": 2}\n\n{"n": 3}\n')
    await shell("enqueue", '"zero"', "@one.json", "@many.jsonl", "-", stdin='{"n": 4}')
    await shell("enqueue", "-", "--jsonl", stdin="5\n6\n")
    inputs = [r["input"] for r in await shell.json("rollouts", "--oldest")]
    assert inputs == ["zero", {"n": 1}, {"n": 2}, {"n": 3}, {"n": 4}, 5, 6]


@pytest.mark.parametrize("command", ["enqueue", "completion"])
async def test_examples_in_help_texts_have_lines_of_their_own(tmp_path: Path, command: str) -> None:
    code, out, _ = await run(command, "--help", folder=tmp_path)
    assert code == 0
    assert "\\b" not in out
    starts = ("lightningstore enqueue @tasks.jsonl", "zsh:  echo")
    assert any(line.strip().startswith(starts) for line in out.splitlines())


async def test_enqueue_sets_what_a_rollout_can_have(shell: Shell) -> None:
    await shell.client.add_resources({"prompt": "p"}, resources_id="rs-1")
    options = [
        *("--mode", "train", "--group", "g", "--priority", "7", "--resources", "rs-1"),
        *("--metadata", "n=1", "--metadata", "text=a=b", "--id", "ro-mine"),
        *("--max-attempts", "3", "--retry-on", "failed", "--retry-on", "timeout"),
        *("--timeout", "1h30m", "--unresponsive-timeout", "45"),
    ]
    (made,) = await shell.json("enqueue", "null", *options)
    assert (made["rollout_id"], made["mode"], made["group_id"]) == ("ro-mine", "train", "g")
    assert (made["priority"], made["resources_id"]) == (7, "rs-1")
    following = (await shell("enqueue", "1", "--resources", "latest")).strip()
    assert (await shell.json("rollout", following))["resources_id"] == "latest"
    plain = (await shell("enqueue", "1")).strip()
    assert (await shell.json("rollout", plain))["resources_id"] == "rs-1"
    assert made["metadata"] == {"n": 1, "text": "a=b"}
    assert made["config"] == {
        "timeout": "5400s",
        "unresponsive_timeout": "45s",
        "max_attempts": 3,
        "retry_condition": ["failed", "timeout"],
        "retry_backoff": None,
    }


async def test_enqueue_takes_thousands_of_lines(shell: Shell) -> None:
    lines = "".join(f'{{"n": {n}}}\n' for n in range(2500))
    ids = (await shell("enqueue", "-", "--jsonl", stdin=lines)).split()
    assert len(set(ids)) == 2500
    assert (await shell.client.get_statistics()).queue_depth == 2500


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["enqueue", "-"], "--jsonl reads one rollout a line"),
        (["enqueue", "-", "--jsonl"], "stdin: line 3 is not JSON"),
        (["enqueue", "1", "--resources", "rs-none"], "rs-none"),
        (["cancel", "ro-none"], "'ro-none'"),
        (["retry", "ro-none"], "'ro-none'"),
        (["wait", "ro-none"], "'ro-none'"),
        (["rollout", "latest"], "the store has no rollout yet"),
        (["resource", "latest"], "NOT_FOUND"),
    ],
)
async def test_what_cannot_be_is_one_line_and_exit_code_1(
    shell: Shell, arguments: list[str], why: str
) -> None:
    told = await shell(*arguments, code=1, stdin="1\n2\nthree\n")
    assert why in told
    assert told.count("\n") == 1
    assert (await shell.client.get_statistics()).queue_depth == 0


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["enqueue"], "INPUT"),
        (["enqueue", "{"], "INPUT '{' is not JSON"),
        (["enqueue", "@none.json"], "none.json: No such file"),
        (["rollouts", "--limit"], "'--limit' requires an argument"),
        (["rollouts", "--limit", "many"], "is neither a number nor all"),
        (["rollouts", "--nothing"], "--nothing"),
        (["rollouts", "--address", "localhost"], "no port: localhost:4747"),
        (["rollouts", "--tls-ca", "none.pem"], "none.pem: No such file"),
        (["enqueue", "1", "2", "--id", "ro-1"], "--id names one rollout"),
        (["enqueue", "1", "--metadata", "novalue"], "KEY=VALUE"),
        (["enqueue", "1", "--timeout", "soon"], "is not a duration like 90, 30s"),
        (["claim", "--limit", "0"], "--limit"),
        (["report", "ro-1", "at-1", "succeeded", "--message", "x"], "go with the status failed"),
        (["wait"], "ROLLOUT or --group"),
        (["rollouts", "--watch", "-o", "json"], "-o jsonl"),
    ],
)
async def test_wrong_usage_is_exit_code_2(shell: Shell, arguments: list[str], why: str) -> None:
    told = await shell(*arguments, code=2)
    assert why in told.splitlines()[0]
    assert told.splitlines()[1].startswith(f"usage: lightningstore {arguments[0]} ")


async def finished(shell: Shell, status: str) -> str:
    """Return the id of a rollout that finished so."""
    rollout = await shell.client.enqueue_rollout(status)
    if status == "cancelled":
        await shell.client.cancel_rollouts([rollout.rollout_id])
    else:
        await shell.client.update_rollout(rollout.rollout_id, status=status)
    return rollout.rollout_id


async def test_wait_exits_by_what_became_of_the_rollouts(shell: Shell) -> None:
    good, bad, gone = [await finished(shell, s) for s in ("succeeded", "failed", "cancelled")]
    assert await shell("wait", good) == f"{good}\tsucceeded\n"
    assert f"{bad}\tfailed\n" in await shell("wait", good, bad, gone, code=3)
    assert f"{gone}\tcancelled\n" in await shell("wait", "-", code=4, stdin=f"{good}\n{gone} x\n")
    waiting = (await shell("enqueue", "1", "--group", "g")).strip()
    told = await shell("wait", good, waiting, "--timeout", "0.1", code=124)
    assert "1 rollout still open after 100ms" in told
    assert await shell("wait", good, waiting, "--count", "1") == f"{good}\tsucceeded\n"
    await shell("cancel", waiting)
    told = await shell("wait", "--group", "g", "-o", "json", code=4)
    assert json.loads(told)[0]["status"] == "cancelled"


async def test_cancel_and_retry_take_ids_from_a_list(shell: Shell) -> None:
    ids = (await shell("enqueue", "1", "2", "3")).split()
    listed = await shell("rollouts", "--status", "queuing")
    told = await shell("cancel", "-", stdin=listed)
    assert sorted(told.splitlines()) == sorted(f"{one}\tcancelled" for one in ids)
    assert await shell("retry", *ids) == "".join(f"{one}\tqueuing\n" for one in ids)
    assert "only finished rollouts are retried" in await shell("retry", ids[0], code=1)


async def test_delete_takes_finished_rollouts(shell: Shell) -> None:
    ids = [await finished(shell, status) for status in ("succeeded", "failed", "cancelled")]
    waiting = (await shell("enqueue", "1")).strip()
    told = await shell("delete", "--yes", ids[0], "latest", code=1)
    assert f"rollout '{waiting}' is queuing: cancel it" in told
    assert "--yes is required" in await shell("delete", "-", code=2, stdin=ids[0])
    assert len(await shell.rows("rollouts")) == 4
    assert await shell("delete", "--yes", ids[0], ids[0]) == f"{ids[0]}\tdeleted\n"
    told = await shell("delete", "--yes", "-", code=1, stdin="\n".join([*ids, "ro-none"]))
    assert told.splitlines() == [
        f"{ids[0]}\tmissing",
        f"{ids[1]}\tdeleted",
        f"{ids[2]}\tdeleted",
        "ro-none\tmissing",
        f"lightningstore: rollout '{ids[0]}' (and 1 more rollout) does not exist",
    ]
    assert [row[0] for row in await shell.rows("rollouts")] == [waiting]
    last = await finished(shell, "failed")
    assert await shell.json("delete", "-y", last) == [{"rollout_id": last, "result": "deleted"}]


@pytest.mark.parametrize(("answer", "deletes"), [("y", True), ("n", False), ("", False)])
async def test_delete_asks_on_a_terminal(shell: Shell, answer: str, deletes: bool) -> None:
    rollout_id = await finished(shell, "cancelled")
    mine, its = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(COMMAND, "delete", rollout_id),
        stdin=its,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**ENVIRONMENT, "LIGHTNINGSTORE_ADDRESS": shell.server.address},
    )
    os.close(its)
    os.write(mine, f"{answer}\n".encode())
    out, errors = await asyncio.wait_for(process.communicate(), 30)
    os.close(mine)
    assert b"Delete 1 rollout with all spans? This cannot be undone. [y/N]" in errors
    assert out.decode() == (f"{rollout_id}\tdeleted\n" if deletes else "")
    assert process.returncode == (0 if deletes else 1)
    left = [r.rollout_id async for r in shell.client.iter_rollouts()]
    assert left == ([] if deletes else [rollout_id])


@pytest.mark.parametrize("form", [[], ["-o", "json"], ["-o", "jsonl"], ["-o", "table"]])
async def test_a_list_that_is_cut_by_default_says_so_wherever_it_goes(
    shell: Shell, form: list[str]
) -> None:
    await shell.client.enqueue_rollouts([{"input": n} for n in range(51)])
    for limit, said in (([], "50 of 51 rollouts, newest first\n"), (["--limit", "50"], "")):
        code, _, errors = await run(
            *("rollouts", *limit, *form),
            folder=shell.folder,
            LIGHTNINGSTORE_ADDRESS=shell.server.address,
        )
        assert (code, errors) == (0, said)


async def test_rollouts_are_filtered_and_sorted(shell: Shell) -> None:
    store = shell.client
    for n, mode in enumerate(("train", "val", None)):
        await store.enqueue_rollout(
            n, rollout_id=f"ro-{n}", mode=mode, group_id=f"g{n}", priority=n
        )
    failed = await store.start_rollout("x", rollout_id="ro-bad", worker_id="w-7")
    await store.update_attempt(
        "ro-bad",
        failed.attempt.attempt_id,
        status="failed",
        failure=Failure("TimeoutError", "no answer"),
    )

    async def ids(*arguments: str) -> list[str]:
        return [row[0] for row in await shell.rows("rollouts", *arguments)]

    assert await ids("--mode", "val", "--mode", "train") == ["ro-1", "ro-0"]
    assert await ids("--mode", "none", "--status", "queuing") == ["ro-2"]
    assert await ids("--group", "g0", "--mode", "val", "--any") == ["ro-1", "ro-0"]
    assert await ids("--worker", "w-7") == ["ro-bad"]
    assert await ids("--error", "NO ANSWER") == ["ro-bad"]
    assert await ids("--error", "nothing like it") == []
    assert await ids("--id", "ro-0", "--id-contains", "o-0") == ["ro-0"]
    assert await ids("--sort", "priority:desc", "--status", "queuing") == ["ro-2", "ro-1", "ro-0"]
    assert await ids("--since", "1h", "--oldest") == ["ro-0", "ro-1", "ro-2", "ro-bad"]
    assert await ids("--since", "2100-01-01") == []
    assert await ids("--resources", "rs-none") == []


async def test_lists_and_details_name_rewards_and_failures(shell: Shell) -> None:
    store = shell.client
    made = await store.start_rollout("x", rollout_id="ro-1", worker_id="w")
    sent = batch("ro-1", made.attempt.attempt_id, "think", "agentlightning.annotation", "end")
    sent.spans[1].attributes.add(key="agentlightning.reward").value.double_value = 0.625
    await store.add_spans(sent)
    await store.update_attempt("ro-1", made.attempt.attempt_id, status="succeeded")
    assert (await shell.rows("rollouts"))[0][5] == "0.625"
    assert (await shell.rows("attempts", "latest"))[0][3] == "0.625"
    assert (await shell.json("rollouts"))[0]["reward"] == 0.625
    assert (await shell.json("rollouts", "--no-reward"))[0]["reward"] is None
    assert (await shell.json("rollout", "latest"))["reward"] == 0.625


async def _versions(shell: Shell) -> None:
    """Check what commands show of versions of resources, after two ids were added."""
    store = shell.client
    claimed = await store.start_rollout("y")
    await store.update_resources("rs-1", {"prompt": "third"})
    assert [row[1:2] + row[4:] for row in await shell.rows("resources")] == [["2", "3"], ["1", "2"]]
    for arguments in (("rs-1", "--version", "1"), ("--publish-number", "1")):
        found = await shell.json("resource", *arguments)
        assert (found["version"], found["publish_number"]) == (1, 1)
    assert (await shell.json("resource"))["publish_number"] == 3
    assert "no version 9" in await shell("resource", "rs-1", "--version", "9", code=1)
    wrong = await shell("resource", "rs-1", "--publish-number", "1", code=2)
    assert "leave out RESOURCES" in wrong
    assert "requires an id" in await shell("resource", "--version", "1", code=2)
    assert (await shell.json("attempt", claimed.rollout_id))["lag"] == 1
    (attempt,) = await shell.json("attempts", claimed.rollout_id)
    assert (attempt["publish_number"], attempt["lag"]) == (2, 1)
    assert [row[-1] for row in await shell.rows("attempts", claimed.rollout_id)] == ["1"]
    await store.heartbeat("w-2", publish_number=3)
    for number, ids in (("3", ["w-2"]), ("4", [])):
        rows = await shell.rows("workers", "--min-publish-number", number)
        assert [(row[0], row[-1]) for row in rows] == [(i, "3") for i in ids]
    assert [row[0] for row in await shell.rows("workers", "--sort", "publish_number")] == [
        *("w-1", "w-2")
    ]


async def test_resources_workers_and_spans_have_details(shell: Shell) -> None:
    store = shell.client
    await store.add_resources({"prompt": "first"}, resources_id="rs-1")
    await store.add_resources({"prompt": "second"}, resources_id="rs-2")
    assert (await shell.json("resource", "latest"))["resources_id"] == "rs-2"
    first = await shell("resource", "rs-1")
    assert "first" in first
    await store.heartbeat("w-1", stats={"gpu": 0.5})
    assert (await shell.json("worker", "w-1"))["stats"] == {"gpu": 0.5}
    await _versions(shell)
    assert [row[0] for row in await shell.rows("workers", "--id-contains", "-1")] == ["w-1"]
    made = await store.start_rollout("x")
    sent = batch(made.rollout_id, made.attempt.attempt_id, "top", "leaf")
    sent.spans[1].status.code, sent.spans[1].status.message = 2, "no luck"
    sent.spans[1].kind = 3
    event = sent.spans[1].events.add(name="exception", time_unix_nano=7)
    event.attributes.add(key="exception.stacktrace").value.string_value = "Traceback"
    sent.spans[1].links.add(trace_id=b"\1" * 16, span_id=b"\2" * 8)
    await store.add_spans(sent)
    (leaf,) = await shell.json("spans", "latest", "--name", "lea")
    assert leaf["status"] == {"code": "error", "message": "no luck"}
    assert (leaf["kind"], leaf["links"][0]["span_id"]) == ("client", "02" * 8)
    assert leaf["events"][0]["attributes"] == {"exception.stacktrace": "Traceback"}
    rows = await shell.rows("spans", "latest")
    assert [row[1:5:2] + row[4:5] for row in rows] == [
        ["top", "", ""],
        ["leaf", "error", "no luck"],
    ]


async def test_formats_hold_the_same_records(shell: Shell) -> None:
    await shell("enqueue", '{"q": "ü"}', "2")
    records = await shell.json("rollouts")
    lines = (await shell("rollouts", "-o", "jsonl")).splitlines()
    assert [json.loads(line) for line in lines] == records
    assert 'q: "ü"' in await shell("rollouts", "-o", "yaml")
    table = (await shell("rollouts", "-o", "table", COLUMNS="80")).splitlines()
    assert table[0].split()[:2] == ["ROLLOUT", "STATUS"]
    assert max(map(len, table)) <= 80
    assert "ENQUEUED" in (await shell("rollouts", "--wide")).splitlines()[0]


async def test_triplets_are_those_of_an_export(shell: Shell) -> None:
    made = await shell.client.start_rollout("x", rollout_id="ro-1")
    sent = batch("ro-1", made.attempt.attempt_id, "openai.chat.completion")
    for key, value in (
        ("gen_ai.prompt.0.role", "user"),
        ("gen_ai.prompt.0.content", "2 + 2?"),
        ("gen_ai.completion.0.role", "assistant"),
        ("gen_ai.completion.0.content", "4"),
    ):
        sent.spans[0].attributes.add(key=key).value.string_value = value
    await shell.client.add_spans(sent)
    await shell.client.update_rollout("ro-1", status="succeeded")
    found = await shell.json("triplets", "ro-1")
    exported = json.loads(await shell("export", "--triplets", "--no-spans"))
    assert len(found) == 1
    assert found == exported["triplets"]
    ((_, _, *counts, _, prompt, response),) = await shell.rows("triplets", "latest")
    assert (prompt, response) == ("2 + 2?", "4")
    assert counts == ["0", "0"]


async def test_triplets_show_reported_tokens_and_the_text_of_parts(shell: Shell) -> None:
    made = await shell.client.start_rollout("x", rollout_id="ro-1")
    sent = batch("ro-1", made.attempt.attempt_id, "chat m")
    said = [{"role": "assistant", "parts": [{"type": "text", "content": "4"}]}]
    for key, value in (
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.input.messages", json.dumps([{"role": "user", "parts": [{"content": "2 + 2?"}]}])),
        ("gen_ai.output.messages", json.dumps(said)),
    ):
        sent.spans[0].attributes.add(key=key).value.string_value = value
    for key, count in (("gen_ai.usage.input_tokens", 12), ("gen_ai.usage.output_tokens", 1)):
        sent.spans[0].attributes.add(key=key).value.int_value = count
    await shell.client.add_spans(sent)
    ((_, _, *counts, _, prompt, response),) = await shell.rows("triplets", "latest")
    assert (counts, prompt, response) == (["12", "1"], "2 + 2?", "4")
    (found,) = await shell.json("triplets", "latest")
    assert (found["prompt_token_count"], found["response_token_count"]) == (12, 1)


async def test_options_of_the_connection_may_stand_before_the_command(shell: Shell) -> None:
    address = shell.server.address
    wrong = {"LIGHTNINGSTORE_ADDRESS": "127.0.0.1:1"}
    assert await shell("--address", address, "health", **wrong) == "SERVING\n"
    assert await shell("health", "--address", address, **wrong) == "SERVING\n"
    told = await shell("--address", address, "vacuum", code=2)
    assert "--address goes with commands that call a server, not with vacuum" in told


@pytest.mark.parametrize(
    "arguments",
    [["rollouts"], ["enqueue", "1"], ["wait", "ro-1"], ["export"], ["health"], ["trace", "ro-1"]],
    ids=" ".join,
)
async def test_a_server_that_is_not_there_is_an_error_at_once(
    tmp_path: Path, arguments: list[str]
) -> None:
    code, out, errors = await run(*arguments, "--address", "127.0.0.1:1", folder=tmp_path)
    assert (code, out) == (1, "")
    assert errors == (
        "lightningstore: no server answers at 127.0.0.1:1 (Connection refused); "
        "is `lightningstore serve` running?\n"
    )


async def test_proxies_of_the_environment_are_not_used(shell: Shell) -> None:
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), "http://127.0.0.1:1")
    assert await shell("health", **proxies) == "SERVING\n"
    assert "server.version" in await shell("status", **proxies)


@pytest.mark.parametrize(("name", "at"), [("bash", "1"), ("zsh", "1"), ("fish", "ro")])
async def test_completion_scripts_complete_commands(shell: Shell, name: str, at: str) -> None:
    assert "_LIGHTNINGSTORE_COMPLETE" in await shell("completion", name)
    told = await shell(
        _LIGHTNINGSTORE_COMPLETE=f"{name}_complete", COMP_WORDS="lightningstore ro", COMP_CWORD=at
    )
    assert "rollouts" in told
