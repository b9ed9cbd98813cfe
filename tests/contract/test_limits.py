"""Limits of section 7: each is enforced, named in its error, and does not affect other callers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from lightningstore.client import (
    AsyncLightningStore,
    InvalidArgumentError,
    LightningStoreError,
    NotFoundError,
    ResourceExhaustedError,
)
from lightningstore.client._calls.call import Call
from lightningstore.v1.rollout_pb2 import EnqueueRolloutsRequest, RolloutSpec
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from tests.contract.conftest import World
from tests.contract.helpers import RETRY, batch, claim, enqueue, finish, names, refused

pytestmark = pytest.mark.asyncio

MIB = 1 << 20
Opener = Callable[..., Awaitable[World]]


@pytest_asyncio.fixture
async def limited(way: str, tmp_path: Path) -> AsyncIterator[Opener]:
    """Open a world with limits of the test's own."""
    worlds = []

    async def start(**settings: Any) -> World:
        world = World(way, tmp_path, **settings)
        worlds.append(world)
        await world.start()
        return world

    yield start
    for world in worlds:
        await world.stop()


def hasty(store: AsyncLightningStore) -> AsyncLightningStore:
    """Return a client that sends each call once, and a stream too: the retry delay is longer than its timeout."""
    once = store.with_timeout(0.4)

    async def send(call: Call[Any]) -> Any:
        return call.shape(await once._transport.unary(call.method, call.request, 30))

    once._send = send  # type: ignore[method-assign]
    return once


@contextmanager
def impatient(world: World) -> Iterator[None]:
    """Have errors with a retry delay raised at once."""
    patient, world.store = world.store, hasty(world.store)
    try:
        yield
    finally:
        world.store = patient


def heavy(sent: SpanBatch, size: int) -> SpanBatch:
    """Add an attribute of that many bytes to the last span."""
    value = AnyValue(bytes_value=bytes(size))
    sent.spans[-1].attributes.append(KeyValue(key="x", value=value))
    return sent


async def test_input_above_the_limit_is_refused(limited: Opener) -> None:
    world = await limited(max_input_bytes=1000)
    await world.store.enqueue_rollout("x" * 998)
    async with refused(world, ResourceExhaustedError, "PAYLOAD_TOO_LARGE", "rollouts[1].input"):
        await world.store.enqueue_rollouts([{"input": 1}, {"input": "x" * 999}])
    async with refused(world, ResourceExhaustedError, "PAYLOAD_TOO_LARGE", "1000"):
        await world.store.start_rollout("x" * 999)


async def test_input_above_the_default_limit_is_refused(world: World) -> None:
    limit = 16 * MIB
    for size, taken in ((limit - 2, True), (limit - 1, False)):
        request = EnqueueRolloutsRequest(
            rollouts=[RolloutSpec(input_json=b'"' + b"x" * size + b'"')]
        )
        if taken:
            await world.store.call("EnqueueRollouts", request)
        else:
            with pytest.raises(ResourceExhaustedError) as caught:
                await world.store.call("EnqueueRollouts", request)
            assert caught.value.reason == "ERROR_REASON_PAYLOAD_TOO_LARGE"
            assert caught.value.metadata["limitBytes"] == str(limit)
            assert caught.value.retry_delay is None
    assert (await world.store.get_statistics()).queue_depth == 1


async def test_inputs_that_no_answer_could_hold_are_refused_together(limited: Opener) -> None:
    world = await limited(max_message_bytes=5 * MIB)
    specs = [{"input": "x" * (600 * 1024)} for _ in range(2)]
    async with refused(world, ResourceExhaustedError, "PAYLOAD_TOO_LARGE"):
        await world.store.enqueue_rollouts(specs)
    for spec in specs:
        await world.store.enqueue_rollouts([spec])


async def test_smallest_limit_of_a_message_leaves_room_for_an_input(limited: Opener) -> None:
    world = await limited(max_message_bytes=MIB)
    await world.store.enqueue_rollout("x" * (MIB // 8 - 2))
    async with refused(world, ResourceExhaustedError, "PAYLOAD_TOO_LARGE", str(MIB // 8)):
        await world.store.enqueue_rollout("x" * (MIB // 8 - 1))


async def test_claims_and_lists_of_large_inputs_stay_within_a_message(limited: Opener) -> None:
    world = await limited(max_message_bytes=8 * MIB)
    for n in range(6):
        await world.store.enqueue_rollout(str(n) * (3 * MIB))
    page = await world.store.list_rollouts()
    assert 0 < len(page) < 6
    assert page.next_page_token
    seen = [r.input[0] async for r in world.store.iter_rollouts()]
    assert seen == list("012345")
    claimed: list[str] = []
    while got := await world.store.dequeue_rollouts(6):
        claimed += [r.input[0] for r in got]
    assert claimed == seen


async def test_span_above_the_limit_refuses_its_batch(limited: Opener) -> None:
    world = await limited(max_span_bytes=2000)
    rollout, attempt = await claim(world)
    ids = rollout.rollout_id, attempt.attempt_id
    async with refused(world, ResourceExhaustedError, "PAYLOAD_TOO_LARGE", "spans[1]"):
        await world.store.add_spans(heavy(batch(*ids, "a", "b"), 2000))
    result = await world.store.ingest_spans(
        [heavy(batch(*ids, "a", "b"), 2000), heavy(batch(*ids, "c"), 1900)]
    )
    assert (result.accepted_count, result.rejected_count) == (1, 2)
    assert result.rejections[0].reason == "ERROR_REASON_PAYLOAD_TOO_LARGE"
    assert await names(world, ids[0]) == ["c"]


async def test_batch_of_small_spans_may_be_larger_than_a_span(limited: Opener) -> None:
    world = await limited(max_span_bytes=200)
    rollout, attempt = await claim(world)
    sent = batch(rollout.rollout_id, attempt.attempt_id, *map(str, range(100)))
    assert (await world.store.add_spans(sent)).accepted_count == 100


async def test_page_size_is_capped(limited: Opener) -> None:
    world = await limited(max_page_size=5)
    await enqueue(world, 12)
    for asked, expected in ((0, 5), (3, 3), (5, 5), (6, 5), (1_000_000, 5)):
        page = await world.store.list_rollouts(page_size=asked)
        assert len(page) == expected
        assert page.next_page_token
    assert len([r async for r in world.store.iter_rollouts()]) == 12


async def test_items_of_a_call_are_limited(limited: Opener) -> None:
    world = await limited(max_batch_items=5)
    rollouts = await enqueue(world, 5)
    async with refused(world, ResourceExhaustedError, "BATCH_TOO_LARGE", "rollouts"):
        await enqueue(world, 6)
    async with refused(world, ResourceExhaustedError, "BATCH_TOO_LARGE", "5"):
        await world.store.cancel_rollouts([*rollouts, "x"])
    async with refused(world, ResourceExhaustedError, "BATCH_TOO_LARGE", "resources"):
        await world.store.add_resources({str(n): n for n in range(6)})
    async with refused(world, ResourceExhaustedError, "BATCH_TOO_LARGE", "attempts"):
        await world.store.heartbeat("w", attempts=[("r", "a")] * 6)
    try:
        await world.store.enqueue_rollouts([{"input": n} for n in range(6)])
    except ResourceExhaustedError as error:
        assert error.metadata == {"field": "rollouts", "limit": "5"}
        assert error.retry_delay is None


async def test_waits_are_not_limited_by_the_items_of_a_call(limited: Opener) -> None:
    world = await limited(max_batch_items=5)
    rollouts = [*await enqueue(world, 5), *await enqueue(world, 5)]
    stream = world.store.wait_for_rollouts(rollouts, timeout=0)
    assert await stream.results() == []
    assert stream.open_rollout_ids == rollouts


async def test_full_queue_refuses_and_says_when_to_come_again(limited: Opener) -> None:
    world = await limited(max_queue_length=3)
    await enqueue(world, 2)
    async with refused(world, ResourceExhaustedError, "QUEUE_FULL", "3"):
        with impatient(world):
            await enqueue(world, 2)
    await enqueue(world, 1)
    with impatient(world), pytest.raises(ResourceExhaustedError) as caught:
        await enqueue(world, 1)
    assert caught.value.retry_delay
    assert caught.value.retry_delay > 0
    assert caught.value.metadata["limit"] == "3"
    await world.store.dequeue_rollouts(1)
    await enqueue(world, 1)


async def test_full_queue_takes_what_does_not_add_to_it(limited: Opener) -> None:
    world = await limited(max_queue_length=1)
    await world.store.enqueue_rollout(1, rollout_id="mine")
    again = await world.store.enqueue_rollout(1, rollout_id="mine")
    assert again.status == "queuing"
    started = await world.store.start_rollout(2)
    assert started.status == "preparing"


async def test_retries_enter_a_full_queue(limited: Opener) -> None:
    world = await limited(max_queue_length=1)
    rollout, _ = await claim(world, config=RETRY)
    await enqueue(world, 1)
    await world.store.update_attempt(rollout.rollout_id, "latest", status="failed")
    assert (await world.store.get_rollout(rollout.rollout_id)).status == "requeuing"
    assert (await world.store.get_statistics()).queue_depth == 2


async def test_message_above_the_limit_fails_its_call_alone(limited: Opener) -> None:
    world = await limited(max_message_bytes=1 * MIB, max_input_bytes=64 * MIB)
    with pytest.raises(LightningStoreError) as caught:
        await world.store.enqueue_rollout("x" * (2 * MIB))
    assert isinstance(caught.value, ResourceExhaustedError), caught.value
    assert caught.value.reason == "ERROR_REASON_PAYLOAD_TOO_LARGE"
    assert caught.value.retry_delay is None
    assert (await world.store.get_statistics()).queue_depth == 0


async def test_streams_above_the_limit_are_refused_until_one_ends(limited: Opener) -> None:
    world = await limited(max_open_streams=2)
    if world.how != "grpc":
        pytest.skip("a matter of the server")
    (a,) = await enqueue(world, 1)
    waits = [world.store.wait_for_rollouts([a]) for _ in range(2)]
    for wait in waits:
        await wait.registered()
    with impatient(world), pytest.raises(ResourceExhaustedError) as caught:
        await world.store.watch_rollouts().registered()
    assert caught.value.reason == "ERROR_REASON_BUSY"
    assert caught.value.retry_delay
    with impatient(world), pytest.raises(ResourceExhaustedError):
        await world.store.ingest_spans([])
    assert (await world.store.get_rollout(a)).status == "queuing"
    await finish(world, a)
    for wait in waits:
        assert len(await wait.results()) == 1
    assert (await world.store.ingest_spans([])).accepted_count == 0


@pytest_asyncio.fixture
async def slow(limited: Opener) -> AsyncIterator[tuple[World, asyncio.Event]]:
    """A world whose disk takes nothing until the event is set."""
    world = await limited(max_pending_bytes=MIB)
    if not world.durable:
        pytest.skip("no disk")
    assert world.service is not None
    storage = world.service.engine.storage
    commit, go = storage.commit, asyncio.Event()
    go.set()

    async def hang(changes: Any) -> None:
        await go.wait()
        await commit(changes)

    storage.commit = hang
    yield world, go
    go.set()


async def test_slow_disk_refuses_unary_writes_and_slows_streams_down(
    slow: tuple[World, asyncio.Event],
) -> None:
    world, go = slow
    rollout, attempt = await claim(world)
    ids = rollout.rollout_id, attempt.attempt_id
    go.clear()
    taken = 0

    async def batches() -> AsyncIterator[SpanBatch]:
        nonlocal taken
        for _ in range(300):
            taken += 1
            yield heavy(batch(*ids, "a"), 200 * 1024)

    ingest = asyncio.create_task(world.store.with_timeout(30).ingest_spans(batches()))
    once = hasty(world.store)
    committer = world.service.engine.committer
    while committer.pending_bytes <= MIB:  # pytest's own timeout ends it
        await asyncio.sleep(0)
    for write in (
        once.add_spans(batch(*ids, "b")),
        once.enqueue_rollout(1),
        once.dequeue_rollouts(1),
        once.add_resources({}),
        once.allocate_sequence_ids([(*ids, 1)]),
    ):
        with pytest.raises(ResourceExhaustedError) as caught:
            await write
        assert caught.value.reason == "ERROR_REASON_BUSY"
        assert caught.value.retry_delay
    assert not ingest.done()
    # Memory stays bounded: what one message holds may be above the limit, no more.
    assert committer.pending_bytes < 2 * MIB
    assert taken < 300
    go.set()
    result = await asyncio.wait_for(ingest, 30)
    assert result.accepted_count == 300
    assert (await world.store.get_rollout(ids[0])).status == "running"
    assert (await world.store.get_statistics()).span_count == 300
    await world.store.enqueue_rollout(1)


async def test_slow_disk_takes_reports_of_what_runs_before_new_work(
    slow: tuple[World, asyncio.Event],
) -> None:
    world, go = slow
    rollout, attempt = await claim(world)
    other, _ = await claim(world)
    ids = rollout.rollout_id, attempt.attempt_id
    go.clear()
    patient, committer = world.store.with_timeout(30), world.service.engine.committer
    held = [asyncio.create_task(patient.add_spans(heavy(batch(*ids, "a"), MIB)))]
    while committer.pending_bytes <= MIB:
        await asyncio.sleep(0)
    with impatient(world), pytest.raises(ResourceExhaustedError):
        await enqueue(world, 1)
    sealed = committer.sealed
    for report in (
        patient.heartbeat("w", attempts=[ids]),
        patient.update_attempt(*ids, status="succeeded"),
        patient.cancel_rollouts([other.rollout_id]),
    ):
        held.append(asyncio.create_task(report))
        sealed += 1
        while committer.sealed < sealed:  # taken, and on its way to the disk
            await asyncio.sleep(0)
    assert not any(task.done() for task in held)
    go.set()
    await asyncio.gather(*held)
    assert (await world.store.get_rollout(rollout.rollout_id)).status == "succeeded"


async def test_reports_too_are_refused_at_twice_the_limit(
    slow: tuple[World, asyncio.Event],
) -> None:
    world, go = slow
    rollout, attempt = await claim(world)
    go.clear()
    sent = heavy(batch(rollout.rollout_id, attempt.attempt_id, "a"), 2 * MIB)
    held = asyncio.create_task(world.store.with_timeout(30).add_spans(sent))
    while world.service.engine.committer.pending_bytes <= 2 * MIB:
        await asyncio.sleep(0)
    with impatient(world), pytest.raises(ResourceExhaustedError) as caught:
        await world.store.heartbeat("w")
    assert caught.value.metadata == {}
    assert str(2 * MIB) in str(caught.value)
    go.set()
    await held


async def test_nothing_is_seen_before_it_is_on_the_disk(
    slow: tuple[World, asyncio.Event],
) -> None:
    world, go = slow
    (a,) = await enqueue(world, 1)
    wait = world.store.wait_for_rollouts([a])
    await wait.registered()
    go.clear()
    patient = world.store.with_timeout(30)
    write = asyncio.create_task(patient.update_rollout(a, status="succeeded"))
    read = asyncio.create_task(patient.get_rollout(a))
    woken = asyncio.create_task(wait.results())
    await asyncio.wait([write, woken], timeout=0.1)
    assert not write.done()
    assert not woken.done()
    if read.done():
        assert read.result().status == "queuing"
    go.set()
    assert (await write).status == "succeeded"
    assert len(await woken) == 1
    await read


DIGITS = "7" * 4301


@pytest.mark.parametrize("json", [DIGITS, f'{{"a": "{DIGITS}", "b": [-{DIGITS}]}}'])
async def test_integer_that_no_client_could_read_is_refused(world: World, json: str) -> None:
    spec = RolloutSpec(input_json=json.encode())
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "4300 digits"):
        await world.store.call("EnqueueRollouts", EnqueueRolloutsRequest(rollouts=[spec]))
    spec = RolloutSpec(input_json=b"1", metadata_json=f'{{"a": {DIGITS}}}'.encode())
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "[0].metadata_json"):
        await world.store.call("EnqueueRollouts", EnqueueRolloutsRequest(rollouts=[spec]))


@pytest.mark.parametrize("json", [f'"{DIGITS}"', f"0.{DIGITS}", f"1e-{DIGITS}", DIGITS[1:]])
async def test_many_digits_are_taken_where_they_are_no_integer(world: World, json: str) -> None:
    request = EnqueueRolloutsRequest(rollouts=[RolloutSpec(input_json=json.encode())])
    reply = await world.store.call("EnqueueRollouts", request)
    assert reply.rollouts[0].input_json == json.encode()


@pytest.mark.parametrize("text", ["x" * 100_000, "\N{SNOWMAN}" * 100_000])
async def test_long_ids_are_not_found_and_echoed_in_part(world: World, text: str) -> None:
    rollout, _ = await claim(world)
    for call in (
        world.store.get_rollout(text),
        world.store.get_attempt(rollout.rollout_id, text),
        world.store.get_resources(text),
        world.store.cancel_rollouts([text[:256]]),
    ):
        with pytest.raises(NotFoundError) as caught:
            await call
        assert len(str(caught.value).encode()) < 1500
    with pytest.raises(InvalidArgumentError):
        await world.store.get_worker(text)
