"""Versions of resources: publish numbers, kept versions, "latest" at a claim."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from lightningstore.client import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    Resources,
    Rollout,
)
from lightningstore.client.datasets import DatasetWriter, read_dataset
from lightningstore.v1 import attempt_pb2, rollout_pb2
from lightningstore.v1 import resources_pb2 as pb

from tests.contract.conftest import World
from tests.contract.helpers import RETRY, claim, enqueue, refused
from tests.contract.test_import import message

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def keeping(way: str, folder: Path, versions: int) -> AsyncIterator[World]:
    world = World(way, folder, keep_resource_versions=versions)
    await world.start()
    try:
        yield world
    finally:
        await world.stop()


async def publish(world: World, resources_id: str = "r", count: int = 1) -> list[Resources]:
    """Update resources some times; each version has its own content."""
    return [
        await world.store.update_resources(resources_id, {"n": f"{resources_id}-{n}"})
        for n in range(count)
    ]


async def kept(world: World, *numbers: int) -> list[int]:
    """Return those of some publish numbers whose versions are kept."""
    found = []
    for number in numbers:
        try:
            version = await world.store.get_resources(publish_number=number)
        except NotFoundError as error:
            assert error.reason == "ERROR_REASON_RESOURCES_VERSION_REMOVED"
        else:
            assert version.publish_number == number
            found.append(number)
    return found


def claimed_with(rollout: Rollout) -> tuple[str, int, int]:
    attempt = rollout.latest_attempt
    assert attempt is not None
    return attempt.resources_id, attempt.resources_version, attempt.publish_number


# Publish numbers


async def test_publications_are_numbered_from_one_across_all_ids(world: World) -> None:
    assert (await world.store.get_statistics()).latest_publish_number == 0
    made = await world.store.add_resources({"x": 1}, resources_id="a")
    other = await world.store.add_resources({"x": 1})
    changed = await world.store.update_resources("a", {"x": 2})
    created = await world.store.update_resources("b", {"x": 2})
    assert [r.publish_number for r in (made, other, changed, created)] == [1, 2, 3, 4]
    assert (await world.store.get_statistics()).latest_publish_number == 4
    if world.durable:
        await world.restart()
    assert (await world.store.get_statistics()).latest_publish_number == 4
    assert await world.store.get_resources("a") == changed
    assert [r.publish_number for r in await world.store.list_resources()] == [3, 2, 4]
    assert (await world.store.add_resources({})).publish_number == 5


async def test_refused_publication_takes_no_number(world: World) -> None:
    await publish(world)
    async with refused(world, AlreadyExistsError, "RESOURCES_EXISTS"):
        await world.store.add_resources({}, resources_id="r")
    bad = pb.UpdateResourcesRequest(resources_id="r", resources={"x": pb.Resource()})
    async with refused(world, InvalidArgumentError, "FIELD_INVALID"):
        await world.store.call("UpdateResources", bad)
    assert (await publish(world))[0].publish_number == 2


async def test_repeat_by_request_id_returns_its_own_publication(world: World) -> None:
    first = await world.store.update_resources("r", {"x": 1}, request_id="one")
    added = await world.store.add_resources({"x": 1}, resources_id="a", request_id="two")
    await publish(world, "r")
    await publish(world, "a")
    if world.durable:
        await world.restart()
    assert await world.store.update_resources("r", {"x": 1}, request_id="one") == first
    again = await world.store.add_resources({"x": 1}, resources_id="a", request_id="two")
    assert again == added
    assert (await world.store.get_statistics()).latest_publish_number == 4


async def test_repeat_of_a_removed_publication_returns_the_current_version(
    way: str, tmp_path: Path
) -> None:
    async with keeping(way, tmp_path, 1) as world:
        await world.store.update_resources("r", {"x": 1}, request_id="one")
        await publish(world)
        again = await world.store.update_resources("r", {"x": 1}, request_id="one")
        assert (again.version, again.publish_number) == (2, 2)


async def test_publish_number_is_not_taken_from_the_caller(world: World) -> None:
    request = pb.AddResourcesRequest(resources_id="r")
    request.resources["x"].custom.value_json = b"1"
    made = (await world.store.call("AddResources", request)).resources
    assert made.publish_number == 1


# Kept versions


async def test_earlier_versions_are_returned_as_they_were(world: World) -> None:
    first, second, third = await publish(world, count=3)
    (other,) = await publish(world, "other")
    for restart in (False, True):
        if restart and world.durable:
            await world.restart()
        for version in (first, second, third):
            assert await world.store.get_resources("r", version=version.version) == version
            number = version.publish_number
            assert await world.store.get_resources(publish_number=number) == version
        assert await world.store.get_resources("r") == third
        assert await world.store.get_resources() == other
        assert await world.store.get_resources("latest") == other
        assert list(await world.store.list_resources()) == [third, other]
    assert first.create_time == third.create_time


async def test_ten_versions_of_each_id_are_kept(world: World) -> None:
    await publish(world, "r", 12)  # 1 to 12
    await publish(world, "other", 11)  # 13 to 23
    assert await kept(world, *range(1, 24)) == [*range(3, 13), *range(14, 24)]
    assert [(r.resources_id, r.version) for r in await world.store.list_resources()] == [
        ("r", 12),
        ("other", 11),
    ]
    if world.durable:
        await world.restart()
        assert await kept(world, *range(1, 24)) == [*range(3, 13), *range(14, 24)]
    assert (await publish(world))[0].version == 13
    assert await kept(world, 3, 4) == [4]


async def test_number_of_kept_versions_is_set(way: str, tmp_path: Path) -> None:
    async with keeping(way, tmp_path, 1) as world:
        await publish(world, count=3)
        assert await kept(world, 1, 2, 3) == [3]
        assert (await world.store.get_server_info()).limits.resource_versions == 1


async def test_all_versions_are_kept_if_set_so(way: str, tmp_path: Path) -> None:
    async with keeping(way, tmp_path, 0) as world:
        await publish(world, count=15)
        assert await kept(world, *range(1, 16)) == [*range(1, 16)]


async def test_removed_version_is_told_from_one_that_never_was(way: str, tmp_path: Path) -> None:
    async with keeping(way, tmp_path, 2) as world:
        await publish(world, count=3)
        removed = "RESOURCES_VERSION_REMOVED"
        async with refused(world, NotFoundError, removed, "'r' of version 1"):
            await world.store.get_resources("r", version=1)
        async with refused(world, NotFoundError, removed, "publish number 1"):
            await world.store.get_resources(publish_number=1)
        with pytest.raises(NotFoundError) as error:
            await world.store.get_resources("r", version=1)
        assert error.value.metadata == {"resourcesId": "r", "version": "1"}
        async with refused(world, NotFoundError, "RESOURCES_NOT_FOUND", "the current one is 3"):
            await world.store.get_resources("r", version=4)
        async with refused(world, NotFoundError, "RESOURCES_NOT_FOUND", "the latest is 3"):
            await world.store.get_resources(publish_number=4)
        async with refused(world, NotFoundError, "RESOURCES_NOT_FOUND", "'nope'"):
            await world.store.get_resources("nope", version=1)


@pytest.mark.parametrize(
    ("field", "which"),
    [
        ("version", {"version": 1}),
        ("version", {"resources_id": "latest", "version": 1}),
        ("version", {"resources_id": "r", "version": -1}),
        ("publish_number", {"publish_number": -1}),
        ("publish_number", {"resources_id": "r", "publish_number": 1}),
        ("publish_number", {"version": 1, "publish_number": 1}),
    ],
    ids=str,
)
async def test_contradicting_versions_are_refused(
    world: World, field: str, which: dict[str, object]
) -> None:
    await publish(world)
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", field):
        await world.store.call("GetResources", pb.GetResourcesRequest(**which))


async def test_version_of_a_running_attempt_is_kept(way: str, tmp_path: Path) -> None:
    async with keeping(way, tmp_path, 2) as world:
        await publish(world)
        rollout, attempt = await claim(world)
        assert (attempt.resources_version, attempt.publish_number) == (1, 1)
        await publish(world, count=4)
        assert await kept(world, 1, 2, 3, 4, 5) == [1, 4, 5]
        if world.durable:
            await world.restart()
            await publish(world)
            assert await kept(world, 1, 4, 5, 6) == [1, 5, 6]
        await world.store.update_attempt(rollout.rollout_id, attempt.attempt_id, status="succeeded")
        last = (await publish(world))[0].publish_number
        assert await kept(world, 1, last - 1, last) == [last - 1, last]


async def test_version_is_kept_until_its_last_attempt_ends(way: str, tmp_path: Path) -> None:
    async with keeping(way, tmp_path, 1) as world:
        await publish(world)
        (first, one), (second, two) = await claim(world), await claim(world)
        await world.store.update_attempt(first.rollout_id, one.attempt_id, status="failed")
        await publish(world)
        assert await kept(world, 1, 2) == [1, 2]
        # An attempt that was superseded still runs.
        await world.store.start_attempt(second.rollout_id)
        await publish(world)
        assert await kept(world, 1, 2, 3) == [1, 2, 3]
        await world.store.update_attempt(second.rollout_id, two.attempt_id, status="succeeded")
        await publish(world)
        assert await kept(world, 1, 2, 3, 4) == [2, 4]


async def test_retry_gets_what_is_there_now(way: str, tmp_path: Path) -> None:
    async with keeping(way, tmp_path, 1) as world:
        await publish(world)
        rollout, attempt = await claim(world, config=RETRY)
        await world.store.update_attempt(rollout.rollout_id, attempt.attempt_id, status="failed")
        await publish(world, count=2)
        assert await kept(world, 1) == []
        (again,) = await world.store.dequeue_rollouts()
        assert claimed_with(again) == ("r", 3, 3)


async def test_attempt_names_a_version_that_can_be_read(world: World) -> None:
    await publish(world, "r", 2)
    rollout, attempt = await claim(world, resources_id="r")
    await publish(world, "r", 20)
    named = await world.store.get_resources(attempt.resources_id, version=attempt.resources_version)
    assert named.publish_number == attempt.publish_number == 2
    latest = (await world.store.get_statistics()).latest_publish_number
    assert attempt.lag(latest) == 20
    assert rollout.resources_id == "r"


async def test_attempt_without_resources_has_no_number(world: World) -> None:
    _, attempt = await claim(world)
    assert (attempt.publish_number, attempt.lag(3)) == (0, None)


# "latest" at a claim


async def test_latest_is_resolved_at_each_claim(world: World) -> None:
    await publish(world, "old")
    (rollout_id,) = await enqueue(world, 1, resources_id="latest", config=RETRY)
    (plain_id,) = await enqueue(world, 1)
    await publish(world, "new")
    if world.durable:
        await world.restart()
    assert (await world.store.get_rollout(rollout_id)).resources_id == "latest"
    claimed, plain = await world.store.dequeue_rollouts(2)
    assert claimed.resources_id == "latest"
    assert claimed_with(claimed) == ("new", 1, 2)
    assert (plain.rollout_id, claimed_with(plain)) == (plain_id, ("old", 1, 1))
    await publish(world, "new")
    await world.store.update_attempt(rollout_id, "latest", status="failed")
    await publish(world, "old")
    (again,) = await world.store.dequeue_rollouts()
    assert (again.resources_id, claimed_with(again)) == ("latest", ("old", 2, 4))
    assert again.latest_attempt is not None
    assert again.latest_attempt.lag(4) == 0
    first = await world.store.list_attempts(rollout_id)
    assert [a.publish_number for a in first] == [2, 4]


async def test_latest_without_any_resources_is_none(world: World) -> None:
    await enqueue(world, 2, resources_id="latest")
    (claimed,) = await world.store.dequeue_rollouts()
    assert (claimed.resources_id, claimed_with(claimed)) == ("latest", ("", 0, 0))
    await publish(world)
    (claimed,) = await world.store.dequeue_rollouts()
    assert claimed_with(claimed) == ("r", 1, 1)


async def test_repeated_claim_keeps_the_version_of_the_first(world: World) -> None:
    await publish(world)
    await enqueue(world, 1, resources_id="latest")
    (claimed,) = await world.store.dequeue_rollouts(request_id="c")
    await publish(world)
    (again,) = await world.store.dequeue_rollouts(request_id="c")
    assert claimed_with(again) == claimed_with(claimed) == ("r", 1, 1)


async def test_latest_is_resolved_by_every_way_to_start(world: World) -> None:
    await publish(world)
    started = await world.store.start_rollout({}, resources_id="latest", request_id="s")
    assert (started.resources_id, claimed_with(started)) == ("latest", ("r", 1, 1))
    await publish(world)
    again = await world.store.start_rollout({}, resources_id="latest", request_id="s")
    assert claimed_with(again) == ("r", 1, 1)
    attempt = await world.store.start_attempt(started.rollout_id)
    assert claimed_with(attempt) == ("r", 2, 2)


async def test_rollout_is_changed_to_latest_and_back(world: World) -> None:
    await publish(world, "old")
    (rollout_id,) = await enqueue(world, 1)
    changed = await world.store.update_rollout(rollout_id, resources_id="latest")
    assert changed.resources_id == "latest"
    await publish(world, "new")
    assert claimed_with(await world.store.start_attempt(rollout_id)) == ("new", 1, 2)
    await world.store.update_rollout(rollout_id, resources_id="old")
    assert claimed_with(await world.store.start_attempt(rollout_id)) == ("old", 1, 1)


async def test_latest_is_content_of_its_own(world: World) -> None:
    """An empty id names the latest resources at that time, "latest" those at each claim."""
    await publish(world)
    specs = {"always": "latest", "plain": "", "named": "r"}
    for rollout_id, resources_id in specs.items():
        await world.store.enqueue_rollout(1, rollout_id=rollout_id, resources_id=resources_id)
    await publish(world, "other")
    for rollout_id, resources_id in specs.items():
        await world.store.enqueue_rollout(1, rollout_id=rollout_id, resources_id=resources_id)
    await world.store.enqueue_rollout(1, rollout_id="plain", resources_id="r")
    for rollout_id, resources_id in (("always", ""), ("always", "r"), ("plain", "latest")):
        spec = rollout_pb2.RolloutSpec(
            rollout_id=rollout_id, input_json=b"1", resources_id=resources_id
        )
        request = rollout_pb2.EnqueueRolloutsRequest(rollouts=[spec])
        async with refused(world, AlreadyExistsError, "ROLLOUT_EXISTS"):
            await world.store.call("EnqueueRollouts", request)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
async def test_exports_keep_versions(world: World, tmp_path: Path, name: str) -> None:
    await publish(world, count=2)
    rollout, _ = await claim(world, resources_id="latest", config=RETRY)
    await world.store.update_attempt(rollout.rollout_id, "latest", status="failed")
    await publish(world)
    (again,) = await world.store.dequeue_rollouts()
    assert claimed_with(again) == ("r", 3, 3)
    await world.store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
    attempts = list(await world.store.list_attempts(rollout.rollout_id))
    with DatasetWriter(tmp_path / name) as writer:
        async for exported in world.store.export_rollouts():
            writer.write(exported)
    (tmp_path / "other").mkdir()
    other = World("sqlite-inprocess", tmp_path / "other")
    await other.start()
    for known in (0, 1):
        result = await other.store.import_rollouts(read_dataset(tmp_path / name))
        assert (result.imported_count, result.known_count) == (1 - known, known)
    assert list(await other.store.list_attempts(rollout.rollout_id)) == attempts
    assert (await other.store.get_rollout(rollout.rollout_id)).resources_id == "latest"
    assert (await other.store.get_statistics()).latest_publish_number == 0
    await other.stop()


async def test_imported_attempts_that_still_run_hold_no_version(world: World) -> None:
    """They are of another store, and end without having begun here."""
    request = message()
    attempt = request.attempts[-1]
    attempt.status = attempt_pb2.ATTEMPT_STATUS_RUNNING
    attempt.ClearField("end_time")
    attempt.resources_id, attempt.resources_version, attempt.publish_number = "r", 1, 1
    await world.store.import_rollouts([request])
    await world.store.update_attempt("ro-old", attempt.attempt_id, status="failed")
    await publish(world, count=11)
    assert await kept(world, 1, 2) == [2]
    request.rollout.rollout_id = "ro-bad"
    for one in request.attempts:
        one.rollout_id = "ro-bad"
    attempt.publish_number = -1
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "publish_number"):
        await world.store.import_rollouts([request])


async def test_long_poll_gets_the_latest_of_its_moment(world: World) -> None:
    await publish(world)
    await enqueue(world, 1, resources_id="latest")
    await publish(world)
    (claimed,) = await world.store.dequeue_rollouts(wait=5)
    assert claimed_with(claimed) == ("r", 2, 2)
