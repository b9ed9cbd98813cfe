"""The two status machines of SPEC section 2, row by row, and what a finished rollout still takes."""

from __future__ import annotations

import pytest
from lightningstore.client import (
    FailedPreconditionError,
    Failure,
    InvalidArgumentError,
    NotFoundError,
    RolloutConfig,
)
from lightningstore.v1.attempt_pb2 import (
    Attempt,
    GetAttemptRequest,
    ListAttemptsRequest,
    UpdateAttemptRequest,
)

from tests.contract.conftest import World
from tests.contract.helpers import RETRY, batch, claim, enqueue, poll, refused, snapshot

pytestmark = pytest.mark.asyncio

SILENT = RolloutConfig(unresponsive_timeout=5, max_attempts=3, retry_condition=["unresponsive"])
SIGNS = ["span", "heartbeat"]


async def sign_of_life(world: World, sign: str, rollout_id: str, attempt_id: str) -> str | None:
    """Send a heartbeat for an attempt; return why its runner should stop."""
    if sign == "span":
        stops = (await world.store.add_spans(batch(rollout_id, attempt_id, "life"))).stops
    else:
        stops = (await world.store.heartbeat("w1", attempts=[(rollout_id, attempt_id)])).stops
    assert [(s.rollout_id, s.attempt_id) for s in stops] in ([], [(rollout_id, attempt_id)])
    return stops[0].reason if stops else None


async def statuses(world: World, rollout_id: str) -> tuple[str, str]:
    stored = await world.store.get_rollout(rollout_id)
    return stored.status, stored.attempt.status


async def end(world: World, names: tuple[str, str], status: str) -> None:
    """Bring an attempt to an end: by its runner, or for the other two by the watchdog."""
    if status in ("succeeded", "failed"):
        await world.store.update_attempt(*names, status=status)
    else:
        await world.advance(10.3)
    assert (await world.store.get_attempt(*names)).status == status


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("status", ["succeeded", "failed", "timeout"])
async def test_sign_of_life_stamps_an_ended_attempt_and_leaves_its_status(
    world: World, status: str, sign: str
) -> None:
    config = RolloutConfig(timeout=10, max_attempts=2, retry_condition=["failed", "timeout"])
    rollout, attempt = await claim(world, config=config)
    names = (rollout.rollout_id, attempt.attempt_id)
    await end(world, names, status)
    before = await world.store.get_rollout(names[0])
    await world.advance(1)
    await sign_of_life(world, sign, *names)
    after = await world.store.get_rollout(names[0])
    assert after.attempt.status == status
    assert after.attempt.end_time == before.attempt.end_time
    assert after.attempt.message.last_heartbeat_time.ToNanoseconds() == world.clock.wall_ns()
    assert (after.status, after.end_time) == (before.status, before.end_time)
    in_queue = 0 if status == "succeeded" else 1
    assert (await world.store.get_statistics()).queue_depth == in_queue


@pytest.mark.parametrize("sign", SIGNS)
async def test_late_sign_of_life_revives_a_superseded_attempt_alone(
    world: World, sign: str
) -> None:
    rollout, old = await claim(world, config=SILENT)
    await world.advance(5.3)
    (again,) = await world.store.dequeue_rollouts(1, worker_id="w2")
    assert await sign_of_life(world, sign, rollout.rollout_id, old.attempt_id) == "superseded"
    revived = await world.store.get_attempt(rollout.rollout_id, old.attempt_id)
    assert (revived.status, revived.end_time) == ("running", None)
    assert await statuses(world, rollout.rollout_id) == ("preparing", "preparing")
    assert (await world.store.get_rollout(rollout.rollout_id)).attempt == again.attempt


async def test_span_of_a_superseded_attempt_is_stored_and_leaves_the_rollout(world: World) -> None:
    rollout, old = await claim(world)
    await world.store.start_attempt(rollout.rollout_id)
    before = await world.store.get_rollout(rollout.rollout_id)
    await sign_of_life(world, "span", rollout.rollout_id, old.attempt_id)
    assert await world.store.get_rollout(rollout.rollout_id) == before
    stored = await world.store.get_attempt(rollout.rollout_id, old.attempt_id)
    assert (stored.status, stored.span_count) == ("running", 1)


@pytest.mark.parametrize("status", ["queuing", "requeuing"])
async def test_span_takes_a_rollout_put_back_by_hand_out_of_the_queue(
    world: World, status: str
) -> None:
    rollout, attempt = await claim(world)
    await world.store.update_rollout(rollout.rollout_id, status=status)
    await sign_of_life(world, "heartbeat", rollout.rollout_id, attempt.attempt_id)
    assert await statuses(world, rollout.rollout_id) == (status, "preparing")
    assert (await world.store.get_statistics()).queue_depth == 1
    await sign_of_life(world, "span", rollout.rollout_id, attempt.attempt_id)
    assert await statuses(world, rollout.rollout_id) == ("running", "running")
    assert (await world.store.get_statistics()).queue_depth == 0
    await world.store.update_rollout(rollout.rollout_id, status=status)
    await sign_of_life(world, "heartbeat", rollout.rollout_id, attempt.attempt_id)
    assert await statuses(world, rollout.rollout_id) == ("running", "running")
    assert await world.store.dequeue_rollouts(1) == []


async def test_success_finishes_a_rollout_put_back_by_hand(world: World) -> None:
    rollout, attempt = await claim(world)
    await world.store.update_rollout(rollout.rollout_id, status="queuing")
    await world.store.update_attempt(rollout.rollout_id, attempt.attempt_id, status="succeeded")
    assert await statuses(world, rollout.rollout_id) == ("succeeded", "succeeded")
    assert await world.store.dequeue_rollouts(1) == []


async def test_report_of_running_moves_the_rollout_on(world: World) -> None:
    rollout, attempt = await claim(world)
    update = await world.store.update_attempt(
        rollout.rollout_id, attempt.attempt_id, status="running"
    )
    assert (update.attempt.status, update.stop_reason) == ("running", None)
    assert await statuses(world, rollout.rollout_id) == ("running", "running")


@pytest.mark.parametrize("status", ["timeout", "unresponsive"])
async def test_runner_may_report_the_ends_of_the_watchdog(world: World, status: str) -> None:
    rollout, attempt = await claim(world, config=RETRY)
    await world.store.update_attempt(rollout.rollout_id, attempt.attempt_id, status=status)
    assert await statuses(world, rollout.rollout_id) == ("requeuing", status)
    assert (await world.store.get_attempt(rollout.rollout_id)).end_time is not None


@pytest.mark.parametrize("attempt_id", ["id", "latest"])
async def test_latest_works_wherever_an_attempt_id_is_taken(world: World, attempt_id: str) -> None:
    rollout, attempt = await claim(world)
    name = attempt.attempt_id if attempt_id == "id" else "latest"
    names = (rollout.rollout_id, name)
    assert await world.store.get_attempt(*names) == attempt
    update = await world.store.update_attempt(*names, metadata={"a": 1})
    assert update.attempt.attempt_id == attempt.attempt_id
    (numbers,) = await world.store.allocate_sequence_ids([(*names, 2)])
    assert numbers.attempt_id == attempt.attempt_id
    assert (await world.store.add_spans(batch(*names, "a"))).accepted_count == 1
    assert [s.attempt_id async for s in world.store.query_spans(*names)] == [attempt.attempt_id]
    await world.store.cancel_rollouts([rollout.rollout_id])
    reply = await world.store.heartbeat("w1", attempts=[names])
    assert [s.attempt_id for s in reply.stops] == [attempt.attempt_id]


@pytest.mark.parametrize("word", ["succeeded", "failed"])
async def test_word_that_decided_is_final_and_its_repeat_a_no_op(world: World, word: str) -> None:
    rollout, attempt = await claim(world)
    names = (rollout.rollout_id, attempt.attempt_id)
    first = await world.store.update_attempt(*names, status=word)
    await world.advance(2)
    before = await snapshot(world)
    again = await world.store.update_attempt(*names, status=word)
    assert (again.attempt, again.stop_reason) == (first.attempt, None)
    assert await snapshot(world) == before
    for other in {"succeeded", "failed", "timeout", "unresponsive", "running"} - {word}:
        async with refused(world, FailedPreconditionError, "TRANSITION_NOT_ALLOWED"):
            await world.store.update_attempt(*names, status=other)


async def test_failure_that_was_requeued_is_final_and_requeues_once(world: World) -> None:
    rollout, attempt = await claim(world, config=RETRY)
    names = (rollout.rollout_id, attempt.attempt_id)
    await world.store.update_attempt(*names, status="failed")
    (other,) = await enqueue(world, 1)
    await world.store.update_attempt(*names, status="failed")
    async with refused(world, FailedPreconditionError, "TRANSITION_NOT_ALLOWED"):
        await world.store.update_attempt(*names, status="succeeded")
    claimed = await world.store.dequeue_rollouts(5)
    assert [r.rollout_id for r in claimed] == [rollout.rollout_id, other]
    await world.store.update_attempt(*names, status="failed")
    assert await world.store.dequeue_rollouts(5) == []


async def test_final_word_may_be_corrected_once_it_is_superseded(world: World) -> None:
    rollout, attempt = await claim(world)
    names = (rollout.rollout_id, attempt.attempt_id)
    await world.store.update_attempt(*names, status="succeeded")
    await world.store.start_attempt(rollout.rollout_id)
    update = await world.store.update_attempt(*names, status="failed")
    assert (update.attempt.status, update.stop_reason) == ("failed", "superseded")
    assert await statuses(world, rollout.rollout_id) == ("preparing", "preparing")


@pytest.mark.parametrize("word", ["succeeded", "failed"])
async def test_late_word_for_a_cancelled_rollout_is_recorded_only(world: World, word: str) -> None:
    rollout, attempt = await claim(world, config=RETRY)
    (cancelled,) = await world.store.cancel_rollouts([rollout.rollout_id])
    await world.advance(1)
    update = await world.store.update_attempt(rollout.rollout_id, attempt.attempt_id, status=word)
    assert (update.attempt.status, update.stop_reason) == (word, "rollout_cancelled")
    stored = await world.store.get_rollout(rollout.rollout_id)
    assert (stored.status, stored.end_time) == ("cancelled", cancelled.end_time)
    assert stored.completion_number == 1
    assert (await world.store.get_worker("w1")).status == "idle"
    assert await world.store.dequeue_rollouts(1) == []


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("status", ["succeeded", "failed"])
async def test_rollout_finished_by_hand_tells_its_runner_to_stop(
    world: World, status: str, sign: str
) -> None:
    rollout, attempt = await claim(world, config=RETRY)
    names = (rollout.rollout_id, attempt.attempt_id)
    done = await world.store.update_rollout(rollout.rollout_id, status=status)
    assert (done.status, done.completion_number) == (status, 1)
    assert await sign_of_life(world, sign, *names) == "rollout_finished"
    update = await world.store.update_attempt(*names, status="failed")
    assert update.stop_reason == "rollout_finished"
    assert await statuses(world, rollout.rollout_id) == (status, "failed")


async def test_success_that_decides_asks_nobody_to_stop(world: World) -> None:
    rollout, attempt = await claim(world)
    names = (rollout.rollout_id, attempt.attempt_id)
    assert (await world.store.update_attempt(*names, status="succeeded")).stop_reason is None
    assert await sign_of_life(world, "span", *names) == "rollout_finished"


async def test_reopened_rollout_lives_again_in_full(world: World) -> None:
    rollout, _ = await claim(world, config=RETRY)
    await world.store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
    again = await world.store.start_attempt(rollout.rollout_id, worker_id="w2")
    assert (again.end_time, again.completion_number, again.attempt_count) == (None, 0, 2)
    await world.store.add_spans(batch(rollout.rollout_id, "latest", "a"))
    assert await statuses(world, rollout.rollout_id) == ("running", "running")
    await world.store.update_attempt(rollout.rollout_id, "latest", status="failed")
    assert await statuses(world, rollout.rollout_id) == ("requeuing", "failed")
    (third,) = await world.store.dequeue_rollouts(1)
    assert third.attempt.sequence_number == 3
    await world.store.update_attempt(rollout.rollout_id, "latest", status="failed")
    stored = await world.store.get_rollout(rollout.rollout_id)
    assert (stored.status, stored.completion_number) == ("failed", 2)


async def test_late_word_for_an_old_attempt_of_a_reopened_rollout_wakes_no_poll(
    world: World,
) -> None:
    rollout, old = await claim(world, config=RETRY)
    await world.store.start_attempt(rollout.rollout_id)
    waiting = await poll(world, limit=1, wait=9)
    await world.store.update_attempt(rollout.rollout_id, old.attempt_id, status="failed")
    await world.settle()
    assert not waiting.done()
    waiting.cancel()


async def test_failure_goes_with_failed_and_may_be_corrected(world: World) -> None:
    rollout, attempt = await claim(world)
    names = (rollout.rollout_id, attempt.attempt_id)
    await world.store.update_attempt(*names, status="failed", failure=Failure("A", "a"))
    update = await world.store.update_attempt(*names, status="failed", failure=Failure("B", "b"))
    assert update.attempt.failure.type == "B"
    cleared = await world.store.update_attempt(*names, failure=None)
    assert cleared.attempt.failure is None
    assert (await world.store.get_attempt(*names)).failure is None


async def test_update_without_a_mask_takes_the_fields_that_have_a_value(world: World) -> None:
    rollout, attempt = await claim(world)
    await world.store.update_attempt(rollout.rollout_id, "latest", metadata={"kept": 1})
    given = Attempt(rollout_id=rollout.rollout_id, attempt_id="latest", worker_id="w9")
    answer = await world.store.call("UpdateAttempt", UpdateAttemptRequest(attempt=given))
    assert (answer.attempt.worker_id, answer.attempt.status) == ("w9", 1)
    assert answer.attempt.metadata_json == b'{"kept":1}'


@pytest.mark.parametrize(
    ("kind", "reason", "method", "request_"),
    [
        (InvalidArgumentError, "FIELD_INVALID", "GetAttempt", GetAttemptRequest(attempt_id="x")),
        (InvalidArgumentError, "FIELD_INVALID", "GetAttempt", GetAttemptRequest(rollout_id="ro")),
        (
            NotFoundError,
            "ROLLOUT_NOT_FOUND",
            "GetAttempt",
            GetAttemptRequest(rollout_id="nobody", attempt_id="latest"),
        ),
        (
            NotFoundError,
            "ATTEMPT_NOT_FOUND",
            "GetAttempt",
            GetAttemptRequest(rollout_id="ro", attempt_id="latest"),
        ),
        (InvalidArgumentError, "FIELD_INVALID", "ListAttempts", ListAttemptsRequest()),
        (
            InvalidArgumentError,
            "FIELD_INVALID",
            "ListAttempts",
            ListAttemptsRequest(rollout_id="ro", page_size=-1),
        ),
        (
            InvalidArgumentError,
            "PAGE_TOKEN_MISMATCH",
            "ListAttempts",
            ListAttemptsRequest(rollout_id="ro", page_token="x"),
        ),
        (NotFoundError, "ROLLOUT_NOT_FOUND", "ListAttempts", ListAttemptsRequest(rollout_id="no")),
        (
            NotFoundError,
            "ATTEMPT_NOT_FOUND",
            "UpdateAttempt",
            UpdateAttemptRequest(attempt={"rollout_id": "ro", "attempt_id": "latest"}),
        ),
        (
            InvalidArgumentError,
            "FIELD_INVALID",
            "UpdateAttempt",
            UpdateAttemptRequest(attempt={"rollout_id": "ro"}),
        ),
    ],
)
async def test_bad_names_are_refused(
    world: World, kind: type[Exception], reason: str, method: str, request_: object
) -> None:
    if reason != "ATTEMPT_NOT_FOUND":
        await world.store.start_rollout(1, rollout_id="ro")
    else:
        await enqueue(world, 1, rollout_id="ro")
    async with refused(world, kind, reason):
        await world.store.call(method, request_)


async def test_page_token_of_attempts_belongs_to_its_rollout(world: World) -> None:
    ids = await enqueue(world, 2)
    for rollout_id in ids * 3:
        await world.store.start_attempt(rollout_id)
    token = (await world.store.list_attempts(ids[0], page_size=2)).next_page_token
    async with refused(world, InvalidArgumentError, "PAGE_TOKEN_MISMATCH"):
        await world.store.list_attempts(ids[1], page_token=token)
    page = await world.store.list_attempts(ids[0], page_size=1, page_token=token)
    assert ([a.sequence_number for a in page], page.next_page_token) == ([3], "")
