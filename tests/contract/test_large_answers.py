"""Answers are bounded by all that they hold: inputs, metadata, attempts, failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from lightningstore.client import Failure, ResourceExhaustedError
from lightningstore.service.rules.errors import Busy
from lightningstore.v1.claim_pb2 import DequeueRolloutsRequest
from lightningstore.v1.consumer_pb2 import PullFinishedRequest
from lightningstore.v1.rollout_pb2 import CancelRolloutsRequest, EnqueueRolloutsRequest, RolloutSpec

from tests.calls import Calls
from tests.contract.conftest import World
from tests.contract.helpers import claim, enqueue, finish, refused

pytestmark = pytest.mark.asyncio

MIB = 1 << 20
#: Three of these do not fit into a message of 1 MiB.
HEAVY = {"x": "m" * (200 << 10)}


@pytest_asyncio.fixture
async def small(way: str, tmp_path: Path) -> AsyncIterator[World]:
    """A world whose messages hold 1 MiB, inputs 256 KiB and metadata 256 KiB."""
    world = World(way, tmp_path, max_message_bytes=MIB, max_input_bytes=256 << 10)
    await world.start()
    yield world
    await world.stop()


async def fill(world: World, count: int) -> list[str]:
    """Enqueue rollouts with heavy metadata, one by one; returns their ids."""
    made = [await world.store.enqueue_rollout(n, metadata=HEAVY) for n in range(count)]
    return [rollout.rollout_id for rollout in made]


async def test_claims_stop_where_metadata_fills_the_answer(small: World) -> None:
    ids = await fill(small, 10)
    claimed: list[str] = []
    for n in range(10):
        request = DequeueRolloutsRequest(limit=10, request_id=f"claim-{n}")
        reply = await small.store.call("DequeueRollouts", request)
        assert reply.ByteSize() <= MIB
        assert await small.store.call("DequeueRollouts", request) == reply
        claimed += [rollout.rollout_id for rollout in reply.rollouts]
    assert claimed == ids


async def test_waits_watches_and_lists_show_rollouts_of_any_size(small: World) -> None:
    ids = await fill(small, 8)
    for rollout_id in ids:
        await finish(small, rollout_id)
    waited = [r.rollout_id async for r in small.store.wait_for_rollouts(ids)]
    assert sorted(waited) == sorted(ids)
    listed = [r.rollout_id async for r in small.store.iter_rollouts()]
    assert listed == ids
    watched: list[str] = []
    async for event in small.store.watch_rollouts(after_completion_number=0):
        watched += [rollout.rollout_id for rollout in getattr(event, "rollouts", [event])]
        if len(watched) == len(ids):
            break
    assert watched == ids


async def test_cancelling_more_than_a_message_holds_leaves_payloads_out_of_the_answer(
    small: World,
) -> None:
    ids = await fill(small, 8)
    request = CancelRolloutsRequest(rollout_ids=ids, request_id="cancel")
    reply = await small.store.call("CancelRollouts", request)
    assert [r.rollout_id for r in reply.rollouts] == ids
    assert all(r.payloads_omitted and not r.input_json for r in reply.rollouts)
    assert [r.completion_number for r in reply.rollouts] == list(range(1, 9))
    assert await small.store.call("CancelRollouts", request) == reply
    whole = await small.store.get_rollout(ids[0])
    assert (whole.metadata, whole.message.payloads_omitted) == (HEAVY, False)
    few = await small.store.call("CancelRollouts", CancelRolloutsRequest(rollout_ids=ids[:2]))
    assert not any(r.payloads_omitted for r in few.rollouts)


async def test_repeat_of_a_call_answers_also_where_its_rollouts_have_grown(small: World) -> None:
    request = EnqueueRolloutsRequest(
        rollouts=[RolloutSpec(input_json=b"1")] * 8, request_id="enqueue"
    )
    first = await small.store.call("EnqueueRollouts", request)
    for rollout in first.rollouts:
        await small.store.update_rollout(rollout.rollout_id, metadata=HEAVY)
    repeated = await small.store.call("EnqueueRollouts", request)
    assert [r.rollout_id for r in repeated.rollouts] == [r.rollout_id for r in first.rollouts]
    assert all(r.payloads_omitted for r in repeated.rollouts)


async def test_repeated_pull_answers_also_where_its_rollouts_have_grown(small: World) -> None:
    await small.store.create_consumer("trainer")
    ids = await enqueue(small, 8)
    await small.store.cancel_rollouts(ids)
    request = PullFinishedRequest(consumer="trainer", max_items=8, request_id="pull")
    assert len((await small.store.call("PullFinished", request)).deliveries) == 8
    for rollout_id in ids:
        await small.store.update_rollout(rollout_id, metadata=HEAVY)
    repeated = await small.store.call("PullFinished", request)
    assert repeated.ByteSize() < MIB
    assert [delivery.item_id for delivery in repeated.deliveries] == ids
    assert [d.rollout.payloads_omitted for d in repeated.deliveries[-4:]] == [True] * 4
    assert not repeated.deliveries[0].rollout.payloads_omitted


async def test_batch_whose_answer_would_not_fit_is_refused_before_anything_is_done(
    small: World,
) -> None:
    resources_id = "r" * 256
    await small.store.add_resources({}, resources_id=resources_id)
    request = EnqueueRolloutsRequest(rollouts=[RolloutSpec(input_json=b"1")] * 5000)
    async with refused(small, ResourceExhaustedError, "PAYLOAD_TOO_LARGE", "answer"):
        await small.store.call("EnqueueRollouts", request)


async def test_metadata_above_its_limit_is_refused_by_name(small: World) -> None:
    rollout, attempt = await claim(small)
    huge = {"x": "m" * (257 << 10)}
    async with refused(small, ResourceExhaustedError, "PAYLOAD_TOO_LARGE", "[0].metadata_json"):
        await small.store.enqueue_rollout(1, metadata=huge)
    async with refused(small, ResourceExhaustedError, "PAYLOAD_TOO_LARGE", "rollout.metadata"):
        await small.store.update_rollout(rollout.rollout_id, metadata=huge)
    names = (rollout.rollout_id, attempt.attempt_id)
    async with refused(small, ResourceExhaustedError, "PAYLOAD_TOO_LARGE", "attempt.metadata"):
        await small.store.update_attempt(*names, metadata=huge)
    async with refused(small, ResourceExhaustedError, "PAYLOAD_TOO_LARGE", "stats_json"):
        await small.store.heartbeat("w", stats=huge)


async def test_long_failure_is_kept_by_its_beginning_and_its_end(world: World) -> None:
    rollout, attempt = await claim(world)
    trace = "Traceback…\n" + "x" * 200_000 + "\nValueError: the end"
    await world.store.update_attempt(
        rollout.rollout_id,
        attempt.attempt_id,
        status="failed",
        failure=Failure("E" * 5000, trace),
    )
    stored = await world.store.get_rollout(rollout.rollout_id)
    assert stored.status == "failed"
    assert stored.latest_attempt is not None
    failure = stored.latest_attempt.message.failure
    assert failure.message.startswith("Traceback…\n")
    assert failure.message.endswith("ValueError: the end")
    assert "bytes omitted]" in failure.message
    assert len(failure.message.encode()) <= 64 << 10
    assert len(failure.type) <= 1 << 10


async def test_report_is_repeated_with_the_metadata_that_the_attempt_has(world: World) -> None:
    rollout, attempt = await claim(world)
    names = (rollout.rollout_id, attempt.attempt_id)
    assert world.service is not None
    await world.store.update_attempt(*names, metadata=HEAVY, request_id="report")
    again = await world.store.update_attempt(*names, metadata=HEAVY, request_id="report")
    assert again.attempt.metadata == HEAVY
    kept = world.service.engine.requests
    assert sum(len(row.answer) for row in kept._rows.values()) < 1000


async def test_answers_kept_for_repeats_hold_no_ids_that_the_request_names(world: World) -> None:
    assert world.service is not None
    ids = [f"{'i' * 200}{n}" for n in range(100)]
    specs = [RolloutSpec(input_json=b"1", rollout_id=rollout_id) for rollout_id in ids]
    enqueue = EnqueueRolloutsRequest(rollouts=specs, request_id="enqueue")
    cancel = CancelRolloutsRequest(rollout_ids=ids, request_id="cancel")
    made = await world.store.call("EnqueueRollouts", enqueue)
    gone = await world.store.call("CancelRollouts", cancel)
    kept = world.service.engine.requests
    assert sum(len(row.answer) for row in kept._rows.values()) < 1000
    repeated = await world.store.call("EnqueueRollouts", enqueue)
    assert [r.rollout_id for r in repeated.rollouts] == [r.rollout_id for r in made.rollouts]
    assert await world.store.call("CancelRollouts", cancel) == gone


async def test_wait_for_too_many_ids_is_refused(world: World) -> None:
    ids = [f"none-{n}" for n in range(100_001)]
    with pytest.raises(ResourceExhaustedError, match="100000"):
        async for _ in world.store.wait_for_rollouts(ids):
            pass


async def test_long_batches_let_others_have_the_loop(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightningstore.service.engine.clock.TURN_SECONDS", 0.0)
    assert world.service is not None
    store = world.service
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    task = asyncio.create_task(others())
    made = await Calls(store).enqueue_rollouts(
        EnqueueRolloutsRequest(rollouts=[RolloutSpec(input_json=b"1")] * 500)
    )
    assert turns >= 1000  # a turn after every item while it is checked, and while it is composed
    turns = 0
    await Calls(store).cancel_rollouts(
        CancelRolloutsRequest(rollout_ids=[r.rollout_id for r in made.rollouts])
    )
    assert turns >= 1500
    task.cancel()


async def test_items_that_change_between_the_turns_of_a_batch_are_seen(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightningstore.service.engine.clock.TURN_SECONDS", 0.0)
    assert world.service is not None
    store = world.service
    specs = [RolloutSpec(input_json=b"1", rollout_id=f"r{n}") for n in range(50)]
    batch = EnqueueRolloutsRequest(rollouts=specs)
    other = EnqueueRolloutsRequest(rollouts=[RolloutSpec(input_json=b"2", rollout_id="r7")])
    answers = await asyncio.gather(
        Calls(store).enqueue_rollouts(batch),
        Calls(store).enqueue_rollouts(other),
        return_exceptions=True,
    )
    names = [type(answer).__name__ for answer in answers]
    if names != ["EnqueueRolloutsResponse", "RolloutExists"] or world.backend != "postgres":
        # The reads of a network may end in the other order; there the batch was first, as a whole.
        assert names == ["RolloutExists", "EnqueueRolloutsResponse"]
        assert (await world.store.get_statistics()).queue_depth == 1
        rest = [spec for spec in specs if spec.rollout_id != "r7"]
        again = EnqueueRolloutsRequest(rollouts=rest, request_id="same")
        twice = await asyncio.gather(*(Calls(store).enqueue_rollouts(again) for _ in range(2)))
        assert twice[0] == twice[1]
    assert (await world.store.get_statistics()).queue_depth == 50
    ids = [f"r{n}" for n in range(50)]
    cancelled, _ = await asyncio.gather(
        Calls(store).cancel_rollouts(CancelRolloutsRequest(rollout_ids=ids)),
        world.store.dequeue_rollouts(3, worker_id="w"),
    )
    assert [r.completion_number for r in cancelled.rollouts] == list(range(1, 51))
    shown = [r.latest_attempt.attempt_id for r in cancelled.rollouts if r.latest_attempt_id]
    assert all(shown)


async def test_batches_that_are_prepared_count_as_waiting_for_the_disk(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightningstore.service.engine.clock.TURN_SECONDS", 0.0)
    world = World(way, tmp_path, max_pending_bytes=MIB)
    await world.start()
    assert world.service is not None
    store = world.service
    specs = [RolloutSpec(input_json=b'"' + b"x" * (100 << 10) + b'"')] * 8
    batches = [
        Calls(store).enqueue_rollouts(EnqueueRolloutsRequest(rollouts=specs)) for _ in range(20)
    ]
    answers = await asyncio.gather(*batches, return_exceptions=True)
    refused_ = [answer for answer in answers if isinstance(answer, Busy)]
    assert len(refused_) >= 17
    assert store.engine.committer.pending_bytes == 0
    await world.stop()


async def test_one_call_claims_a_thousand_at_most(world: World) -> None:
    await enqueue(world, 1200)
    assert len(await world.store.dequeue_rollouts(1200)) == 1000
    assert len(await world.store.dequeue_rollouts(1200)) == 200
