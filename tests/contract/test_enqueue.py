"""EnqueueRollouts, GetRollout, StartRollout."""

from __future__ import annotations

import asyncio
import re

import pytest
from lightningstore.client import (
    LLM,
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    RetryBackoff,
    RolloutConfig,
    RolloutSpec,
)
from lightningstore.v1.claim_pb2 import StartRolloutRequest
from lightningstore.v1.rollout_pb2 import EnqueueRolloutsRequest
from lightningstore.v1.rollout_pb2 import RolloutSpec as Spec

from tests.contract.conftest import World
from tests.contract.helpers import enqueue, refused

pytestmark = pytest.mark.asyncio


async def test_new_rollout_has_the_documented_defaults(world: World) -> None:
    made = await world.store.enqueue_rollout({"task": 1})
    message = (await world.store.get_rollout(made.rollout_id)).message
    assert message.input_json == b'{"task":1}'
    assert message.start_time.ToNanoseconds() == world.clock.wall_ns()
    for absent in ("end_time", "latest_attempt"):
        assert not message.HasField(absent)
    assert message.config.max_attempts == 1
    assert (message.mode, message.priority, message.attempt_count) == (0, 0, 0)
    assert (message.group_id, message.resources_id, message.latest_attempt_id) == ("", "", "")
    assert message.completion_number == 0
    assert made.status == "queuing"


async def test_server_makes_ids_of_the_documented_form(world: World) -> None:
    request = EnqueueRolloutsRequest(rollouts=[Spec(input_json=b"1")])
    answer = await world.store.call("EnqueueRollouts", request)
    assert re.fullmatch(r"ro-[0-9a-f]{12}", answer.rollouts[0].rollout_id)
    started = await world.store.start_rollout(1)
    assert re.fullmatch(r"at-[0-9a-f]{8}", started.latest_attempt.attempt_id)


async def test_all_fields_of_a_spec_are_kept(world: World) -> None:
    resources = await world.store.add_resources({"llm": LLM(endpoint="http://x/v1", model="m")})
    config = RolloutConfig(
        timeout=10,
        unresponsive_timeout=2.5,
        max_attempts=4,
        retry_condition=("failed", "unresponsive"),
        retry_backoff=RetryBackoff(initial_delay=1, factor=2, max_delay=60, jitter=0.5),
    )
    spec = RolloutSpec(
        [1, "ü", None],
        mode="val",
        priority=-7,
        group_id="g",
        resources_id=resources.resources_id,
        config=config,
        metadata={"a": {"b": 2**60 + 1}},
        rollout_id="my/id",
    )
    (made,) = await world.store.enqueue_rollouts([spec])
    stored = await world.store.get_rollout("my/id")
    assert stored == made
    assert stored.input == [1, "ü", None]
    assert stored.metadata == {"a": {"b": 2**60 + 1}}
    assert (stored.mode, stored.priority, stored.group_id) == ("val", -7, "g")
    assert stored.config == config


@pytest.mark.parametrize(
    "text",
    [b'{"n": 1152921504606846977}', b"[1.0, 1e3]", '"ünïcödé 😀"'.encode(), b" null ", b'""'],
)
async def test_json_comes_back_byte_for_byte(world: World, text: bytes) -> None:
    request = EnqueueRolloutsRequest(rollouts=[Spec(input_json=text, metadata_json=b'{ "a":1}')])
    made = (await world.store.call("EnqueueRollouts", request)).rollouts[0]
    stored = (await world.store.get_rollout(made.rollout_id)).message
    assert (stored.input_json, stored.metadata_json) == (text, b'{ "a":1}')


async def test_large_input_survives(world: World) -> None:
    text = "x" * (1 << 20)
    made = await world.store.enqueue_rollout(text)
    assert (await world.store.get_rollout(made.rollout_id)).input == text


@pytest.mark.parametrize(
    ("field", "spec"),
    [
        ("rollouts[1].input_json", Spec()),
        ("rollouts[1].input_json", Spec(input_json=b"{")),
        ("rollouts[1].input_json", Spec(input_json=b"NaN")),
        ("rollouts[1].input_json", Spec(input_json=b'"\xff"')),
        ("rollouts[1].metadata_json", Spec(input_json=b"1", metadata_json=b"[]")),
        ("rollouts[1].metadata_json", Spec(input_json=b"1", metadata_json=b"{'a':1}")),
        ("rollouts[1].rollout_id", Spec(input_json=b"1", rollout_id="latest")),
        ("rollouts[1].rollout_id", Spec(input_json=b"1", rollout_id="x" * 257)),
        ("rollouts[1].group_id", Spec(input_json=b"1", group_id="x" * 257)),
        ("rollouts[1].rollout_id", Spec(input_json=b"1", rollout_id="x\0y")),
        ("rollouts[1].group_id", Spec(input_json=b"1", group_id="\0")),
        ("rollouts[1].mode", Spec(input_json=b"1", mode=99)),
        ("rollouts[1].config.max_attempts", Spec(input_json=b"1", config={"max_attempts": -1})),
        ("rollouts[1].config.timeout", Spec(input_json=b"1", config={"timeout": {}})),
        ("rollouts[1].config.timeout", Spec(input_json=b"1", config={"timeout": {"seconds": -1}})),
        (
            "rollouts[1].config.retry_condition[0]",
            Spec(input_json=b"1", config={"retry_condition": [3]}),
        ),
        (
            "rollouts[1].config.retry_backoff.jitter",
            Spec(input_json=b"1", config={"retry_backoff": {"jitter": float("nan")}}),
        ),
        (
            "rollouts[1].config.retry_backoff.factor",
            Spec(input_json=b"1", config={"retry_backoff": {"factor": 0.5}}),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_bad_item_refuses_the_whole_batch(world: World, field: str, spec: Spec) -> None:
    request = EnqueueRolloutsRequest(rollouts=[Spec(input_json=b"1"), spec])
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", field):
        await world.store.call("EnqueueRollouts", request)


async def test_unknown_resources_are_not_found(world: World) -> None:
    async with refused(world, NotFoundError, "RESOURCES_NOT_FOUND", "rs-nope"):
        await world.store.enqueue_rollout(1, resources_id="rs-nope")


async def test_resources_default_to_the_latest(world: World) -> None:
    await world.store.add_resources({"a": 1}, resources_id="first")
    assert (await world.store.enqueue_rollout(1)).resources_id == "first"
    await world.store.add_resources({"a": 2}, resources_id="second")
    assert (await world.store.enqueue_rollout(1)).resources_id == "second"
    await world.store.update_resources("first", {"a": 3})
    assert (await world.store.enqueue_rollout(1)).resources_id == "first"


async def test_same_id_with_the_same_content_returns_what_is_stored(world: World) -> None:
    spec = RolloutSpec({"x": 1}, rollout_id="mine", priority=2, metadata={"m": 1})
    (first,) = await world.store.enqueue_rollouts([spec])
    await world.advance(5)
    again, other = await world.store.enqueue_rollouts([spec, RolloutSpec(2)])
    assert again == first
    assert (await world.store.get_statistics()).queue_depth == 2
    assert other.rollout_id != first.rollout_id


async def test_same_id_with_other_content_already_exists(world: World) -> None:
    await world.store.enqueue_rollout(1, rollout_id="mine")
    async with refused(world, AlreadyExistsError, "ROLLOUT_EXISTS", "mine"):
        await world.store.enqueue_rollouts([RolloutSpec(0), RolloutSpec(2, rollout_id="mine")])
    async with refused(world, AlreadyExistsError, "ROLLOUT_EXISTS", "twin"):
        await world.store.enqueue_rollouts(
            [RolloutSpec(1, rollout_id="twin"), RolloutSpec(2, rollout_id="twin")]
        )


async def test_repeat_after_an_update_needs_the_request_id(world: World) -> None:
    request = EnqueueRolloutsRequest(
        rollouts=[Spec(input_json=b"1", rollout_id="mine")], request_id="r1"
    )
    await world.store.call("EnqueueRollouts", request)
    await world.store.update_rollout("mine", metadata={"k": 1})
    again = await world.store.call("EnqueueRollouts", request)
    assert [r.metadata_json for r in again.rollouts] == [b'{"k":1}']
    async with refused(world, AlreadyExistsError, "ROLLOUT_EXISTS", "mine"):
        await world.store.enqueue_rollout(1, rollout_id="mine")


async def test_id_of_a_rollout_that_left_memory_is_still_known(world: World) -> None:
    await world.store.enqueue_rollout(1, rollout_id="old")
    await world.store.cancel_rollouts(["old"])
    if world.durable:
        await world.restart()
    again = await world.store.enqueue_rollout(1, rollout_id="old")
    assert again.status == "cancelled"
    async with refused(world, AlreadyExistsError, "ROLLOUT_EXISTS"):
        await world.store.enqueue_rollout(2, rollout_id="old")


async def test_request_id_makes_a_repeat_harmless(world: World) -> None:
    request = EnqueueRolloutsRequest(rollouts=[Spec(input_json=b"1")] * 2, request_id="r1")
    first = await world.store.call("EnqueueRollouts", request)
    if world.durable:
        await world.restart()
    again = await world.store.call("EnqueueRollouts", request)
    assert [r.rollout_id for r in again.rollouts] == [r.rollout_id for r in first.rollouts]
    assert (await world.store.get_statistics()).queue_depth == 2
    other = EnqueueRolloutsRequest(rollouts=[Spec(input_json=b"2")], request_id="r1")
    async with refused(world, InvalidArgumentError, "REQUEST_ID_REUSED", "r1"):
        await world.store.call("EnqueueRollouts", other)


async def test_request_id_is_forgotten_after_ten_minutes(world: World) -> None:
    request = EnqueueRolloutsRequest(rollouts=[Spec(input_json=b"1")], request_id="r1")
    first = await world.store.call("EnqueueRollouts", request)
    world.clock.jump(601)
    again = EnqueueRolloutsRequest(rollouts=[Spec(input_json=b"1")], request_id="r2")
    await world.store.call("EnqueueRollouts", again)
    third = await world.store.call("EnqueueRollouts", request)
    assert third.rollouts[0].rollout_id != first.rollouts[0].rollout_id


@pytest.mark.parametrize("seconds", [3600, -3600])
async def test_request_id_outlives_a_change_of_the_wall_clock(world: World, seconds: int) -> None:
    request = EnqueueRolloutsRequest(rollouts=[Spec(input_json=b"1")], request_id="r1")
    first = await world.store.call("EnqueueRollouts", request)
    world.clock.jump_wall(seconds)
    other = EnqueueRolloutsRequest(rollouts=[Spec(input_json=b"1")], request_id="r2")
    await world.store.call("EnqueueRollouts", other)
    for restarts in range(2 if world.durable else 1):
        if restarts:
            await world.restart(down=3600)
        again = await world.store.call("EnqueueRollouts", request)
        assert again.rollouts[0].rollout_id == first.rollouts[0].rollout_id


async def test_request_id_too_long_is_refused(world: World) -> None:
    request = EnqueueRolloutsRequest(rollouts=[Spec(input_json=b"1")], request_id="x" * 65)
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "request_id"):
        await world.store.call("EnqueueRollouts", request)


async def test_empty_batch_is_no_error(world: World) -> None:
    assert await world.store.enqueue_rollouts([]) == []


async def test_batch_above_the_limit_says_the_limit(world: World) -> None:
    async with refused(world, ResourceExhaustedError, "BATCH_TOO_LARGE", "10000"):
        await enqueue(world, 10_001)


async def test_concurrent_enqueues_of_one_id_make_one_rollout(world: World) -> None:
    specs = [RolloutSpec(1, rollout_id="one")]
    made = await asyncio.gather(*(world.store.enqueue_rollouts(specs) for _ in range(20)))
    assert {r.rollout_id for (r,) in made} == {"one"}
    assert (await world.store.get_statistics()).queue_depth == 1


async def test_started_rollout_never_enters_the_queue(world: World) -> None:
    rollout = await world.store.start_rollout({"a": 1}, worker_id="w", mode="test")
    assert rollout.status == "preparing"
    assert rollout.latest_attempt.sequence_number == 1
    assert await world.store.dequeue_rollouts(1) == []
    worker = await world.store.get_worker("w")
    assert worker.current_attempt_id == rollout.latest_attempt.attempt_id
    async with refused(world, AlreadyExistsError, "ROLLOUT_EXISTS"):
        await world.store.start_rollout({"a": 1}, rollout_id=rollout.rollout_id)


async def test_start_rollout_repeated_by_request_id_gives_the_same_attempt(world: World) -> None:
    request = StartRolloutRequest(rollout=Spec(input_json=b"1"), worker_id="w", request_id="s1")
    first = await world.store.call("StartRollout", request)
    again = await world.store.call("StartRollout", request)
    assert again == first
    assert (await world.store.get_statistics()).message.rollouts[0].count == 1


async def test_same_item_twice_in_a_batch_is_one_rollout(world: World) -> None:
    spec = RolloutSpec(1, rollout_id="twin")
    first, second, third = await world.store.enqueue_rollouts([spec, RolloutSpec(2), spec])
    assert first == third
    assert second.rollout_id != first.rollout_id
    assert len(await world.store.dequeue_rollouts(9)) == 2


async def test_repeated_item_that_has_moved_on_is_returned_as_it_is_and_not_queued(
    world: World,
) -> None:
    spec = RolloutSpec(1, rollout_id="mine")
    await world.store.enqueue_rollouts([spec])
    (claimed,) = await world.store.dequeue_rollouts(1)
    assert await world.store.enqueue_rollouts([spec]) == [claimed]
    assert await world.store.dequeue_rollouts(1) == []


@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("input", {"input": 2}),
        ("mode", {"mode": "val"}),
        ("priority", {"priority": 1}),
        ("group", {"group_id": "h"}),
        ("metadata", {"metadata": {"a": 2}}),
        ("config", {"config": RolloutConfig(timeout=2)}),
        ("resources", {"resources_id": "two"}),
        ("queue", {"queue": "r"}),
        ("labels", {"labels": {"a": "1", "b": "2"}}),
        ("no labels", {"labels": None}),
    ],
)
async def test_every_field_makes_other_content(
    world: World, field: str, changed: dict[str, object]
) -> None:
    await world.store.add_resources({}, resources_id="two")
    await world.store.add_resources({}, resources_id="one")
    base: dict[str, object] = {
        "input": 1,
        "mode": "train",
        "group_id": "g",
        "metadata": {"a": 1},
        "config": RolloutConfig(timeout=1),
        "resources_id": "one",
        "rollout_id": "mine",
        "queue": "q",
        "labels": {"a": "1"},
    }
    await world.store.enqueue_rollouts([base])
    async with refused(world, AlreadyExistsError, "ROLLOUT_EXISTS", "mine"):
        await world.store.enqueue_rollouts([base | changed])
    assert len(await world.store.enqueue_rollouts([base])) == 1


async def test_bad_start_leaves_nothing(world: World) -> None:
    async with refused(world, NotFoundError, "RESOURCES_NOT_FOUND", "rs-none"):
        await world.store.start_rollout(1, resources_id="rs-none", worker_id="w")
    request = StartRolloutRequest(rollout=Spec(), worker_id="w")
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "rollout.input_json"):
        await world.store.call("StartRollout", request)
    for worker_id in ("w" * 257, "w\0"):
        request = StartRolloutRequest(rollout=Spec(input_json=b"1"), worker_id=worker_id)
        async with refused(world, InvalidArgumentError, "FIELD_INVALID", "worker_id"):
            await world.store.call("StartRollout", request)


async def test_unknown_rollout_is_not_found(world: World) -> None:
    async with refused(world, NotFoundError, "ROLLOUT_NOT_FOUND", "ro-none"):
        await world.store.get_rollout("ro-none")
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "rollout_id"):
        await world.store.get_rollout("")


async def test_server_made_id_that_is_taken_is_made_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = ["ro-000000000001", "ro-000000000002"]
    for rollout_id in taken:
        await world.store.enqueue_rollout(1, rollout_id=rollout_id)
    assert world.service is not None
    await world.store.cancel_rollouts(taken[:1])
    state = world.service.engine.live.state
    state.cache.pop(taken[0])
    del state.entries[taken[0]]  # it left memory, and is on disk alone
    coming = [*taken, "ro-000000000003", taken[0], "ro-000000000004"]
    monkeypatch.setattr(
        "lightningstore.service.operations.enqueue.new_id", lambda *_: coming.pop(0)
    )
    spec = Spec(input_json=b"2")
    first = await world.store.call("EnqueueRollouts", EnqueueRolloutsRequest(rollouts=[spec]))
    started = await world.store.call("StartRollout", StartRolloutRequest(rollout=spec))
    assert first.rollouts[0].rollout_id == "ro-000000000003"
    assert started.rollout.rollout_id == "ro-000000000004"
    assert (await world.store.get_rollout(taken[0])).input == 1
