"""ListRollouts, UpdateRollout, CancelRollouts."""

from __future__ import annotations

import pytest
from lightningstore.client import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    RolloutConfig,
)
from lightningstore.v1.rollout_pb2 import ListRolloutsRequest, Rollout, UpdateRolloutRequest

from tests.contract.conftest import World
from tests.contract.helpers import RETRY, batch, claim, enqueue, finish, refused

pytestmark = pytest.mark.asyncio


async def listed(world: World, **query: object) -> list[str]:
    return [r.rollout_id async for r in world.store.iter_rollouts(**query)]


async def test_list_without_order_is_the_order_of_enqueueing(world: World) -> None:
    ids = await enqueue(world, 7)
    await finish(world, ids[3])
    assert await listed(world) == ids
    page = await world.store.list_rollouts(page_size=3)
    assert [r.rollout_id for r in page] == ids[:3]
    assert page.total_size is None
    assert (await world.store.list_rollouts(page_size=7)).next_page_token == ""


async def test_filters_pick_and_combine(world: World) -> None:
    train = await enqueue(world, 2, mode="train", group_id="a")
    val = await enqueue(world, 2, mode="val", group_id="b")
    (plain,) = await enqueue(world, 1)
    await finish(world, train[0])
    await finish(world, val[0], "failed")
    assert await listed(world, statuses=["succeeded"]) == [train[0]]
    assert await listed(world, statuses=["succeeded", "failed"]) == [train[0], val[0]]
    assert await listed(world, modes=["val"]) == val
    assert await listed(world, modes=[0]) == [plain]
    assert await listed(world, group_ids=["a", "b"]) == [*train, *val]
    assert await listed(world, group_ids=[""]) == [plain]
    assert await listed(world, rollout_ids=[plain, "nobody", train[1]]) == [train[1], plain]
    assert await listed(world, rollout_id_contains=plain[5:]) == [plain]
    assert await listed(world, modes=["train"], statuses=["queuing"]) == [train[1]]
    both = await listed(world, modes=["train"], statuses=["failed"], filter_logic="or")
    assert both == [*train, val[0]]
    assert await listed(world, modes=["train"], statuses=["failed"]) == []


@pytest.mark.parametrize("text", ["%", "_", "A", "'; --", "\\"])
async def test_substring_is_taken_literally(world: World, text: str) -> None:
    await world.store.enqueue_rollout(1, rollout_id=f"x{text}y")
    await world.store.enqueue_rollout(1, rollout_id="xaby")
    assert await listed(world, rollout_id_contains=f"x{text}") == [f"x{text}y"]
    assert await listed(world, rollout_ids=[f"x{text}y"]) == [f"x{text}y"]
    assert (await world.store.get_rollout(f"x{text}y")).rollout_id == f"x{text}y"


@pytest.mark.parametrize(
    "field",
    [
        "rollout_id",
        "mode",
        "priority",
        "group_id",
        "resources_id",
        "status",
        "start_time",
        "end_time",
        "attempt_count",
        "latest_attempt_id",
        "completion_number",
    ],
)
async def test_every_field_sorts_both_ways_and_pages_without_doubles(
    world: World, field: str
) -> None:
    for i in range(9):
        spec = {"mode": ["train", "val", None][i % 3], "priority": i % 4, "group_id": f"g{i % 2}"}
        (rollout_id,) = await enqueue(world, 1, **spec)
        await world.advance(1)
        if i % 3 == 0:
            await finish(world, rollout_id)
    ascending = await listed(world, order_by=field, page_size=2)
    descending = await listed(world, order_by=f"{field} desc", page_size=4)
    assert len(set(ascending)) == 9
    assert descending == ascending[::-1]
    values = {r.rollout_id: getattr(r.message, field) async for r in world.store.iter_rollouts()}
    key = (lambda v: v.ToNanoseconds()) if field.endswith("_time") else (lambda v: v)
    assert [key(values[i]) for i in ascending] == sorted(key(v) for v in values.values())


async def test_pages_are_complete_while_others_write(world: World) -> None:
    ids = await enqueue(world, 10)
    first = await world.store.list_rollouts(page_size=4, statuses=["queuing"])
    await world.store.cancel_rollouts(ids[:2])
    await enqueue(world, 3)
    rest = [
        r.rollout_id
        for r in await world.store.list_rollouts(
            page_size=100, statuses=["queuing"], page_token=first.next_page_token
        )
    ]
    assert rest[:6] == ids[4:]
    assert len(rest) == 9


async def test_skip_and_total_size(world: World) -> None:
    ids = await enqueue(world, 6, mode="train")
    await finish(world, ids[0])
    page = await world.store.list_rollouts(skip=4, include_total_size=True)
    assert ([r.rollout_id for r in page], page.total_size) == (ids[4:], 6)
    page = await world.store.list_rollouts(statuses=["succeeded"], include_total_size=True)
    assert page.total_size == 1
    page = await world.store.list_rollouts(
        modes=["train"], statuses=["queuing"], page_size=1, include_total_size=True
    )
    assert page.total_size == 5


@pytest.mark.parametrize(
    ("request_", "reason", "text"),
    [
        (ListRolloutsRequest(page_size=-1), "FIELD_INVALID", "page_size"),
        (ListRolloutsRequest(skip=-1), "FIELD_INVALID", "skip"),
        (ListRolloutsRequest(order_by="input"), "FIELD_INVALID", "order_by"),
        (ListRolloutsRequest(order_by="status down"), "FIELD_INVALID", "order_by"),
        (ListRolloutsRequest(statuses=[0]), "FIELD_INVALID", "statuses[0]"),
        (ListRolloutsRequest(modes=[9]), "FIELD_INVALID", "modes[0]"),
        (ListRolloutsRequest(page_token="xyz"), "PAGE_TOKEN_MISMATCH", "page_token"),
        (ListRolloutsRequest(page_token="ünïcode"), "PAGE_TOKEN_MISMATCH", "page_token"),
        (ListRolloutsRequest(page_token="W10="), "PAGE_TOKEN_MISMATCH", "page_token"),
    ],
)
async def test_bad_list_request_is_refused(
    world: World, request_: ListRolloutsRequest, reason: str, text: str
) -> None:
    async with refused(world, InvalidArgumentError, reason, text):
        await world.store.call("ListRollouts", request_)


async def test_page_token_is_bound_to_its_filter_and_order(world: World) -> None:
    await enqueue(world, 4)
    token = (await world.store.list_rollouts(page_size=2)).next_page_token
    for other in ({"statuses": ["queuing"]}, {"order_by": "start_time"}):
        async with refused(world, InvalidArgumentError, "PAGE_TOKEN_MISMATCH"):
            await world.store.list_rollouts(page_token=token, **other)


async def test_update_changes_the_named_fields_alone(world: World) -> None:
    await world.store.add_resources({"a": 1}, resources_id="rs")
    (rollout_id,) = await enqueue(world, 1, metadata={"a": 1}, group_id="g", mode="train")
    changed = await world.store.update_rollout(
        rollout_id, input={"new": 1}, priority=3, config=RolloutConfig(max_attempts=2)
    )
    assert (changed.input, changed.priority, changed.config.max_attempts) == ({"new": 1}, 3, 2)
    assert (changed.metadata, changed.group_id, changed.mode) == ({"a": 1}, "g", "train")
    cleared = await world.store.update_rollout(
        rollout_id, metadata=None, group_id=None, mode=None, resources_id=None, config=None
    )
    assert (cleared.metadata, cleared.group_id, cleared.mode) == ({}, "", None)
    assert cleared.resources_id == ""
    assert cleared.message.config.max_attempts == 1
    assert await world.store.get_rollout(rollout_id) == cleared
    if world.durable:
        await world.restart()
        assert await world.store.get_rollout(rollout_id) == cleared


async def test_new_priority_and_mode_move_a_queued_rollout(world: World) -> None:
    ids = await enqueue(world, 3)
    await world.store.update_rollout(ids[2], priority=1)
    await world.store.update_rollout(ids[1], mode="val")
    assert [r.rollout_id for r in await world.store.dequeue_rollouts(1)] == [ids[2]]
    claimed = await world.store.dequeue_rollouts(5, modes=["val"])
    assert [r.rollout_id for r in claimed] == [ids[1]]
    assert [r.rollout_id for r in await world.store.dequeue_rollouts(5)] == [ids[0]]


@pytest.mark.parametrize("status", ["queuing", "requeuing"])
async def test_requeue_puts_a_rollout_in_the_queue_exactly_once(world: World, status: str) -> None:
    rollout, _ = await claim(world)
    for _ in range(2):
        await world.store.update_rollout(rollout.rollout_id, status=status)
    assert (await world.store.get_statistics()).queue_depth == 1
    assert len(await world.store.dequeue_rollouts(5)) == 1


async def test_explicit_status_reopens_a_finished_rollout(world: World) -> None:
    (rollout_id,) = await enqueue(world, 1)
    await world.store.cancel_rollouts([rollout_id])
    again = await world.store.update_rollout(rollout_id, status="queuing")
    assert (again.status, again.end_time, again.completion_number) == ("queuing", None, 0)
    assert len(await world.store.dequeue_rollouts(1)) == 1


async def test_new_config_moves_the_deadline_of_a_live_attempt(world: World) -> None:
    rollout, _ = await claim(world, config=RolloutConfig(timeout=100))
    await world.advance(5)
    await world.store.update_rollout(rollout.rollout_id, config=RolloutConfig(timeout=8))
    await world.advance(3.3)
    assert (await world.store.get_attempt(rollout.rollout_id)).status == "timeout"


@pytest.mark.parametrize(
    ("field", "rollout", "paths"),
    [
        ("update_mask.paths[0]", Rollout(), ["end_time"]),
        ("update_mask.paths[1]", Rollout(priority=1), ["priority", "rollout_id"]),
        ("rollout.status", Rollout(), ["status"]),
        ("rollout.input_json", Rollout(), ["input_json"]),
        ("rollout.input_json", Rollout(input_json=b"{"), ["input_json"]),
        ("rollout.metadata_json", Rollout(metadata_json=b"3"), ["metadata_json"]),
    ],
)
async def test_bad_update_is_refused(
    world: World, field: str, rollout: Rollout, paths: list[str]
) -> None:
    (rollout_id,) = await enqueue(world, 1)
    request = UpdateRolloutRequest(rollout=rollout, update_mask={"paths": paths})
    request.rollout.rollout_id = rollout_id
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", field):
        await world.store.call("UpdateRollout", request)


@pytest.mark.parametrize("status", ["preparing", "running"])
async def test_status_of_claims_and_signs_of_life_cannot_be_set(world: World, status: str) -> None:
    (rollout_id,) = await enqueue(world, 1)
    async with refused(world, FailedPreconditionError, "TRANSITION_NOT_ALLOWED"):
        await world.store.update_rollout(rollout_id, status=status)


async def test_finished_rollout_takes_no_other_final_status(world: World) -> None:
    (rollout_id,) = await enqueue(world, 1)
    await finish(world, rollout_id)
    for status in ("failed", "cancelled"):
        async with refused(world, FailedPreconditionError, "TRANSITION_NOT_ALLOWED"):
            await world.store.update_rollout(rollout_id, status=status)


async def test_unknown_resources_and_rollouts_are_not_found(world: World) -> None:
    (rollout_id,) = await enqueue(world, 1)
    async with refused(world, NotFoundError, "RESOURCES_NOT_FOUND"):
        await world.store.update_rollout(rollout_id, resources_id="rs-none")
    async with refused(world, NotFoundError, "ROLLOUT_NOT_FOUND"):
        await world.store.update_rollout("ro-none", priority=1)
    async with refused(world, NotFoundError, "ROLLOUT_NOT_FOUND"):
        await world.store.cancel_rollouts([rollout_id, "ro-none"])


async def test_cancel_tells_the_runner_to_stop_by_every_way(world: World) -> None:
    rollout, attempt = await claim(world, config=RETRY)
    names = (rollout.rollout_id, attempt.attempt_id)
    (cancelled,) = await world.store.cancel_rollouts([rollout.rollout_id])
    assert (cancelled.status, cancelled.latest_attempt.status) == ("cancelled", "preparing")
    assert cancelled.completion_number == 1
    result = await world.store.ingest_spans([batch(*names, "a"), batch(*names, "b")])
    assert [(s.attempt_id, s.reason) for s in result.stops] == [(names[1], "rollout_cancelled")]
    reply = await world.store.heartbeat("w1", attempts=[names])
    assert [s.reason for s in reply.stops] == ["rollout_cancelled"]
    update = await world.store.update_attempt(*names, metadata={"a": 1})
    assert update.stop_reason == "rollout_cancelled"
    assert (await world.store.get_rollout(rollout.rollout_id)).status == "cancelled"


async def test_cancel_leaves_finished_rollouts_as_they_are(world: World) -> None:
    ids = await enqueue(world, 3)
    await finish(world, ids[0])
    done = await world.store.cancel_rollouts(ids)
    assert [r.status for r in done] == ["succeeded", "cancelled", "cancelled"]
    again = await world.store.cancel_rollouts(ids[::-1])
    assert [r.completion_number for r in again] == [3, 2, 1]
