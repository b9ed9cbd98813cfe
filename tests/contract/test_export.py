"""Export: which rollouts come, in which order, and that an import of it makes the same again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from lightningstore.client import AlreadyExistsError, ExportedRollout, FailedPreconditionError
from lightningstore.client.datasets import DatasetWriter, encode, read_dataset

from tests.contract.conftest import World
from tests.contract.helpers import batch, claim, finish, query
from tests.finished import FINISHED, GROUP, fill

pytestmark = pytest.mark.asyncio


async def export(world: World, **options: Any) -> list[ExportedRollout]:
    return [rollout async for rollout in world.store.export_rollouts(**options)]


async def ids(world: World, **options: Any) -> list[str]:
    return [found.rollout.rollout_id for found in await export(world, spans=False, **options)]


async def write(world: World, path: Path, **options: Any) -> bytes:
    with DatasetWriter(path) as writer:
        for rollout in await export(world, **options):
            writer.write(rollout)
    return path.read_bytes()


async def everything(world: World, rollout_id: str) -> tuple[Any, ...]:
    """Return all that the store has of a rollout but its completion number."""
    record = (await world.store.get_rollout(rollout_id)).message
    record.ClearField("completion_number")
    attempts = await world.store.list_attempts(rollout_id)
    found = [
        (s.otlp.SerializeToString(), s.sequence_id, s.attempt_id, s.resource, s.scope)
        for attempt in attempts
        for s in await query(world, rollout_id, attempt.attempt_id)
    ]
    return record, list(attempts), found


def rows(exported: list[ExportedRollout]) -> list[Mapping[str, Any]]:
    return [json.loads(encode(one)) for one in exported]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize("triplets", [False, True], ids=["spans", "triplets"])
async def test_export_import_export_gives_the_same_bytes(
    world: World, tmp_path: Path, name: str, triplets: bool
) -> None:
    await fill(world.store)
    first = await write(world, tmp_path / name, triplets=triplets)
    for way in ("memory-inprocess", "sqlite-inprocess"):
        folder = tmp_path / way
        folder.mkdir()
        other = World(way, folder)
        await other.start()
        await other.store.enqueue_rollout({"other": "work"})
        assert (await other.store.import_rollouts(read_dataset(tmp_path / name))).imported_count
        assert await write(other, folder / name, triplets=triplets) == first
        await other.stop()


async def test_a_store_is_copied_without_a_file(world: World, tmp_path: Path) -> None:
    await fill(world.store)
    other = World("memory-inprocess", tmp_path)
    await other.start()
    result = await other.store.import_rollouts(world.store.export_rollouts())
    assert result.imported_count == len(FINISHED)
    assert rows(await export(other)) == rows(await export(world))
    for rollout_id in FINISHED:
        assert await everything(other, rollout_id) == await everything(world, rollout_id)
    await other.stop()


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
async def test_an_export_is_known_in_the_store_that_it_came_from(
    world: World, tmp_path: Path, name: str
) -> None:
    await fill(world.store)
    await write(world, tmp_path / name)
    result = await world.store.import_rollouts(read_dataset(tmp_path / name))
    assert result[:3] == (0, len(FINISHED), 0)


async def test_finished_ones_come_in_the_order_of_their_finish(world: World) -> None:
    await fill(world.store)
    assert await ids(world) == FINISHED
    assert await ids(world, after_completion_number=5) == FINISHED[5:]
    assert await ids(world, after_completion_number=2, through_completion_number=4) == FINISHED[2:4]
    last = (await world.store.get_statistics()).last_completion_number
    assert last == len(FINISHED) + 1  # one has finished twice
    assert await ids(world, after_completion_number=last) == []
    assert await ids(world, through_completion_number=0) == []


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ({"statuses": ["cancelled"]}, ["ro-cancelled"]),
        ({"rollout_ids": ["ro-autogen", "ro-nobody"]}, ["ro-autogen"]),
        ({"rollout_id_contains": "agent"}, ["ro-agentops", "ro-openai_agents"]),
        ({"modes": ["val", "test"]}, ["ro-cancelled"]),
        ({"modes": [None]}, [f"ro-{GROUP}"]),
        ({"group_ids": [GROUP]}, [f"ro-{GROUP}"]),
        ({"modes": ["train"], "rollout_id_contains": "cancelled"}, []),
        (
            {"modes": ["val"], "rollout_ids": ["ro-autogen"], "filter_logic": "or"},
            ["ro-autogen", "ro-cancelled"],
        ),
    ],
)
async def test_filters_are_those_of_lists(
    world: World, filters: dict[str, Any], wanted: list[str]
) -> None:
    await fill(world.store)
    assert await ids(world, **filters) == wanted
    listed = await world.store.list_rollouts(**filters)
    assert {r.rollout_id for r in listed if r.is_finished} == set(wanted)


async def test_bad_filters_are_refused_at_once(world: World) -> None:
    with pytest.raises(ValueError, match="only what has finished"):
        world.store.export_rollouts(statuses=["running"])
    with pytest.raises(ValueError, match=r"RolloutMode must be one of .*, not 'odd'"):
        world.store.export_rollouts(modes=["odd"])
    with pytest.raises(TypeError):
        world.store.export_rollouts(rollout_ids="ro-1")


async def test_rollout_that_is_reopened_comes_when_it_finishes_anew(world: World) -> None:
    for n in range(3):
        await world.store.enqueue_rollout(n, rollout_id=f"ro-{n}")
        await finish(world, f"ro-{n}")
    last = (await world.store.get_statistics()).last_completion_number
    await finish(world, "ro-0", "failed")
    assert await ids(world, through_completion_number=last) == ["ro-1", "ro-2"]
    (again,) = await export(world, after_completion_number=last)
    assert again.rollout.status == "failed"
    assert [a.status for a in again.attempts] == ["succeeded", "failed"]


async def test_it_ends_though_the_last_finishes_are_none_any_more(world: World) -> None:
    await world.store.enqueue_rollout(0, rollout_id="ro-0")
    await finish(world, "ro-0")
    await world.store.enqueue_rollout(1, rollout_id="ro-1")
    await finish(world, "ro-1")
    await world.store.start_attempt("ro-1")  # its number is nobody's now
    found = world.store.export_rollouts()
    assert (await anext(found)).rollout.rollout_id == "ro-0"
    task = asyncio.ensure_future(anext(found, None))
    while not task.done():  # the server says every 15 s that there is nothing
        await world.advance(16)
    assert await task is None


async def test_many_attempts_come_whole(world: World) -> None:
    rollout, _ = await claim(world)
    for _ in range(120):
        claimed = await world.store.start_attempt(rollout.rollout_id)
        await world.store.add_spans(batch(*_ids(claimed), "a"))
    await world.store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
    (found,) = await export(world)
    assert [a.message.sequence_number for a in found.attempts] == list(range(1, 122))
    assert [a.span_count for a in found.attempts] == [0, *[1] * 120]


def _ids(rollout: Any) -> tuple[str, str]:
    return rollout.rollout_id, rollout.attempt.attempt_id


async def test_triplets_are_those_of_list_triplets(world: World) -> None:
    await fill(world.store)
    for options in ({}, {"skip_without_tokens": True}, {"source": "proxy", "attempt_id": ""}):
        for found in await export(world, spans=False, triplets=options or True):
            wanted = [
                t async for t in world.store.list_triplets([found.rollout.rollout_id], **options)
            ]
            assert found.triplets == wanted
            (row,) = rows([found])
            assert [t["prompt_token_ids"] for t in row["triplets"]] == [
                t.prompt_token_ids for a in wanted for t in a
            ]
            assert [t["prompt"] for t in row["triplets"]] == [t.prompt for a in wanted for t in a]
            assert "spans" not in row


async def test_reward_is_the_last_one_of_the_latest_attempt(world: World, tmp_path: Path) -> None:
    await fill(world.store)
    with_spans, with_triplets, with_neither = [
        {row["rollout_id"]: row["reward"] for row in rows(await export(world, **options))}
        for options in ({}, {"spans": False, "triplets": True}, {"spans": False})
    ]
    assert with_spans == with_triplets == with_neither
    imported = World("memory-inprocess", tmp_path / "imported")
    await imported.start()
    sources = await export(world)
    for source in sources:
        for attempt in source.attempts:
            attempt.message.span_count = 0  # as of a file of traces
    await imported.store.import_rollouts(sources)
    again = rows(await export(imported, spans=False))
    assert {row["rollout_id"]: row["reward"] for row in again} == with_spans
    await imported.stop()
    assert with_spans["ro-cancelled"] is None
    assert sum(reward is not None for reward in with_spans.values()) >= 5


async def test_evicted_spans_are_an_error_or_left_out(tmp_path: Path) -> None:
    world = World("memory-inprocess", tmp_path, eviction_threshold="20000")
    await world.start()
    for n in range(4):
        await world.store.enqueue_rollout(n, rollout_id=f"ro-{n}")
        made = await world.store.start_attempt(f"ro-{n}")
        await world.store.add_spans(batch(*_ids(made), "n" * 9000))
        await world.store.update_attempt(f"ro-{n}", "latest", status="succeeded")
        await world.advance(1)
    with pytest.raises(FailedPreconditionError):
        await export(world)
    left = [r.rollout.rollout_id for r in await export(world, skip_evicted=True)]
    assert 0 < len(left) < 4
    assert "ro-3" in left
    without_spans = await export(world, spans=False)
    assert [r.reward for r in without_spans] == [None] * 4
    await world.stop()


async def test_import_stops_at_a_rollout_that_is_another(world: World, tmp_path: Path) -> None:
    await fill(world.store)
    exported = await export(world)
    other = World("memory-inprocess", tmp_path)
    await other.start()
    await other.store.enqueue_rollout({}, rollout_id=FINISHED[3])
    with pytest.raises(AlreadyExistsError, match=FINISHED[3]):
        await other.store.import_rollouts(exported)
    assert await ids(other) == FINISHED[:3]
    await other.stop()


async def test_large_rollout_is_imported_in_several_messages(world: World) -> None:
    made = await world.store.start_rollout(None, rollout_id="ro-large")
    await world.store.ingest_spans(
        [batch(*_ids(made), *[f"{n}-" + "x" * 100_000 for n in range(30)]) for _ in range(4)]
    )
    await world.store.update_attempt("ro-large", "latest", status="succeeded")
    (found,) = await export(world)
    assert len(found.batches or ()) == 1  # cut otherwise than it was stored
    messages = list(found.messages())
    assert len(messages) > 2
    assert all(m.ByteSize() < 5 << 20 for m in messages)
    assert sum(len(b.spans) for m in messages for b in m.batches) == 120
