"""Task queues and labels: who is handed what, and what filters and statistics find."""

from __future__ import annotations

import asyncio

import pytest
from lightningstore.client import (
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    RolloutConfig,
)
from lightningstore.client.values import RetryBackoff
from lightningstore.v1.claim_pb2 import DequeueRolloutsRequest
from lightningstore.v1.rollout_pb2 import (
    EnqueueRolloutsRequest,
    ListRolloutsRequest,
    Rollout,
    RolloutSpec,
    UpdateRolloutRequest,
)
from lightningstore.v1.statistics_pb2 import GetStatisticsRequest

from tests.contract.conftest import World
from tests.contract.helpers import RETRY, enqueue, finish, poll, refused

pytestmark = pytest.mark.asyncio


async def claimed(world: World, *queues: str, limit: int = 9, **options: object) -> list[str]:
    """Claim from some queues; returns the ids."""
    found = await world.store.dequeue_rollouts(limit, queues=queues, **options)
    return [rollout.rollout_id for rollout in found]


async def test_claim_takes_from_the_named_queues_alone(world: World) -> None:
    (gpu,) = await enqueue(world, 1, queue="gpu")
    (cpu,) = await enqueue(world, 1, queue="cpu")
    (plain,) = await enqueue(world, 1)
    assert await claimed(world, "tpu") == []
    assert await claimed(world, "cpu") == [cpu]
    assert await claimed(world) == [plain]
    assert await claimed(world) == []
    assert await claimed(world, "cpu", "", "gpu") == [gpu]


async def test_priority_and_order_of_enqueueing_apply_across_queues(world: World) -> None:
    names = ["a", "", "b", "a", "c", ""]
    priorities = [0, 1, 0, 2, 9, 0]
    ids = [
        (await world.store.enqueue_rollout(n, queue=name, priority=priority)).rollout_id
        for n, (name, priority) in enumerate(zip(names, priorities, strict=True))
    ]
    assert await claimed(world, "b", "a", "", "a", limit=3) == [ids[3], ids[1], ids[0]]
    assert await claimed(world, "b", "a", "") == [ids[2], ids[5]]
    assert await claimed(world, "c") == [ids[4]]


async def test_queues_and_modes_filter_together(world: World) -> None:
    specs = [
        {"input": 1, "queue": queue, "mode": mode}
        for queue in ("a", "b")
        for mode in ("train", "val", None)
    ]
    ids = [r.rollout_id for r in await world.store.enqueue_rollouts(specs)]
    assert await claimed(world, "b", modes=["val", None]) == ids[4:]
    assert await claimed(world, "b", "a", modes=["train"]) == [ids[0], ids[3]]


async def test_queue_and_labels_are_kept(world: World) -> None:
    labels = {"run": "7", "a/b.c-d_E": "any text: é = 🦀", "empty": ""}
    made = await world.store.enqueue_rollout(1, queue="gpu-a100.eu", labels=labels)
    if world.durable:
        await world.restart()
    stored = await world.store.get_rollout(made.rollout_id)
    assert (stored.queue, stored.labels) == ("gpu-a100.eu", labels)
    assert await claimed(world, "gpu-a100.eu") == [made.rollout_id]
    started = await world.store.start_rollout(1, queue="q", labels={"a": "1"}, config=RETRY)
    assert (started.queue, started.labels) == ("q", {"a": "1"})
    await world.store.update_attempt(started.rollout_id, "latest", status="failed")
    assert await claimed(world) == []
    assert await claimed(world, "q") == [started.rollout_id]


async def test_retry_waits_in_the_queue_of_its_rollout(world: World) -> None:
    backoff = RetryBackoff(initial_delay=5)
    config = RolloutConfig(max_attempts=3, retry_condition=["failed"], retry_backoff=backoff)
    (rollout_id,) = await enqueue(world, 1, queue="gpu", config=config)
    await claimed(world, "gpu")
    await world.store.update_attempt(rollout_id, "latest", status="failed")
    assert (await world.store.get_statistics()).queues == {"gpu": 1}
    assert await claimed(world, "gpu") == []
    if world.durable:
        await world.restart()
    waiting = await poll(world, limit=1, wait=60, queues=["gpu"])
    await world.advance(6)
    assert [r.rollout_id for r in await waiting] == [rollout_id]
    assert (await world.store.get_statistics()).queues == {}


async def test_rollout_that_moves_keeps_its_place_in_time(world: World) -> None:
    ids = await enqueue(world, 2)
    others = await enqueue(world, 2, queue="other")
    last = await enqueue(world, 1)
    for name in ("other", "third", "other"):
        await world.store.update_rollout(ids[1], queue=name)
        await world.store.update_rollout(last[0], queue=name)
    assert (await world.store.get_rollout(ids[1])).queue == "other"
    assert (await world.store.get_statistics()).queues == {"other": 4, "": 1}
    if world.durable:
        await world.restart()
    assert await claimed(world) == [ids[0]]
    assert await claimed(world, "other") == [ids[1], *others, *last]


async def test_rollout_that_moves_wakes_the_poll_of_its_new_queue(world: World) -> None:
    (rollout_id,) = await enqueue(world, 1)
    waiting = await poll(world, limit=1, wait=60, queues=["gpu"])
    await world.store.update_rollout(rollout_id, queue="gpu")
    assert [r.rollout_id for r in await waiting] == [rollout_id]


async def test_queue_of_a_rollout_in_its_back_off_changes(world: World) -> None:
    backoff = RetryBackoff(initial_delay=5)
    config = RolloutConfig(max_attempts=3, retry_condition=["failed"], retry_backoff=backoff)
    (rollout_id,) = await enqueue(world, 1, config=config)
    await finish(world, rollout_id, "failed")
    await world.store.update_rollout(rollout_id, queue="gpu")
    assert (await world.store.get_statistics()).queues == {"gpu": 1}
    await world.advance(6)
    assert await claimed(world) == []
    assert await claimed(world, "gpu") == [rollout_id]


async def test_queue_changes_together_with_the_status(world: World) -> None:
    (rollout_id,) = await enqueue(world, 1)
    await finish(world, rollout_id)
    await world.store.update_rollout(rollout_id, queue="again", status="queuing")
    assert (await world.store.get_statistics()).queues == {"again": 1}
    assert await claimed(world, "again") == [rollout_id]
    await world.store.update_rollout(rollout_id, queue=None)
    assert (await world.store.get_rollout(rollout_id)).queue == ""
    assert (await world.store.get_statistics()).queues == {}


async def test_polls_are_served_first_come_first_served_across_queues(world: World) -> None:
    both = await poll(world, limit=1, wait=60, queues=["a", "b"])
    only_b = await poll(world, limit=1, wait=60, queues=["b"])
    same = await poll(world, limit=1, wait=60, queues=["b", "a"])
    val = await poll(world, limit=1, wait=60, queues=["a"], modes=["val"])
    default = await poll(world, limit=1, wait=60)
    specs = [{"input": n, "queue": queue} for n, queue in enumerate(["b", "a", "b", "", "a"])]
    ids = [r.rollout_id for r in await world.store.enqueue_rollouts(specs)]
    expected = {both: ids[0], only_b: ids[2], same: ids[1], default: ids[3]}
    assert {task: (await task)[0].rollout_id for task in expected} == expected
    assert not val.done()
    (wanted,) = await enqueue(world, 1, queue="a", mode="val")
    assert [r.rollout_id for r in await val] == [wanted]
    assert await claimed(world, "a") == [ids[4]]


async def test_poll_that_leaves_gives_its_turn_to_the_next(world: World) -> None:
    tasks = [await poll(world, limit=1, wait=60, queues=["a", "b"]) for _ in range(3)]
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    while (await world.store.get_statistics()).waiter_count != 2:
        await asyncio.sleep(0.001)
    (first,) = await enqueue(world, 1, queue="b")
    assert [r.rollout_id for r in await tasks[1]] == [first]
    (second,) = await enqueue(world, 1, queue="a")
    assert [r.rollout_id for r in await tasks[2]] == [second]
    (third,) = await enqueue(world, 1, queue="a")
    assert await claimed(world, "a") == [third]


async def test_claims_of_a_request_id_are_those_of_its_queues(world: World) -> None:
    (first,) = await enqueue(world, 1, queue="a")
    assert await claimed(world, "a", request_id="q") == [first]
    await enqueue(world, 1, queue="a")
    assert await claimed(world, "a", request_id="q") == [first]
    async with refused(world, InvalidArgumentError, "REQUEST_ID_REUSED", "q"):
        await claimed(world, "b", request_id="q")


async def test_statistics_count_the_rollouts_of_each_queue(world: World) -> None:
    assert (await world.store.get_statistics()).queues == {}
    await enqueue(world, 3, queue="a")
    await enqueue(world, 1)
    (last,) = await enqueue(world, 1, queue="b")
    statistics = await world.store.get_statistics()
    assert list(statistics.queues.items()) == [("a", 3), ("", 1), ("b", 1)]
    assert (statistics.queue_count, statistics.queue_depth) == (3, 5)
    await world.store.cancel_rollouts([last])
    await claimed(world, "a", limit=1)
    assert (await world.store.get_statistics()).queues == {"a": 2, "": 1}
    if world.durable:
        await world.restart()
        assert (await world.store.get_statistics()).queues == {"a": 2, "": 1}


async def test_statistics_show_the_hundred_longest_queues(world: World) -> None:
    specs = [{"input": n, "queue": f"q{n:04}"} for n in range(1500)]
    await world.store.enqueue_rollouts([*specs, *specs[1490:], *specs[1490:]])
    statistics = await world.store.get_statistics()
    assert statistics.queue_count == 1500
    longest = [f"q{n}" for n in range(1490, 1500)] + [f"q{n:04}" for n in range(90)]
    assert list(statistics.queues) == longest
    assert list(statistics.queues.values()) == [3] * 10 + [1] * 90


async def test_labels_count_rollouts_by_status(world: World) -> None:
    ids = await enqueue(world, 4, labels={"run": "7", "split": "a"})
    await enqueue(world, 2, labels={"run": "7"})
    await enqueue(world, 2, labels={"run": "8", "split": "a"})
    await finish(world, ids[0])
    statistics = await world.store.get_statistics(labels={"split": "a", "run": "7"})
    assert statistics.matching_rollouts == {"queuing": 3, "succeeded": 1}
    assert statistics.rollouts == {"queuing": 7, "succeeded": 1}
    assert (await world.store.get_statistics(labels={"run": "9"})).matching_rollouts == {}
    assert (await world.store.get_statistics()).matching_rollouts == {}


async def test_labels_are_replaced_and_cleared(world: World) -> None:
    (rollout_id,) = await enqueue(world, 1, labels={"a": "1", "b": "2"})

    async def found(**labels: str) -> bool:
        return len(await world.store.list_rollouts(labels=labels)) == 1

    await world.store.update_rollout(rollout_id, labels={"a": "9", "c": "3"})
    assert (await world.store.get_rollout(rollout_id)).labels == {"a": "9", "c": "3"}
    assert [await found(a="1"), await found(b="2")] == [False, False]
    assert await found(a="9", c="3")
    await world.store.update_rollout(rollout_id, priority=3)
    assert await found(c="3")
    await world.store.update_rollout(rollout_id, labels=None)
    assert (await world.store.get_rollout(rollout_id)).labels == {}
    assert not await found(a="9")


async def test_labels_of_deleted_rollouts_are_found_no_more(world: World) -> None:
    ids = await enqueue(world, 3, labels={"a": "1"}, queue="q")
    await world.store.cancel_rollouts(ids[:2])
    await world.store.delete_rollouts(ids[:2])
    page = await world.store.list_rollouts(labels={"a": "1"}, queues=["q"], include_total_size=True)
    assert ([r.rollout_id for r in page], page.total_size) == ([ids[2]], 1)
    await world.store.enqueue_rollout(1, rollout_id=ids[0])
    assert len(await world.store.list_rollouts(labels={"a": "1"})) == 1


BAD_QUEUES = ["A", "-a", "a-", "a b", "é", "a" * 64, "a/b", "\0"]
BAD_LABELS = [
    {"": "x"},
    {"a b": "x"},
    {"é": "x"},
    {"a=b": "x"},
    {"k" * 64: "x"},
    {"a": "x" * 64},
    {"a": "x\0"},
    {f"k{n}": "" for n in range(33)},
]


@pytest.mark.parametrize("queue", BAD_QUEUES)
async def test_bad_queue_is_named(world: World, queue: str) -> None:
    (rollout_id,) = await enqueue(world, 1)
    good, bad = RolloutSpec(input_json=b"1"), RolloutSpec(input_json=b"1", queue=queue)
    record = Rollout(rollout_id=rollout_id, queue=queue)
    for method, request, field in (
        ("EnqueueRollouts", EnqueueRolloutsRequest(rollouts=[good, bad]), "rollouts[1].queue"),
        ("DequeueRollouts", DequeueRolloutsRequest(limit=1, queues=["", queue]), "queues[1]"),
        ("UpdateRollout", UpdateRolloutRequest(rollout=record), "rollout.queue"),
    ):
        async with refused(world, InvalidArgumentError, "FIELD_INVALID", field):
            await world.store.call(method, request)


@pytest.mark.parametrize("labels", BAD_LABELS, ids=range(len(BAD_LABELS)))
async def test_bad_labels_are_named(world: World, labels: dict[str, str]) -> None:
    (rollout_id,) = await enqueue(world, 1)
    spec = RolloutSpec(input_json=b"1", labels=labels)
    record = Rollout(rollout_id=rollout_id, labels=labels)
    for method, request, field in (
        ("EnqueueRollouts", EnqueueRolloutsRequest(rollouts=[spec]), "rollouts[0].labels"),
        ("UpdateRollout", UpdateRolloutRequest(rollout=record), "rollout.labels"),
        ("ListRollouts", ListRolloutsRequest(labels=labels), "labels"),
        ("GetStatistics", GetStatisticsRequest(labels=labels), "labels"),
    ):
        async with refused(world, InvalidArgumentError, "FIELD_INVALID", field):
            await world.store.call(method, request)


async def test_largest_queue_name_and_labels(world: World) -> None:
    labels = {f"{n:02}" + "k" * 61: "🦀" * 63 for n in range(32)}
    made = await world.store.enqueue_rollout(1, queue="q" * 63, labels=labels)
    assert await claimed(world, "q" * 63) == [made.rollout_id]
    assert len(await world.store.list_rollouts(labels=labels)) == 1


async def test_claim_names_a_thousand_queues_at_most(world: World) -> None:
    await enqueue(world, 1, queue="q999")
    names = [f"q{n}" for n in range(1001)]
    async with refused(world, ResourceExhaustedError, "BATCH_TOO_LARGE", "queues"):
        await claimed(world, *names)
    assert len(await claimed(world, *names[:1000])) == 1


async def test_unknown_rollout_is_not_moved(world: World) -> None:
    async with refused(world, NotFoundError, "ROLLOUT_NOT_FOUND", "ro-none"):
        await world.store.update_rollout("ro-none", queue="q")
