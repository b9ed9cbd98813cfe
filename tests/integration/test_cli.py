"""The views of the command line against a running server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from lightningstore.client import LLM, CustomResource, Failure
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from tests.contract.conftest import World
from tests.contract.helpers import batch
from tests.integration.process import run, serve

pytestmark = pytest.mark.asyncio


class Shown:
    """What a world shows on the command line."""

    def __init__(self, world: World, folder: Path, ids: tuple[str, str]) -> None:
        assert world.server is not None
        self.world, self.ids = world, ids
        self._folder, self._address = folder, world.server.address

    async def text(self, *arguments: str) -> str:
        arguments = (*arguments, "--address", self._address, "--no-color")
        code, out, errors = await run(*arguments, folder=self._folder)
        assert (code, errors) == (0, "")
        return out

    async def json(self, *arguments: str) -> Any:
        return json.loads(await self.text(*arguments, "--json"))

    async def error(self, *arguments: str) -> str:
        """Run a command that fails: one line on stderr."""
        arguments = (*arguments, "--address", self._address)
        code, out, errors = await run(*arguments, folder=self._folder)
        assert (code, out) == (1, "")
        assert errors.count("\n") == 1
        return errors

    async def misuse(self, *arguments: str) -> str:
        """Run a command that is used wrongly: a line on stderr, and one on its usage."""
        arguments = (*arguments, "--address", self._address)
        code, out, errors = await run(*arguments, folder=self._folder)
        assert (code, out) == (2, "")
        wrong, usage = errors.splitlines()
        assert usage.startswith(f"usage: lightningstore {arguments[0]} ")
        return wrong


@pytest_asyncio.fixture
async def shown(world: World, tmp_path: Path) -> AsyncIterator[Shown]:
    """A store with something of everything in it."""
    store = world.store
    await store.add_resources(
        {"model": LLM("http://h/v1", "m", "sk-secret"), "w": CustomResource("ckpt", [1])},
        resources_id="rs-1",
    )
    failed = await store.start_rollout({"n": 0}, rollout_id="ro-failed", worker_id="w1")
    await store.update_attempt(
        "ro-failed",
        failed.attempt.attempt_id,
        status="failed",
        failure=Failure("ValueError", "no [bold]luck"),
    )
    await world.advance(1)
    running = await store.start_rollout(
        {"q": "ü [red]x"}, rollout_id="ro-running", mode="train", group_id="g", worker_id="w1"
    )
    ids = ("ro-running", running.attempt.attempt_id)
    sent = batch(*ids, "first", "second [x]")
    sent.spans[1].parent_span_id = sent.spans[0].span_id
    sent.spans[0].attributes.append(KeyValue(key="n", value=AnyValue(int_value=7)))
    await store.add_spans(sent)
    await world.advance(1)
    await store.enqueue_rollout({"n": 2}, rollout_id="ro-waiting")
    await store.heartbeat("w2", stats={"gpu": 0.5})
    yield Shown(world, tmp_path, ids)


async def test_status_shows_server_and_counts(shown: Shown) -> None:
    info = await shown.world.store.get_server_info()
    text = await shown.text("status")
    for part in (
        f"server.store_id\t{info.store_id}",
        f"server.backend\t{info.backend}",
        "statistics.rollouts.running\t1",
        "statistics.rollouts.failed\t1",
        "statistics.workers.busy\t1",
    ):
        assert part in text
    found = await shown.json("status")
    assert found["server"]["store_id"] == info.store_id
    assert found["server"]["backend"] == info.backend
    counts = {one["status"]: int(one["count"]) for one in found["statistics"]["rollouts"]}
    assert counts == {"failed": 1, "running": 1, "queuing": 1}
    assert int(found["statistics"]["span_count"]) == 2


async def test_status_says_durability_without_the_prefix_of_its_enum(shown: Shown) -> None:
    info = await shown.world.store.get_server_info()
    assert (await shown.json("status"))["server"]["durability"] == info.durability.value
    assert "DURABILITY_" not in await shown.text("status")


async def test_rollouts_are_listed_newest_first(shown: Shown) -> None:
    found = await shown.json("rollouts")
    assert [r["rollout_id"] for r in found] == ["ro-waiting", "ro-running", "ro-failed"]
    assert [r["status"] for r in found] == ["queuing", "running", "failed"]
    assert (found[1]["mode"], found[1]["input"]) == ("train", {"q": "ü [red]x"})
    text = await shown.text("rollouts")
    assert '{"q":"ü [red]x"}' in text
    assert len(text.splitlines()) == 3
    assert text.index("ro-waiting") < text.index("ro-running") < text.index("ro-failed")


@pytest.mark.parametrize("text", ["[/x]", "[red]x", "[1, 2]", "a\\", "\\[b]", "[link=http://x]y"])
async def test_brackets_are_shown_as_they_are(shown: Shown, text: str) -> None:
    store = shown.world.store
    await store.enqueue_rollout(text, rollout_id="ro-text")
    await store.enqueue_rollout([text], rollout_id="ro-list")
    seen = await shown.text("rollouts")
    assert text in next(line for line in seen.splitlines() if "ro-text" in line)
    line = next(line for line in seen.splitlines() if "ro-list" in line)
    assert json.dumps([text], separators=(",", ":")) in line


async def test_characters_that_move_the_cursor_are_shown_as_text(shown: Shown) -> None:
    await shown.world.store.enqueue_rollout("x\x1b[2Jy\u202ez", rollout_id="ro-text")
    line = next(s for s in (await shown.text("rollouts")).splitlines() if "ro-text" in s)
    assert "x\\u001b[2Jy\\x202ez" in line


async def test_rollouts_can_be_filtered_limited_and_turned_round(shown: Shown) -> None:
    async def ids(*arguments: str) -> list[str]:
        return [r["rollout_id"] for r in await shown.json("rollouts", *arguments)]

    assert await ids("--status", "failed") == ["ro-failed"]
    statuses = ("--status", "failed", "--status", "queuing")
    assert await ids(*statuses) == ["ro-waiting", "ro-failed"]
    assert await ids("--oldest", "--limit", "2") == ["ro-failed", "ro-running"]
    assert await ids("--limit", "0") == []


async def test_rollouts_goes_on_over_pages(shown: Shown) -> None:
    store = shown.world.store
    await store.enqueue_rollouts([{"input": n} for n in range(1100)])
    assert len(await shown.json("rollouts", "--limit", "1050")) == 1050


async def test_rollout_shows_its_attempts(shown: Shown) -> None:
    found = await shown.json("rollout", "ro-failed")
    assert (found["rollout_id"], found["status"]) == ("ro-failed", "failed")
    (attempt,) = found["attempts"]
    assert (attempt["status"], attempt["worker_id"]) == ("failed", "w1")
    assert attempt["failure"]["message"] == "no [bold]luck"
    text = await shown.text("rollout", "ro-failed")
    for part in (
        f"attempts.0.attempt_id\t{attempt['attempt_id']}",
        "attempts.0.failure.message\tno [bold]luck",
    ):
        assert part in text


async def test_spans_are_shown_in_their_order(shown: Shown) -> None:
    first, second = await shown.json("spans", "ro-running")
    assert (first["name"], first["sequence_id"], first["attributes"]) == ("first", 1, {"n": 7})
    assert (second["name"], second["parent_span_id"]) == ("second [x]", first["span_id"])
    assert first["attempt_id"] == shown.ids[1]
    text = await shown.text("spans", "ro-running")
    assert "second [x]" in text
    assert len(await shown.json("spans", "ro-running", "--limit", "1")) == 1
    assert len(await shown.json("spans", "ro-running", "--attempt", "latest")) == 2
    assert await shown.json("spans", "ro-waiting") == []


async def test_workers_are_listed(shown: Shown) -> None:
    one, two = await shown.json("workers")
    assert (one["worker_id"], one["status"], one["current_rollout_id"]) == (
        "w1",
        "busy",
        "ro-running",
    )
    assert (two["worker_id"], two["status"], two["stats"]) == ("w2", "unknown", {"gpu": 0.5})
    text = await shown.text("workers")
    assert [line.split("\t")[:2] for line in text.splitlines()] == [
        ["w1", "busy"],
        ["w2", "unknown"],
    ]


async def test_resources_are_listed_without_their_keys(shown: Shown) -> None:
    (found,) = await shown.json("resources")
    assert (found["resources_id"], found["version"]) == ("rs-1", 1)
    assert found["resources"]["w"]["custom"]["value"] == [1]
    assert "sk-secret" not in json.dumps(found)
    text = await shown.text("resources")
    assert "rs-1" in text
    assert "sk-secret" not in text


async def test_empty_store_is_shown_without_error(world: World, tmp_path: Path) -> None:
    empty = Shown(world, tmp_path, ("", ""))
    for view in ("rollouts", "workers", "resources"):
        assert await empty.json(view) == []
        assert await empty.text(view) == ""
    assert await empty.text("status")


@pytest.mark.parametrize("view", ["rollout", "spans"])
async def test_unknown_id_is_one_line_on_stderr(shown: Shown, view: str) -> None:
    assert "ro-nope" in await shown.error(view, "ro-nope")


async def test_wrong_usage_is_exit_code_2_and_shows_the_usage(shown: Shown) -> None:
    assert "--status" in await shown.misuse("rollouts", "--status", "nope")
    assert "ROLLOUT" in await shown.misuse("rollout")
    assert "--limit" in await shown.misuse("spans", "ro-running", "--limit", "-5")
    assert "'--since'" in await shown.misuse("rollouts", "--since", "yesterday")
    assert "'--sort'" in await shown.misuse("rollouts", "--sort", "beauty")
    assert "exclude each other" in await shown.misuse("workers", "--json", "-o", "yaml")


async def test_a_mistyped_command_is_answered_with_those_like_it(tmp_path: Path) -> None:
    code, out, errors = await run("rolouts", folder=tmp_path)
    assert (code, out) == (2, "")
    wrong, usage = errors.splitlines()
    assert "'rolouts'; did you mean rollouts" in wrong
    assert usage.startswith("usage: lightningstore [OPTIONS] COMMAND")


async def test_server_that_is_not_there_is_one_line_on_stderr(tmp_path: Path) -> None:
    arguments = ("status", "--address", "127.0.0.1:1")
    code, out, errors = await run(*arguments, folder=tmp_path)
    assert (code, out) == (1, "")
    assert errors.count("\n") == 1
    assert "127.0.0.1:1" in errors


async def test_address_may_come_from_the_environment(shown: Shown, tmp_path: Path) -> None:
    code, out, _ = await run(
        "workers", "--json", folder=tmp_path, LIGHTNINGSTORE_ADDRESS=shown._address
    )
    assert code == 0
    assert len(json.loads(out)) == 2


async def test_health_says_whether_a_server_serves(tmp_path: Path) -> None:
    process = await serve("--backend", "memory", "--port", "0", folder=tmp_path)
    options = ("health", "--address", process.address)
    assert (await run(*options, folder=tmp_path))[:2] == (0, "SERVING\n")
    assert await process.stop() == 0
    code, _, errors = await run(*options, folder=tmp_path)
    assert code == 1
    assert process.address in errors
