"""Heartbeat, GetWorker, ListWorkers."""

from __future__ import annotations

from typing import Any

import pytest
from lightningstore.client import (
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    RolloutConfig,
)
from lightningstore.service.engine.clock import Turn
from lightningstore.service.operations import workers
from lightningstore.v1.worker_pb2 import HeartbeatRequest

from tests.contract.conftest import World
from tests.contract.helpers import batch, claim, enqueue, poll, refused

pytestmark = pytest.mark.asyncio


async def test_first_heartbeat_creates_an_unknown_worker(world: World) -> None:
    reply = await world.store.heartbeat("w", stats={"load": 0.5, "n": 2**60 + 1})
    assert (reply.worker.status, reply.stops) == ("unknown", [])
    assert reply.worker.stats == {"load": 0.5, "n": 2**60 + 1}
    assert reply.worker.message.last_heartbeat_time.ToNanoseconds() == world.clock.wall_ns()
    assert await world.store.get_worker("w") == reply.worker


async def test_worker_that_is_heard_of_again_is_idle(world: World) -> None:
    await world.store.heartbeat("w")
    assert (await world.store.heartbeat("w")).worker.status == "idle"


async def test_heartbeat_without_stats_keeps_what_is_stored(world: World) -> None:
    await world.store.heartbeat("w", stats={"a": 1})
    assert (await world.store.heartbeat("w")).worker.stats == {"a": 1}


async def test_heartbeat_stamps_all_its_attempts_and_tells_which_to_stop(world: World) -> None:
    kept, _ = await claim(world)
    cancelled, _ = await claim(world)
    superseded, old = await claim(world)
    await world.store.cancel_rollouts([cancelled.rollout_id])
    await world.store.start_attempt(superseded.rollout_id)
    await world.advance(3)
    reply = await world.store.heartbeat(
        "w1",
        attempts=[
            (kept.rollout_id, "latest"),
            (cancelled.rollout_id, "latest"),
            (superseded.rollout_id, old.attempt_id),
            ("ro-none", "at-none"),
        ],
    )
    assert [(s.rollout_id, s.reason) for s in reply.stops] == [
        (cancelled.rollout_id, "rollout_cancelled"),
        (superseded.rollout_id, "superseded"),
        ("ro-none", "unknown_attempt"),
    ]
    for rollout_id in (kept.rollout_id, cancelled.rollout_id):
        attempt = await world.store.get_attempt(rollout_id)
        beat = attempt.message.last_heartbeat_time
        assert beat.ToNanoseconds() == world.clock.wall_ns()


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("worker_id", HeartbeatRequest()),
        ("worker_id", HeartbeatRequest(worker_id="x" * 257)),
        ("worker_id", HeartbeatRequest(worker_id="x\0")),
        ("stats_json", HeartbeatRequest(worker_id="w", stats_json=b"[]")),
        ("attempts[0].rollout_id", HeartbeatRequest(worker_id="w", attempts=[{}])),
        ("attempts[0].attempt_id", HeartbeatRequest(worker_id="w", attempts=[{"rollout_id": "r"}])),
    ],
)
async def test_bad_heartbeat_is_refused(
    world: World, field: str, request_: HeartbeatRequest
) -> None:
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", field):
        await world.store.call("Heartbeat", request_)


async def test_unknown_worker_is_not_found(world: World) -> None:
    async with refused(world, NotFoundError, "WORKER_NOT_FOUND", "nobody"):
        await world.store.get_worker("nobody")


async def test_workers_are_filtered_sorted_and_paged(world: World) -> None:
    for name in ("b-1", "a-2", "b-3", "a-4"):
        await world.store.heartbeat(name)
        await world.advance(1)
    await claim(world, worker_id="a-2")
    ids = [w.worker_id for w in await world.store.list_workers()]
    assert ids == ["a-2", "a-4", "b-1", "b-3"]
    busy = await world.store.list_workers(statuses=["busy"])
    assert [w.worker_id for w in busy] == ["a-2"]
    either = await world.store.list_workers(
        statuses=["busy"], worker_id_contains="b-", filter_logic="or"
    )
    assert [w.worker_id for w in either] == ["a-2", "b-1", "b-3"]
    seen: list[str] = []
    token = ""
    while True:
        page = await world.store.list_workers(
            order_by="last_heartbeat_time desc", page_size=3, page_token=token
        )
        seen += [w.worker_id for w in page]
        token = page.next_page_token
        if not token:
            break
    assert seen == ["a-4", "b-3", "a-2", "b-1"]
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "order_by"):
        await world.store.list_workers(order_by="stats")


@pytest.mark.parametrize("order", ["worker_id", "last_heartbeat_time desc"])
async def test_other_tasks_run_while_many_workers_are_sorted(
    world: World, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    """A store knows every worker that ever called it, and sorts them for each page."""
    names = [f"w{number * 7 % 10}" for number in range(10)]
    for name in names:
        await world.store.heartbeat(name)
        await world.advance(1)
    rests = 0

    class Over(Turn):
        def over(self) -> bool:
            return True

        async def next(self) -> None:
            nonlocal rests
            rests += 1
            await super().next()

    monkeypatch.setattr(workers, "Turn", Over)
    monkeypatch.setattr(workers, "WORKERS_AT_ONCE", 3)
    seen: list[str] = []
    token = ""
    while not seen or token:
        page = await world.store.list_workers(order_by=order, page_size=4, page_token=token)
        seen += [worker.worker_id for worker in page]
        token = page.next_page_token
    assert seen == (sorted(names) if order == "worker_id" else names[::-1])
    assert rests == 3 * 4
    async with refused(world, InvalidArgumentError, "PAGE_TOKEN_MISMATCH"):
        await world.store.list_workers(page_token="abc")


async def test_claim_makes_a_worker_busy_with_the_newest_of_its_attempts(world: World) -> None:
    await world.advance(1)
    await enqueue(world, 2)
    claimed = await world.store.dequeue_rollouts(2, worker_id="w")
    now = world.clock.wall_ns()
    worker = (await world.store.get_worker("w")).message
    assert worker.current_rollout_id == claimed[1].rollout_id
    assert worker.current_attempt_id == claimed[1].attempt.attempt_id
    assert worker.last_busy_time.ToNanoseconds() == worker.last_dequeue_time.ToNanoseconds() == now
    assert not worker.HasField("last_idle_time")
    assert not worker.HasField("last_heartbeat_time")
    await world.advance(1)
    more = await world.store.start_rollout(1, worker_id="w")
    worker = (await world.store.get_worker("w")).message
    assert worker.current_attempt_id == more.attempt.attempt_id
    assert worker.last_busy_time.ToNanoseconds() == now


@pytest.mark.parametrize("how", ["dequeue", "start_rollout", "start_attempt", "poll"])
async def test_every_claim_makes_its_worker_busy(world: World, how: str) -> None:
    if how == "start_rollout":
        await world.store.start_rollout(1, worker_id="w")
    elif how == "poll":
        waiting = await poll(world, limit=1, worker_id="w", wait=60)
        await enqueue(world, 1)
        await waiting
    else:
        (rollout_id,) = await enqueue(world, 1)
        if how == "dequeue":
            await world.store.dequeue_rollouts(1, worker_id="w")
        else:
            await world.store.start_attempt(rollout_id, worker_id="w")
    assert (await world.store.get_worker("w")).status == "busy"


async def test_claim_that_names_no_worker_makes_none(world: World) -> None:
    rollout, attempt = await claim(world, worker_id="")
    assert attempt.worker_id == ""
    await world.store.update_attempt(rollout.rollout_id, "latest", status="failed")
    assert await world.store.list_workers() == []


async def test_verdict_on_one_of_two_attempts_leaves_a_worker_busy(world: World) -> None:
    _, steady = await claim(world)
    await claim(world, config=RolloutConfig(timeout=5))
    await world.advance(5.25)
    worker = await world.store.get_worker("w1")
    assert (worker.status, worker.current_attempt_id) == ("busy", steady.attempt_id)


@pytest.mark.parametrize("sign", ["heartbeat", "span", "dequeue", "claim", "report"])
async def test_given_up_worker_is_unknown_until_it_is_heard_of(world: World, sign: str) -> None:
    rollout, attempt = await claim(world, config=RolloutConfig(timeout=5))
    names = (rollout.rollout_id, attempt.attempt_id)
    await world.advance(5.25)
    worker = await world.store.get_worker("w1")
    assert (worker.status, worker.current_rollout_id) == ("unknown", "")
    if sign == "heartbeat":
        await world.store.heartbeat("w1")
    elif sign == "span":
        await world.store.add_spans(batch(*names, "a"))
    elif sign == "dequeue":
        await world.store.dequeue_rollouts(1, worker_id="w1")
    elif sign == "claim":
        await world.store.start_rollout(1, worker_id="w1")
    else:
        await world.store.update_attempt(*names, status="failed")
    status = (await world.store.get_worker("w1")).status
    assert status == ("busy" if sign == "claim" else "idle")


async def test_heartbeat_of_a_busy_worker_keeps_it_busy(world: World) -> None:
    _, attempt = await claim(world)
    await world.advance(1)
    reply = await world.store.heartbeat("w1", stats={"n": 1}, attempts=[attempt])
    assert (reply.worker.status, reply.worker.current_attempt_id) == ("busy", attempt.attempt_id)
    assert reply.stops == []


async def test_heartbeat_for_an_ended_attempt_keeps_its_worker_idle(world: World) -> None:
    rollout, attempt = await claim(world)
    await world.store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
    await world.advance(1)
    reply = await world.store.heartbeat("w1", attempts=[attempt])
    assert reply.worker.status == "idle"
    assert [s.reason for s in reply.stops] == ["rollout_finished"]


async def test_worker_whose_claim_was_taken_over_is_busy_until_its_attempt_ends(
    world: World,
) -> None:
    rollout, old = await claim(world)
    await world.store.start_attempt(rollout.rollout_id, worker_id="w2")
    assert (await world.store.get_worker("w1")).current_attempt_id == old.attempt_id
    await world.store.update_attempt(rollout.rollout_id, old.attempt_id, status="failed")
    assert (await world.store.get_worker("w1")).status == "idle"
    assert (await world.store.get_worker("w2")).status == "busy"


async def test_name_given_to_an_ended_attempt_makes_nobody_busy(world: World) -> None:
    rollout, _ = await claim(world)
    await world.store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
    update = await world.store.update_attempt(rollout.rollout_id, "latest", worker_id="w2")
    assert update.attempt.worker_id == "w2"
    assert "w2" not in [w.worker_id for w in await world.store.list_workers(statuses=["busy"])]


async def test_heartbeats_of_unknown_attempts_name_what_was_asked(world: World) -> None:
    (rollout_id,) = await enqueue(world, 1)
    asked = [(rollout_id, "latest"), (rollout_id, "at-none"), ("ro-none", "latest")]
    reply = await world.store.heartbeat("w", attempts=asked)
    assert [(s.rollout_id, s.attempt_id) for s in reply.stops] == asked
    assert {s.reason for s in reply.stops} == {"unknown_attempt"}
    async with refused(world, ResourceExhaustedError, "BATCH_TOO_LARGE", "10000"):
        await world.store.heartbeat("w", attempts=asked[:1] * 10_001)


async def test_heartbeat_stamps_a_thousand_attempts(world: World) -> None:
    ids = await enqueue(world, 1000, config=RolloutConfig(unresponsive_timeout=10))
    claimed = await world.store.dequeue_rollouts(1000, worker_id="w")
    await world.advance(9)
    await world.store.heartbeat("w", attempts=claimed[:600])
    await world.advance(1.25)
    ended: Any = ()
    while len(ended) < 400:  # on a busy machine the watchdog takes several turns of the loop
        await world.settle()
        ended = await world.store.list_rollouts(statuses=["failed"], page_size=1000)
    assert [r.rollout_id for r in ended] == ids[600:]


async def test_worker_shows_the_publish_number_that_it_reported_last(world: World) -> None:
    assert (await world.store.heartbeat("w")).worker.publish_number == 0
    assert (await world.store.heartbeat("w", publish_number=7)).worker.publish_number == 7
    assert (await world.store.heartbeat("w", stats={"a": 1})).worker.publish_number == 7
    assert (await world.store.heartbeat("w", publish_number=3)).worker.publish_number == 3
    if world.durable:
        await world.restart()
    assert (await world.store.get_worker("w")).publish_number == 3
    await world.store.heartbeat("w")
    assert [w.publish_number for w in await world.store.list_workers()] == [3]


async def test_workers_are_listed_by_what_they_have_loaded(world: World) -> None:
    for n, worker_id in enumerate(("none", "old", "new", "newer")):
        await world.store.heartbeat(worker_id, publish_number=n)

    async def ids(**filters: Any) -> list[str]:
        return [w.worker_id for w in await world.store.list_workers(**filters)]

    assert await ids(min_publish_number=2) == ["new", "newer"]
    assert await ids(min_publish_number=4) == []
    assert len(await ids()) == 4
    assert await ids(min_publish_number=1, worker_id_contains="o") == ["old"]
    either = {"worker_id_contains": "none", "filter_logic": "or"}
    assert await ids(min_publish_number=3, **either) == ["newer", "none"]
    by_number = "publish_number desc"
    assert await ids(order_by=by_number) == ["newer", "new", "old", "none"]
    page = await world.store.list_workers(min_publish_number=1, page_size=2)
    assert [w.worker_id for w in page] == ["new", "newer"]
    rest = {"page_size": 2, "page_token": page.next_page_token}
    assert await ids(min_publish_number=1, **rest) == ["old"]
    async with refused(world, InvalidArgumentError, "PAGE_TOKEN_MISMATCH"):
        await world.store.list_workers(min_publish_number=2, **rest)


async def test_negative_publish_numbers_are_refused(world: World) -> None:
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "publish_number"):
        await world.store.heartbeat("w", publish_number=-1)
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "min_publish_number"):
        await world.store.list_workers(min_publish_number=-1)
