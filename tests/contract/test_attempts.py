"""UpdateAttempt, spans, heartbeats, and their effect on the rollout."""

from __future__ import annotations

import pytest
from lightningstore.client import (
    FailedPreconditionError,
    Failure,
    InvalidArgumentError,
    NotFoundError,
    RetryBackoff,
    RolloutConfig,
)
from lightningstore.v1.attempt_pb2 import Attempt, UpdateAttemptRequest

from tests.contract.conftest import World
from tests.contract.helpers import RETRY, batch, claim, refused

pytestmark = pytest.mark.asyncio

SILENT = RolloutConfig(
    unresponsive_timeout=5, max_attempts=3, retry_condition=["unresponsive", "timeout"]
)


async def test_success_finishes_the_rollout_and_frees_the_worker(world: World) -> None:
    rollout, attempt = await claim(world)
    await world.advance(2)
    update = await world.store.update_attempt(
        rollout.rollout_id, attempt.attempt_id, status="succeeded"
    )
    now = world.clock.wall_ns()
    assert update.attempt.status == "succeeded"
    assert update.attempt.message.end_time.ToNanoseconds() == now
    assert update.stop_reason is None
    stored = await world.store.get_rollout(rollout.rollout_id)
    assert stored.status == "succeeded"
    assert stored.message.end_time.ToNanoseconds() == now
    assert stored.completion_number == 1
    worker = await world.store.get_worker("w1")
    assert (worker.status, worker.current_rollout_id) == ("idle", "")
    assert worker.message.last_idle_time.ToNanoseconds() == now


async def test_failure_without_a_retry_fails_the_rollout(world: World) -> None:
    rollout, attempt = await claim(world)
    failure = Failure(type="ValueError", message="no", retryable=True)
    await world.store.update_attempt(
        rollout.rollout_id, attempt.attempt_id, status="failed", failure=failure
    )
    stored = await world.store.get_rollout(rollout.rollout_id)
    assert stored.status == "failed"
    assert stored.latest_attempt.failure == failure


async def test_failure_is_retried_up_to_max_attempts(world: World) -> None:
    rollout, _ = await claim(world, config=RETRY)
    for sequence in (2, 3):
        await world.store.update_attempt(rollout.rollout_id, "latest", status="failed")
        assert (await world.store.get_rollout(rollout.rollout_id)).status == "requeuing"
        (again,) = await world.store.dequeue_rollouts(5)
        assert again.latest_attempt.sequence_number == sequence
    await world.store.update_attempt(rollout.rollout_id, "latest", status="failed")
    assert (await world.store.get_rollout(rollout.rollout_id)).status == "failed"


async def test_failure_that_is_not_retryable_overrules_the_condition(world: World) -> None:
    rollout, _ = await claim(world, config=RETRY)
    failure = Failure(type="X", message="", retryable=False)
    await world.store.update_attempt(rollout.rollout_id, "latest", status="failed", failure=failure)
    assert (await world.store.get_rollout(rollout.rollout_id)).status == "failed"


async def test_only_the_ends_in_the_condition_are_retried(world: World) -> None:
    config = RolloutConfig(max_attempts=5, retry_condition=["timeout"])
    rollout, _ = await claim(world, config=config)
    await world.store.update_attempt(rollout.rollout_id, "latest", status="failed")
    assert (await world.store.get_rollout(rollout.rollout_id)).status == "failed"


async def test_retry_waits_for_its_back_off_and_grows(world: World) -> None:
    backoff = RetryBackoff(initial_delay=10, factor=3, max_delay=25)
    config = RolloutConfig(max_attempts=4, retry_condition=["failed"], retry_backoff=backoff)
    rollout, _ = await claim(world, config=config)
    for delay in (10, 25):
        await world.store.update_attempt(rollout.rollout_id, "latest", status="failed")
        await world.advance(delay - 0.1)
        assert await world.store.dequeue_rollouts(1) == []
        assert (await world.store.get_statistics()).queue_depth == 1
        if world.durable:
            await world.restart()
        await world.advance(0.2)
        assert len(await world.store.dequeue_rollouts(1)) == 1


async def test_retry_goes_to_the_tail(world: World) -> None:
    rollout, _ = await claim(world, config=RETRY)
    other = await world.store.enqueue_rollout(2)
    await world.store.update_attempt(rollout.rollout_id, "latest", status="failed")
    claimed = await world.store.dequeue_rollouts(5)
    assert [r.rollout_id for r in claimed] == [other.rollout_id, rollout.rollout_id]


async def test_report_of_a_superseded_attempt_is_only_recorded(world: World) -> None:
    rollout, old = await claim(world)
    new = await world.store.start_attempt(rollout.rollout_id)
    for status in ("failed", "succeeded"):
        update = await world.store.update_attempt(rollout.rollout_id, old.attempt_id, status=status)
        assert update.attempt.status == status
        assert update.stop_reason == "superseded"
    stored = await world.store.get_rollout(rollout.rollout_id)
    assert stored.status == "preparing"
    assert stored.latest_attempt == new.latest_attempt


async def test_span_sets_running_and_counts(world: World) -> None:
    rollout, attempt = await claim(world)
    await world.advance(1)
    await world.store.add_spans(batch(rollout.rollout_id, attempt.attempt_id, "a", "b"))
    stored = await world.store.get_rollout(rollout.rollout_id)
    assert (stored.status, stored.latest_attempt.status) == ("running", "running")
    assert stored.latest_attempt.span_count == 2
    beat = stored.latest_attempt.message.last_heartbeat_time
    assert beat.ToNanoseconds() == world.clock.wall_ns()


async def test_heartbeat_leaves_a_preparing_attempt_preparing(world: World) -> None:
    rollout, attempt = await claim(world)
    await world.store.heartbeat("w1", attempts=[(rollout.rollout_id, "latest")])
    stored = await world.store.get_rollout(rollout.rollout_id)
    assert (stored.status, stored.latest_attempt.status) == ("preparing", "preparing")
    assert stored.latest_attempt.last_heartbeat_time is not None


async def test_silence_makes_unresponsive_and_requeues(world: World) -> None:
    rollout, attempt = await claim(world, config=SILENT)
    await world.advance(4)
    await world.store.heartbeat("w1", attempts=[(rollout.rollout_id, attempt.attempt_id)])
    await world.advance(4.9)
    assert (await world.store.get_rollout(rollout.rollout_id)).status == "preparing"
    await world.advance(0.35)
    stored = await world.store.get_rollout(rollout.rollout_id)
    assert (stored.status, stored.latest_attempt.status) == ("requeuing", "unresponsive")
    assert stored.latest_attempt.end_time is not None
    worker = await world.store.get_worker("w1")
    assert (worker.status, worker.current_attempt_id) == ("unknown", "")


@pytest.mark.parametrize("sign", ["span", "heartbeat"])
async def test_sign_of_life_revives_an_unresponsive_attempt(world: World, sign: str) -> None:
    rollout, attempt = await claim(world, config=SILENT)
    await world.advance(5.3)
    if sign == "span":
        await world.store.add_spans(batch(rollout.rollout_id, attempt.attempt_id, "a"))
    else:
        await world.store.heartbeat("w1", attempts=[(rollout.rollout_id, attempt.attempt_id)])
    stored = await world.store.get_rollout(rollout.rollout_id)
    assert (stored.status, stored.latest_attempt.status) == ("running", "running")
    assert stored.latest_attempt.end_time is None
    assert await world.store.dequeue_rollouts(1) == []
    assert (await world.store.get_worker("w1")).status == "busy"
    await world.advance(5.3)
    assert (await world.store.get_attempt(rollout.rollout_id)).status == "unresponsive"


async def test_unresponsive_attempt_of_a_finished_rollout_stays_ended(world: World) -> None:
    config = RolloutConfig(unresponsive_timeout=5)
    rollout, attempt = await claim(world, config=config)
    await world.advance(5.3)
    await world.store.add_spans(batch(rollout.rollout_id, attempt.attempt_id, "late"))
    stored = await world.store.get_rollout(rollout.rollout_id)
    assert (stored.status, stored.latest_attempt.status) == ("failed", "unresponsive")
    assert stored.latest_attempt.span_count == 1


async def test_timeout_counts_from_the_start_whatever_is_heard(world: World) -> None:
    config = RolloutConfig(timeout=10, unresponsive_timeout=8)
    rollout, attempt = await claim(world, config=config)
    await world.advance(7)
    await world.store.add_spans(batch(rollout.rollout_id, attempt.attempt_id, "a"))
    await world.advance(3.2)
    stored = await world.store.get_rollout(rollout.rollout_id)
    assert (stored.status, stored.latest_attempt.status) == ("failed", "timeout")
    passed = stored.latest_attempt.message.end_time.ToNanoseconds()
    assert 10 <= (passed - stored.latest_attempt.message.start_time.ToNanoseconds()) / 1e9 <= 10.25


async def test_late_word_decides_a_rollout_that_waits_for_its_retry(world: World) -> None:
    rollout, attempt = await claim(world, config=SILENT)
    await world.advance(5.3)
    await world.store.update_attempt(rollout.rollout_id, attempt.attempt_id, status="succeeded")
    assert (await world.store.get_rollout(rollout.rollout_id)).status == "succeeded"
    assert await world.store.dequeue_rollouts(1) == []
    assert (await world.store.get_worker("w1")).status == "idle"


async def test_late_word_of_a_timed_out_attempt_leaves_a_finished_rollout(world: World) -> None:
    rollout, attempt = await claim(world, config=RolloutConfig(timeout=1))
    await world.advance(1.3)
    update = await world.store.update_attempt(
        rollout.rollout_id, attempt.attempt_id, status="succeeded"
    )
    assert update.attempt.status == "succeeded"
    assert update.stop_reason == "rollout_finished"
    assert (await world.store.get_rollout(rollout.rollout_id)).status == "failed"


async def test_live_attempt_of_a_cancelled_rollout_ends_after_ten_silent_minutes(
    world: World,
) -> None:
    rollout, attempt = await claim(world)
    await world.store.cancel_rollouts([rollout.rollout_id])
    await world.advance(599)
    assert (await world.store.get_attempt(rollout.rollout_id)).status == "preparing"
    await world.advance(1.3)
    ended = await world.store.get_attempt(rollout.rollout_id)
    assert ended.status == "unresponsive"
    assert ended.end_time is not None
    assert (await world.store.get_rollout(rollout.rollout_id)).status == "cancelled"


async def test_stall_of_the_server_gives_everybody_a_fresh_interval(world: World) -> None:
    rollout, attempt = await claim(world, config=SILENT)
    await world.advance(1)
    await world.clock.stall(60)
    await world.settle()
    assert (await world.store.get_attempt(rollout.rollout_id)).status == "preparing"
    await world.advance(4.8)
    assert (await world.store.get_attempt(rollout.rollout_id)).status == "preparing"
    await world.advance(0.5)
    assert (await world.store.get_attempt(rollout.rollout_id)).status == "unresponsive"


async def test_wall_clock_jumps_move_no_deadline(world: World) -> None:
    rollout, _ = await claim(world, config=SILENT)
    for jump in (7200, -7200):
        world.clock.jump_wall(jump)
        await world.advance(1)
    assert (await world.store.get_attempt(rollout.rollout_id)).status == "preparing"


async def test_end_of_one_attempt_never_idles_a_worker_busy_on_another(world: World) -> None:
    first, _ = await claim(world)
    second, other = await claim(world)
    await world.store.update_attempt(first.rollout_id, "latest", status="succeeded")
    worker = await world.store.get_worker("w1")
    assert (worker.status, worker.current_attempt_id) == ("busy", other.attempt_id)
    await world.store.update_attempt(second.rollout_id, "latest", status="succeeded")
    assert (await world.store.get_worker("w1")).status == "idle"


async def test_named_path_without_a_value_clears_it(world: World) -> None:
    rollout, attempt = await claim(world)
    names = (rollout.rollout_id, attempt.attempt_id)
    await world.store.update_attempt(*names, metadata={"a": 1}, worker_id="w2")
    assert (await world.store.get_worker("w1")).status == "idle"
    assert (await world.store.get_worker("w2")).current_attempt_id == attempt.attempt_id
    cleared = await world.store.update_attempt(*names, metadata=None, worker_id=None)
    assert cleared.attempt.metadata == {}
    assert cleared.attempt.worker_id == ""
    assert (await world.store.get_worker("w2")).status == "idle"


async def test_heartbeat_time_is_never_in_the_future(world: World) -> None:
    rollout, attempt = await claim(world)
    given = Attempt(rollout_id=rollout.rollout_id, attempt_id="latest")
    given.last_heartbeat_time.FromNanoseconds(world.clock.wall_ns() + 10**12)
    answer = await world.store.call("UpdateAttempt", UpdateAttemptRequest(attempt=given))
    assert answer.attempt.last_heartbeat_time.ToNanoseconds() == world.clock.wall_ns()
    given.last_heartbeat_time.FromNanoseconds(world.clock.wall_ns() - 10**9)
    answer = await world.store.call("UpdateAttempt", UpdateAttemptRequest(attempt=given))
    assert answer.attempt.last_heartbeat_time.ToNanoseconds() == world.clock.wall_ns() - 10**9


async def test_update_tells_how_many_spans_are_missing(world: World) -> None:
    rollout, attempt = await claim(world)
    names = (rollout.rollout_id, attempt.attempt_id)
    await world.store.add_spans(batch(*names, "a", "b"))
    assert (await world.store.update_attempt(*names)).missing_span_count is None
    update = await world.store.update_attempt(*names, status="succeeded", sent_span_count=5)
    assert update.missing_span_count == 3


@pytest.mark.parametrize(
    ("field", "attempt", "paths"),
    [
        ("update_mask.paths[0]", Attempt(), ["span_count"]),
        ("update_mask.paths[0]", Attempt(), ["nonsense"]),
        ("attempt.status", Attempt(), ["status"]),
        ("attempt.status", Attempt(status=77), ["status"]),
        ("attempt.failure", Attempt(status=3, failure={"type": "x"}), ["status", "failure"]),
        ("attempt.metadata_json", Attempt(metadata_json=b"[1]"), ["metadata_json"]),
    ],
)
async def test_bad_update_is_refused(
    world: World, field: str, attempt: Attempt, paths: list[str]
) -> None:
    rollout, _ = await claim(world)
    request = UpdateAttemptRequest(attempt=attempt, update_mask={"paths": paths})
    request.attempt.rollout_id, request.attempt.attempt_id = rollout.rollout_id, "latest"
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", field):
        await world.store.call("UpdateAttempt", request)


async def test_status_never_leads_back(world: World) -> None:
    rollout, attempt = await claim(world)
    names = (rollout.rollout_id, attempt.attempt_id)
    await world.store.update_attempt(*names, status="running")
    async with refused(world, FailedPreconditionError, "TRANSITION_NOT_ALLOWED"):
        await world.store.update_attempt(*names, status="preparing")
    async with refused(world, NotFoundError, "ATTEMPT_NOT_FOUND", "at-none"):
        await world.store.update_attempt(rollout.rollout_id, "at-none", status="failed")


async def test_attempts_are_listed_page_by_page(world: World) -> None:
    rollout, _ = await claim(world)
    for _ in range(4):
        await world.store.start_attempt(rollout.rollout_id)
    seen: list[int] = []
    token = ""
    while True:
        page = await world.store.list_attempts(rollout.rollout_id, page_size=2, page_token=token)
        seen += [a.sequence_number for a in page]
        token = page.next_page_token
        if not token:
            break
    assert seen == [1, 2, 3, 4, 5]
