"""Retries: which ends are retried, how often, after which delay, and in which place."""

from __future__ import annotations

import pytest
from lightningstore.client import Failure, RetryBackoff, RolloutConfig

from tests.contract.conftest import World
from tests.contract.helpers import RETRY, batch, claim, enqueue, poll

pytestmark = pytest.mark.asyncio


async def end(world: World, rollout_id: str, status: str) -> None:
    """End the latest attempt, by its runner or by the watchdog."""
    if status == "failed":
        await world.store.update_attempt(rollout_id, "latest", status="failed")
    else:
        await world.advance(10.25)
    assert (await world.store.get_attempt(rollout_id)).status == status


def limits(end_: str) -> dict[str, float]:
    return {"timeout": {"timeout": 10}, "unresponsive": {"unresponsive_timeout": 10}}.get(end_, {})


@pytest.mark.parametrize("condition", ["failed", "timeout", "unresponsive"])
@pytest.mark.parametrize("status", ["failed", "timeout", "unresponsive"])
async def test_an_end_is_retried_if_and_only_if_it_is_in_the_condition(
    world: World, status: str, condition: str
) -> None:
    config = RolloutConfig(max_attempts=2, retry_condition=[condition], **limits(status))
    rollout, _ = await claim(world, config=config)
    await end(world, rollout.rollout_id, status)
    stored = await world.store.get_rollout(rollout.rollout_id)
    if status == condition:
        assert (stored.status, stored.end_time, stored.completion_number) == ("requeuing", None, 0)
        assert len(await world.store.dequeue_rollouts(5)) == 1
    else:
        assert (stored.status, stored.completion_number) == ("failed", 1)
        assert stored.end_time == stored.attempt.end_time
        assert await world.store.dequeue_rollouts(5) == []


@pytest.mark.parametrize("status", ["failed", "timeout", "unresponsive"])
async def test_last_of_max_attempts_fails_the_rollout(world: World, status: str) -> None:
    config = RolloutConfig(max_attempts=3, retry_condition=[status], **limits(status))
    rollout, _ = await claim(world, config=config)
    for sequence in (1, 2, 3):
        stored = await world.store.get_rollout(rollout.rollout_id)
        assert (stored.attempt_count, stored.attempt.sequence_number) == (sequence, sequence)
        await end(world, rollout.rollout_id, status)
        await world.store.dequeue_rollouts(1)
    stored = await world.store.get_rollout(rollout.rollout_id)
    assert (stored.status, stored.attempt_count) == ("failed", 3)


async def test_one_attempt_is_the_default_whatever_the_condition(world: World) -> None:
    rollout, _ = await claim(world, config=RolloutConfig(retry_condition=["failed"]))
    await end(world, rollout.rollout_id, "failed")
    assert (await world.store.get_rollout(rollout.rollout_id)).status == "failed"


async def test_attempts_started_by_hand_count_and_may_exceed_the_most(world: World) -> None:
    rollout, _ = await claim(world, config=RETRY)
    for _ in range(4):
        again = await world.store.start_attempt(rollout.rollout_id)
    assert again.attempt.sequence_number == 5
    await end(world, rollout.rollout_id, "failed")
    assert (await world.store.get_rollout(rollout.rollout_id)).status == "failed"


@pytest.mark.parametrize(
    ("retryable", "status"), [(True, "requeuing"), (None, "requeuing"), (False, "failed")]
)
async def test_failure_says_whether_it_may_be_retried(
    world: World, retryable: bool | None, status: str
) -> None:
    rollout, _ = await claim(world, config=RETRY)
    failure = Failure("E", "m") if retryable is None else Failure("E", "m", retryable)
    await world.store.update_attempt(rollout.rollout_id, "latest", status="failed", failure=failure)
    assert (await world.store.get_rollout(rollout.rollout_id)).status == status


async def test_retryable_failure_outside_the_condition_is_not_retried(world: World) -> None:
    config = RolloutConfig(max_attempts=3, retry_condition=["timeout"])
    rollout, _ = await claim(world, config=config)
    failure = Failure("E", "m", True)
    await world.store.update_attempt(rollout.rollout_id, "latest", status="failed", failure=failure)
    assert (await world.store.get_rollout(rollout.rollout_id)).status == "failed"


async def test_retry_goes_to_the_tail_of_its_priority(world: World) -> None:
    rollout, _ = await claim(world, config=RETRY, priority=1)
    low = await enqueue(world, 2)
    same = await enqueue(world, 2, priority=1)
    await end(world, rollout.rollout_id, "failed")
    later = await enqueue(world, 1, priority=1)
    claimed = [r.rollout_id for r in await world.store.dequeue_rollouts(9)]
    assert claimed == [*same, rollout.rollout_id, *later, *low]


async def test_retry_takes_a_new_attempt_of_the_newest_resources(world: World) -> None:
    await world.store.add_resources({"a": 1}, resources_id="rs")
    rollout, first = await claim(world, config=RETRY)
    await world.store.update_resources("rs", {"a": 2})
    await end(world, rollout.rollout_id, "failed")
    (again,) = await world.store.dequeue_rollouts(1, worker_id="w2")
    assert again.attempt.attempt_id != first.attempt_id
    assert (first.resources_version, again.attempt.resources_version) == (1, 2)
    assert again.attempt.worker_id == "w2"
    assert (await world.store.get_attempt(rollout.rollout_id, first.attempt_id)).status == "failed"


@pytest.mark.parametrize(
    ("backoff", "delays"),
    [
        (RetryBackoff(initial_delay=10), (10, 10, 10)),
        (RetryBackoff(initial_delay=10, factor=2), (10, 20, 40)),
        (RetryBackoff(initial_delay=10, factor=3, max_delay=25), (10, 25, 25)),
        (RetryBackoff(initial_delay=3000, factor=10), (3000, 3600, 3600)),
        (RetryBackoff(initial_delay=10, max_delay=0), (0, 0, 0)),
        (RetryBackoff(factor=2, jitter=1), (0, 0, 0)),
    ],
)
async def test_back_off_grows_by_its_factor_up_to_its_cap(
    world: World, backoff: RetryBackoff, delays: tuple[int, ...]
) -> None:
    config = RolloutConfig(max_attempts=4, retry_condition=["failed"], retry_backoff=backoff)
    rollout, _ = await claim(world, config=config)
    for delay in delays:
        await end(world, rollout.rollout_id, "failed")
        assert (await world.store.get_statistics()).queue_depth == 1
        if delay:
            await world.advance(delay - 0.01)
            assert await world.store.dequeue_rollouts(1) == []
            await world.advance(0.26)
        assert len(await world.store.dequeue_rollouts(1)) == 1


async def test_jitter_keeps_the_delay_within_its_share(world: World) -> None:
    backoff = RetryBackoff(initial_delay=100, jitter=0.2)
    config = RolloutConfig(max_attempts=2, retry_condition=["failed"], retry_backoff=backoff)
    ids = await enqueue(world, 60, config=config)
    await world.store.dequeue_rollouts(60)
    for rollout_id in ids:
        await end(world, rollout_id, "failed")
    await world.advance(79.9)
    assert await world.store.dequeue_rollouts(60) == []
    seen = []
    for _ in range(5):
        await world.advance(8.1)
        seen.append(len(await world.store.dequeue_rollouts(60)))
    assert sum(seen) == 60
    assert len([n for n in seen if n]) >= 3


async def test_retry_in_its_back_off_lets_others_pass_and_keeps_its_place(world: World) -> None:
    backoff = RetryBackoff(initial_delay=10)
    config = RolloutConfig(max_attempts=2, retry_condition=["failed"], retry_backoff=backoff)
    rollout, _ = await claim(world, config=config)
    await end(world, rollout.rollout_id, "failed")
    ids = await enqueue(world, 2)
    assert [r.rollout_id for r in await world.store.dequeue_rollouts(1)] == ids[:1]
    await world.advance(10.25)
    claimed = [r.rollout_id for r in await world.store.dequeue_rollouts(9)]
    assert claimed == [rollout.rollout_id, ids[1]]


async def test_end_of_the_back_off_serves_a_long_poll(world: World) -> None:
    backoff = RetryBackoff(initial_delay=10)
    config = RolloutConfig(max_attempts=2, retry_condition=["failed"], retry_backoff=backoff)
    rollout, _ = await claim(world, config=config)
    await end(world, rollout.rollout_id, "failed")
    waiting = await poll(world, limit=1, wait=60)
    await world.clock.advance(9.9)
    await world.settle()
    assert not waiting.done()
    await world.clock.advance(0.35)
    assert [r.attempt_count for r in await waiting] == [2]


@pytest.mark.parametrize("how", ["cancel", "start", "update", "succeed"])
async def test_retry_that_leaves_during_its_back_off_never_comes(world: World, how: str) -> None:
    backoff = RetryBackoff(initial_delay=10)
    config = RolloutConfig(
        max_attempts=3, timeout=10, retry_condition=["timeout"], retry_backoff=backoff
    )
    rollout, attempt = await claim(world, config=config)
    await end(world, rollout.rollout_id, "timeout")
    if how == "cancel":
        await world.store.cancel_rollouts([rollout.rollout_id])
    elif how == "start":
        await world.store.start_attempt(rollout.rollout_id)
        await world.store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
    elif how == "update":
        await world.store.update_rollout(rollout.rollout_id, status="failed")
    else:
        await world.store.update_attempt(rollout.rollout_id, attempt.attempt_id, status="succeeded")
    assert (await world.store.get_statistics()).queue_depth == 0
    await world.advance(30)
    assert await world.store.dequeue_rollouts(1) == []


async def test_rollout_put_back_by_hand_waits_for_no_back_off(world: World) -> None:
    backoff = RetryBackoff(initial_delay=1000)
    config = RolloutConfig(max_attempts=3, retry_condition=["failed"], retry_backoff=backoff)
    rollout, _ = await claim(world, config=config)
    await end(world, rollout.rollout_id, "failed")
    await world.store.update_rollout(rollout.rollout_id, status="queuing")
    assert len(await world.store.dequeue_rollouts(5)) == 1
    await world.advance(1100)
    assert await world.store.dequeue_rollouts(5) == []


async def test_new_priority_during_the_back_off_counts_afterwards(world: World) -> None:
    backoff = RetryBackoff(initial_delay=10)
    config = RolloutConfig(max_attempts=2, retry_condition=["failed"], retry_backoff=backoff)
    rollout, _ = await claim(world, config=config)
    (other,) = await enqueue(world, 1)
    await end(world, rollout.rollout_id, "failed")
    await world.store.update_rollout(rollout.rollout_id, priority=5, mode="val")
    assert await world.store.dequeue_rollouts(1, modes=["val"]) == []
    await world.advance(10.25)
    claimed = [r.rollout_id for r in await world.store.dequeue_rollouts(5)]
    assert claimed == [rollout.rollout_id, other]


async def test_back_off_does_not_follow_the_wall_clock(world: World) -> None:
    backoff = RetryBackoff(initial_delay=100)
    config = RolloutConfig(max_attempts=2, retry_condition=["failed"], retry_backoff=backoff)
    rollout, _ = await claim(world, config=config)
    await end(world, rollout.rollout_id, "failed")
    world.clock.jump_wall(7200)
    await world.advance(99)
    assert await world.store.dequeue_rollouts(1) == []
    await world.advance(1.25)
    assert len(await world.store.dequeue_rollouts(1)) == 1


@pytest.mark.parametrize(
    ("word", "failure", "status"),
    [
        ("succeeded", None, "succeeded"),
        ("failed", None, "requeuing"),
        ("failed", Failure("E", "m", False), "failed"),
    ],
)
@pytest.mark.parametrize("verdict", ["timeout", "unresponsive"])
async def test_late_word_after_the_verdict_decides_the_waiting_retry(
    world: World, verdict: str, word: str, failure: Failure | None, status: str
) -> None:
    config = RolloutConfig(
        max_attempts=3, retry_condition=["timeout", "unresponsive", "failed"], **limits(verdict)
    )
    rollout, attempt = await claim(world, config=config)
    names = (rollout.rollout_id, attempt.attempt_id)
    await end(world, rollout.rollout_id, verdict)
    (other,) = await enqueue(world, 1)
    extra = {} if failure is None else {"failure": failure}
    update = await world.store.update_attempt(*names, status=word, **extra)
    assert (update.attempt.status, update.stop_reason) == (word, None)
    assert (await world.store.get_rollout(rollout.rollout_id)).status == status
    expected = [rollout.rollout_id, other] if status == "requeuing" else [other]
    assert [r.rollout_id for r in await world.store.dequeue_rollouts(5)] == expected
    assert (await world.store.get_worker("w1")).status == "idle"


async def test_late_word_after_a_newer_attempt_decides_nothing(world: World) -> None:
    config = RolloutConfig(timeout=10, max_attempts=3, retry_condition=["timeout"])
    rollout, attempt = await claim(world, config=config)
    await end(world, rollout.rollout_id, "timeout")
    (again,) = await world.store.dequeue_rollouts(1, worker_id="w2")
    update = await world.store.update_attempt(
        rollout.rollout_id, attempt.attempt_id, status="succeeded"
    )
    assert (update.attempt.status, update.stop_reason) == ("succeeded", "superseded")
    assert await world.store.get_rollout(rollout.rollout_id) == again


async def test_requeued_rollout_that_is_revived_and_fails_is_requeued_once(world: World) -> None:
    config = RolloutConfig(
        unresponsive_timeout=10, max_attempts=3, retry_condition=["unresponsive", "failed"]
    )
    rollout, attempt = await claim(world, config=config)
    names = (rollout.rollout_id, attempt.attempt_id)
    await end(world, rollout.rollout_id, "unresponsive")
    await world.store.add_spans(batch(*names, "late"))
    assert await world.store.dequeue_rollouts(5) == []
    await world.store.update_attempt(*names, status="failed")
    (again,) = await world.store.dequeue_rollouts(5)
    assert again.attempt.sequence_number == 2


async def test_failed_attempt_frees_its_worker_and_the_watchdog_leaves_it_unknown(
    world: World,
) -> None:
    config = RolloutConfig(timeout=10, max_attempts=3, retry_condition=["failed", "timeout"])
    rollout, _ = await claim(world, config=config)
    await end(world, rollout.rollout_id, "failed")
    assert (await world.store.get_worker("w1")).status == "idle"
    await world.store.dequeue_rollouts(1, worker_id="w1")
    await end(world, rollout.rollout_id, "timeout")
    worker = await world.store.get_worker("w1")
    assert (worker.status, worker.current_rollout_id, worker.current_attempt_id) == (
        "unknown",
        "",
        "",
    )
