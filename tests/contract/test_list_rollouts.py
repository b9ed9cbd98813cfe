"""ListRollouts and ListWorkers against a plain reading of their filters, orders and pages."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from lightningstore.client import Failure, InvalidArgumentError, ResourceExhaustedError, Rollout
from lightningstore.v1.rollout_pb2 import ListRolloutsRequest
from lightningstore.v1.worker_pb2 import ListWorkersRequest

from tests.contract.conftest import World
from tests.contract.helpers import RETRY, batch, enqueue, finish, refused

pytestmark = pytest.mark.asyncio

ORDERS = [
    "",
    "rollout_id",
    "mode desc",
    "priority",
    "group_id desc",
    "status",
    "start_time desc",
    "end_time",
    "attempt_count desc",
    "latest_attempt_id",
    "completion_number",
    "queue",
]
FILTERS: dict[str, tuple[Any, Callable[[Rollout], bool]]] = {
    "statuses": (
        ["queuing", "succeeded", "requeuing"],
        lambda r: r.status in ("queuing", "succeeded", "requeuing"),
    ),
    "rollout_ids": (
        ["ro-3", "ro-a", "none", "ro-11"],
        lambda r: r.rollout_id in ("ro-3", "ro-a", "ro-11"),
    ),
    "rollout_id_contains": ("1", lambda r: "1" in r.rollout_id),
    "modes": (["val", None], lambda r: r.mode in ("val", None)),
    "group_ids": (["g1", ""], lambda r: r.group_id in ("g1", "")),
    "queues": (["gpu", ""], lambda r: r.queue in ("gpu", "")),
    "labels": (
        {"run": "7", "split": "a"},
        lambda r: (r.labels.get("run"), r.labels.get("split")) == ("7", "a"),
    ),
    "failure_contains": (
        "OUT: no answer from ro-",
        lambda r: r.rollout_id in ("ro-2", "ro-8", "RO-1"),
    ),
}


async def zoo(world: World) -> list[str]:
    """Make rollouts of every kind; returns their ids in the order of enqueueing."""
    ids = [f"ro-{n}" for n in range(12)] + ["ro-a", "ro-A", "RO-1", "ro-ü", "x" * 256]
    for n, rollout_id in enumerate(ids):
        await world.store.enqueue_rollout(
            n,
            rollout_id=rollout_id,
            mode=["train", "val", "test", None][n % 4],
            priority=(n * 5) % 7 - 3,
            group_id=["g1", "g2", ""][n % 3],
            queue=["", "gpu", "cpu"][n // 2 % 3],
            labels=dict([("run", str(7 + n % 2)), ("split", "ab"[n // 4 % 2])][: n % 4]),
            config=RETRY,
        )
        if n % 2:
            await world.advance(1)
        kind = n % 6
        if kind == 1:
            await finish(world, rollout_id)
        elif kind == 2:
            failure = Failure("TimedOut", f"no answer from {rollout_id}")
            await fail(world, rollout_id, failure)  # waits for its retry
        elif kind == 3:
            await world.store.cancel_rollouts([rollout_id])
        elif kind == 4:
            await world.store.start_attempt(rollout_id)
            await world.store.add_spans(batch(rollout_id, "latest", "a"))
    return ids


async def fail(world: World, rollout_id: str, failure: Failure) -> None:
    await world.store.start_attempt(rollout_id)
    await world.store.update_attempt(rollout_id, "latest", status="failed", failure=failure)


async def listed(world: World, **query: Any) -> list[str]:
    return [r.rollout_id async for r in world.store.iter_rollouts(**query)]


async def test_filters_mean_what_they_say_alone_and_together(world: World) -> None:
    ids = await zoo(world)
    everything = [r async for r in world.store.iter_rollouts()]
    assert [r.rollout_id for r in everything] == ids
    dice = random.Random(3)
    for n in range(60):
        chosen = dice.sample(sorted(FILTERS), 1 + n % 4)
        logic = "or" if n % 3 == 0 else "and"
        query = {name: FILTERS[name][0] for name in chosen}
        combine = any if logic == "or" else all
        expected = [
            r.rollout_id for r in everything if combine(FILTERS[name][1](r) for name in chosen)
        ]
        assert await listed(world, **query, filter_logic=logic, page_size=4) == expected, chosen
        page = await world.store.list_rollouts(
            **query, filter_logic=logic, page_size=1, include_total_size=True
        )
        assert page.total_size == len(expected)


async def test_text_is_searched_in_the_failure_of_the_latest_attempt_alone(world: World) -> None:
    store = world.store
    ids = await enqueue(world, 9, config=RETRY)
    lost = Failure("ValueError", "The Result is lost\n\x00Größe 7")
    for rollout_id in (ids[0], ids[5], ids[6], ids[8]):
        await fail(world, rollout_id, lost)
    await fail(world, ids[1], Failure("", "value: the result is LOST"))
    await fail(world, ids[2], Failure("ValueError", ""))
    # Elsewhere in the record of the attempt, of an earlier attempt, and in that of the rollout.
    await store.start_attempt(ids[3], worker_id="result is lost")
    await store.update_attempt(ids[3], "latest", metadata={"result is lost": 1})
    await store.start_attempt(ids[5])
    await store.update_rollout(ids[7], metadata={"result is lost": 1})
    expected = [ids[0], ids[1], ids[6], ids[8]]
    assert await listed(world, failure_contains="result IS lost") == expected
    assert await listed(world, failure_contains="error: the result") == [ids[0], ids[6], ids[8]]
    assert await listed(world, failure_contains="error: value") == []
    assert await listed(world, failure_contains="valueerror") == [ids[0], ids[2], ids[6], ids[8]]
    assert await listed(world, failure_contains=": ") == expected
    assert await listed(world, failure_contains="\x00Größe") == [ids[0], ids[6], ids[8]]
    assert await listed(world, failure_contains="GRÖSSE") == []
    for order in ("", "start_time desc", "reward", "priority desc"):
        query = {"failure_contains": "result is lost", "order_by": order}
        whole = await listed(world, **query)
        assert sorted(whole) == sorted(expected)
        for size in (1, 2, 3, 4):
            assert await listed(world, **query, page_size=size) == whole
        page = await store.list_rollouts(**query, skip=1, page_size=2, include_total_size=True)
        assert ([r.rollout_id for r in page], page.total_size) == (whole[1:3], 4)
    either = {"failure_contains": "result is lost", "filter_logic": "or"}
    assert await listed(world, **either) == expected
    page = await store.list_rollouts(**either, rollout_ids=[ids[3]], include_total_size=True)
    assert [r.rollout_id for r in page] == [ids[0], ids[1], ids[3], ids[6], ids[8]]
    assert page.total_size == 5


async def test_payloads_are_left_out_on_request(world: World) -> None:
    store = world.store
    large, bare = "x" * 500_000, 2_000
    for n in range(3):
        await store.enqueue_rollout(large, rollout_id=f"ro-{n}", metadata={"m": n})
    await fail(world, "ro-0", Failure("Lost", "no answer"))
    await store.update_attempt("ro-0", "latest", metadata={"a": 1})
    full = await store.call("ListRollouts", ListRolloutsRequest(order_by="rollout_id"))
    request = ListRolloutsRequest(order_by="rollout_id", omit_payloads=True)
    answer = await store.call("ListRollouts", request)
    assert answer.ByteSize() < bare
    expected = full.rollouts
    for rollout in expected:
        assert len(rollout.input_json) > len(large)
        for field in ("input_json", "metadata_json"):
            rollout.ClearField(field)
        rollout.payloads_omitted = True
    expected[0].latest_attempt.ClearField("metadata_json")
    assert list(answer.rollouts) == list(expected)
    assert answer.rollouts[0].latest_attempt.failure.message == "no answer"
    first = await store.list_rollouts(page_size=1, omit_payloads=True)
    with pytest.raises(LookupError, match="get_rollout"):
        _ = first[0].input
    rest = await store.list_rollouts(page_token=first.next_page_token)
    assert [r.metadata for r in rest] == [{"m": 1}, {"m": 2}]


async def test_page_without_payloads_holds_more_rollouts(world: World) -> None:
    """The bytes of inputs do not count for the size of a page that leaves them out."""
    large = "x" * (9 << 20)
    for _ in range(8):
        await world.store.enqueue_rollout(large)
    assert len(await world.store.list_rollouts()) < 8
    page = await world.store.list_rollouts(omit_payloads=True)
    assert (len(page), page.next_page_token) == (8, "")
    assert len(await listed(world, omit_payloads=True, failure_contains="x")) == 0


@pytest.mark.parametrize("order", ORDERS)
async def test_order_is_total_and_pages_cut_it_anywhere(world: World, order: str) -> None:
    ids = await zoo(world)
    whole = await listed(world, order_by=order)
    assert sorted(whole) == sorted(ids)
    for size in (1, 5, 17):
        assert await listed(world, order_by=order, page_size=size) == whole
    query = {"modes": ["val", "test"], "order_by": order}
    part = await listed(world, **query)
    assert part == [i for i in whole if i in set(part)]
    page = await world.store.list_rollouts(**query, skip=3, page_size=2)
    assert [r.rollout_id for r in page] == part[3:5]


async def test_missing_values_sort_first_and_last_descending(world: World) -> None:
    ids = await enqueue(world, 3)
    await finish(world, ids[1])
    for field in ("end_time", "latest_attempt_id", "completion_number"):
        assert (await listed(world, order_by=field))[-1] == ids[1]
        assert (await listed(world, order_by=f"{field} desc"))[0] == ids[1]


async def test_direction_may_be_said_and_spaces_do_not_matter(world: World) -> None:
    ids = await enqueue(world, 3)
    assert await listed(world, order_by="start_time asc") == ids
    assert await listed(world, order_by="  priority   desc ") == ids[::-1]


async def test_page_size_is_a_hundred_by_default_and_capped(world: World) -> None:
    await enqueue(world, 1100)
    assert len(await world.store.list_rollouts()) == 100
    page = await world.store.list_rollouts(page_size=5000)
    assert len(page) == 1000
    rest = await world.store.list_rollouts(page_token=page.next_page_token, page_size=5000)
    assert (len(rest), rest.next_page_token) == (100, "")


async def test_page_size_may_change_from_page_to_page(world: World) -> None:
    ids = await enqueue(world, 6)
    first = await world.store.list_rollouts(page_size=1)
    second = await world.store.list_rollouts(page_size=3, page_token=first.next_page_token)
    third = await world.store.list_rollouts(page_token=second.next_page_token)
    assert [r.rollout_id for r in [*first, *second, *third]] == ids


async def test_skip_beyond_the_end_is_empty(world: World) -> None:
    await enqueue(world, 3)
    page = await world.store.list_rollouts(skip=3, include_total_size=True)
    assert (list(page), page.next_page_token, page.total_size) == ([], "", 3)


async def test_empty_store_has_one_empty_page(world: World) -> None:
    page = await world.store.list_rollouts(include_total_size=True)
    assert (list(page), page.next_page_token, page.total_size) == ([], "", 0)


@pytest.mark.parametrize("order", ["", "priority", "rollout_id desc", "start_time"])
async def test_pages_are_complete_while_everything_moves(world: World, order: str) -> None:
    kept = await enqueue(world, 60, mode="train")
    moving = await enqueue(world, 60, mode="val", config=RETRY)

    async def write() -> None:
        for rollout_id in moving:
            await finish(world, rollout_id)
            await world.store.enqueue_rollout(0, mode="test", priority=1)

    writer = asyncio.create_task(write())
    rounds = 0
    while not writer.done() or not rounds:
        seen = await listed(world, order_by=order, page_size=7)
        assert len(seen) == len(set(seen))
        assert set(kept + moving) <= set(seen)
        rounds += 1
        await asyncio.sleep(0)  # reading in process may not let others run
    await writer


async def test_token_survives_a_restart(world: World) -> None:
    ids = await enqueue(world, 6)
    first = await world.store.list_rollouts(page_size=4)
    if world.durable:
        await world.restart()
    rest = await world.store.list_rollouts(page_token=first.next_page_token)
    assert [r.rollout_id for r in rest] == ids[4:]


@pytest.mark.parametrize(
    ("kind", "reason", "text", "request_"),
    [
        (
            InvalidArgumentError,
            "FIELD_INVALID",
            "filter_logic",
            ListRolloutsRequest(filter_logic=7),
        ),
        (InvalidArgumentError, "FIELD_INVALID", "order_by", ListRolloutsRequest(order_by="a b c")),
        (
            ResourceExhaustedError,
            "BATCH_TOO_LARGE",
            "10000",
            ListRolloutsRequest(rollout_ids=["x"] * 10_001),
        ),
    ],
)
async def test_bad_request_is_refused(
    world: World, kind: type[Exception], reason: str, text: str, request_: ListRolloutsRequest
) -> None:
    async with refused(world, kind, reason, text):
        await world.store.call("ListRollouts", request_)


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("statuses[0]", ListWorkersRequest(statuses=[0])),
        ("statuses[1]", ListWorkersRequest(statuses=[1, 8])),
        ("page_size", ListWorkersRequest(page_size=-1)),
        ("filter_logic", ListWorkersRequest(filter_logic=5)),
        ("order_by", ListWorkersRequest(order_by="worker_id up")),
    ],
)
async def test_bad_list_of_workers_is_refused(
    world: World, field: str, request_: ListWorkersRequest
) -> None:
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", field):
        await world.store.call("ListWorkers", request_)


@pytest.mark.parametrize(
    "field",
    [
        "worker_id",
        "status",
        "last_heartbeat_time",
        "last_dequeue_time",
        "last_busy_time",
        "last_idle_time",
        "current_rollout_id",
        "current_attempt_id",
    ],
)
async def test_workers_sort_by_every_field_both_ways(world: World, field: str) -> None:
    await enqueue(world, 3)
    for n in range(9):
        if n % 3 == 0:
            await world.store.heartbeat(f"w{n * 7 % 9}")
        else:
            await world.store.dequeue_rollouts(1, worker_id=f"w{n * 7 % 9}")
        await world.advance(1)

    async def pages(order: str, size: int) -> list[str]:
        seen: list[str] = []
        token = ""
        while True:
            page = await world.store.list_workers(order_by=order, page_size=size, page_token=token)
            seen += [w.worker_id for w in page]
            token = page.next_page_token
            if not token:
                return seen

    whole = await pages(field, 100)
    assert sorted(whole) == [f"w{n}" for n in range(9)]
    assert await pages(field, 2) == whole
    assert await pages(f"{field} desc", 4) == whole[::-1]
    workers = {w.worker_id: w.message for w in await world.store.list_workers()}
    values = [getattr(workers[i], field) for i in whole]
    if field.endswith("_time"):
        values = [value.ToNanoseconds() for value in values]
    assert values == sorted(values)


async def test_answers_are_copies(world: World) -> None:
    await enqueue(world, 1, group_id="g")
    (first,) = await world.store.list_rollouts()
    first.message.group_id = "changed"
    first.message.config.max_attempts = 9
    (again,) = await world.store.list_rollouts()
    assert (again.group_id, again.config.max_attempts) == ("g", 1)
    worker = (await world.store.heartbeat("w", stats={"a": 1})).worker
    worker.message.stats_json = b"{}"
    (stored,) = await world.store.list_workers()
    assert stored.stats == {"a": 1}
