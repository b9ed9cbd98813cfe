"""Namespaces over files: closed when idle, opened on demand, unavailable one by one, deleted while in use."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from lightningstore.service.namespaces.idle import IDLE_SECONDS, SWEEP_SECONDS
from lightningstore.service.namespaces.space import Space
from lightningstore.service.rules.errors import StorageFailed, StorageUnusable
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import start_server
from lightningstore.v1.attempt_pb2 import ATTEMPT_STATUS_SUCCEEDED, Attempt, UpdateAttemptRequest
from lightningstore.v1.claim_pb2 import DequeueRolloutsRequest
from lightningstore.v1.completion_pb2 import WaitForRolloutsRequest, WatchRolloutsRequest
from lightningstore.v1.namespace_pb2 import ListNamespacesRequest, Namespace, UpdateNamespaceRequest
from lightningstore.v1.rollout_pb2 import (
    ROLLOUT_STATUS_FAILED,
    EnqueueRolloutsRequest,
    GetRolloutRequest,
    RolloutConfig,
    RolloutSpec,
)
from lightningstore.v1.span_pb2 import IngestSpansRequest
from lightningstore.v1.statistics_pb2 import GetServerInfoRequest, GetStatisticsRequest

from tests.contract.conftest import World
from tests.namespaced import Caller, metadata, reason_of

pytestmark = pytest.mark.asyncio

SERVICE = "lightningstore.v1.LightningStoreService"
Serving = health_pb2.HealthCheckResponse.ServingStatus
IDLE = IDLE_SECONDS + 2 * SWEEP_SECONDS


class Place(World):
    """A world over files with a channel, which restarts may replace."""

    caller: Caller
    channel: grpc.aio.Channel

    async def start(self) -> None:
        await super().start()
        assert self.server is not None
        self.channel = grpc.aio.insecure_channel(self.server.address)
        self.caller = Caller(self.channel)

    async def stop(self) -> None:
        await self.channel.close()
        await super().stop()

    def space(self, name: str) -> Space:
        assert self.server is not None
        return self.server.directory.find(name)

    def file(self, name: str) -> Path:
        return self.config.db.with_name(f"{self.config.db.name}.d") / f"{name}.db"

    async def let_idle(self, *names: str) -> None:
        """Let time pass until the namespaces are closed."""
        await self.advance(IDLE)
        for name in names:
            space = self.space(name)
            assert space.store is None
            while space.closing is not None:
                await asyncio.wait([space.closing])

    async def health(self, service: str) -> Any:
        stub = health_pb2_grpc.HealthStub(self.channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))  # type: ignore[misc]
        return answer.status


@pytest_asyncio.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place = Place("sqlite-grpc", tmp_path)
    await place.start()
    yield place
    await place.stop()


def enqueue(count: int = 1, **fields: Any) -> EnqueueRolloutsRequest:
    specs = [RolloutSpec(input_json=b"{}", **fields) for _ in range(count)]
    return EnqueueRolloutsRequest(rollouts=specs)


async def finish_one(place: Place, namespace: str) -> str:
    """Leave a finished rollout in a namespace; returns its id."""
    await place.caller.call("EnqueueRollouts", enqueue(), namespace)
    claimed = await place.caller.call("DequeueRollouts", DequeueRolloutsRequest(limit=1), namespace)
    rollout_id: str = claimed.rollouts[0].rollout_id
    attempt = Attempt(rollout_id=rollout_id, attempt_id="latest", status=ATTEMPT_STATUS_SUCCEEDED)
    await place.caller.call("UpdateAttempt", UpdateAttemptRequest(attempt=attempt), namespace)
    return rollout_id


async def removed(place: Place, rollout_id: str, namespace: str) -> None:
    """Wait until a rollout is removed: a closed namespace is opened for that, which takes its time."""
    request = GetRolloutRequest(rollout_id=rollout_id)
    async with asyncio.timeout(30):
        while True:
            try:
                await place.caller.call("GetRollout", request, namespace)
            except grpc.aio.AioRpcError as error:
                assert reason_of(error)[1] == "ROLLOUT_NOT_FOUND"
                return
            await asyncio.sleep(0.01)


async def depth(place: Place, namespace: str) -> int:
    answer = await place.caller.call("GetStatistics", GetStatisticsRequest(), namespace)
    return int(answer.queue_depth)


async def waiters(place: Place, namespace: str) -> int:
    answer = await place.caller.call("GetStatistics", GetStatisticsRequest(), namespace)
    return int(answer.waiter_count)


async def test_idle_namespace_is_closed_and_opened_again_by_a_call(place: Place) -> None:
    await place.caller.create("a", description="kept")
    rollout_id = await finish_one(place, "a")
    before = place.space("a").namespace
    await place.let_idle("a")
    assert not list(place.file("a").parent.glob("*-wal"))
    listed = await place.caller.call("ListNamespaces", ListNamespacesRequest(name_contains="a"))
    assert before in listed.namespaces
    assert place.space("a").store is None  # a list opens nothing
    request = GetRolloutRequest(rollout_id=rollout_id)
    found = await asyncio.gather(
        *[place.caller.call("GetRollout", request, "a") for _ in range(20)]
    )
    assert {answer.rollout.completion_number for answer in found} == {1}
    assert place.space("a").namespace == before


async def test_start_time_and_uptime_are_those_of_the_server(place: Place) -> None:
    await place.caller.create("a")
    await place.let_idle("a")
    infos, uptimes = [], []
    for name in ("a", ""):
        infos.append(await place.caller.call("GetServerInfo", GetServerInfoRequest(), name))
        answer = await place.caller.call("GetStatistics", GetStatisticsRequest(), name)
        uptimes.append(answer.uptime.ToSeconds())
    assert infos[0].start_time == infos[1].start_time
    assert uptimes[0] == uptimes[1] >= IDLE


async def test_default_namespace_is_never_closed(place: Place) -> None:
    await place.advance(IDLE)
    assert place.space("default").store is not None


async def test_call_keeps_a_namespace_open(place: Place) -> None:
    await place.caller.create("a")
    for _ in range(3):
        await place.advance(IDLE_SECONDS - SWEEP_SECONDS)
        await place.caller.call("GetStatistics", GetStatisticsRequest(), "a")
    assert place.space("a").store is not None
    await place.let_idle("a")


async def test_namespace_with_live_records_stays_open(place: Place) -> None:
    await place.caller.create("queued")
    await place.caller.call("EnqueueRollouts", enqueue(), "queued")
    await place.advance(IDLE)
    assert place.space("queued").store is not None


async def test_namespace_in_which_a_caller_waits_stays_open(place: Place) -> None:
    await place.caller.create("a")
    watch = place.caller.begin(
        "WatchRollouts", WatchRolloutsRequest(after_completion_number=0), "a"
    )
    await watch.initial_metadata()
    await place.advance(IDLE)
    assert place.space("a").store is not None
    watch.cancel()


async def test_long_poll_keeps_its_namespace_open_and_is_served(place: Place) -> None:
    await place.caller.create("a")
    claim = DequeueRolloutsRequest(limit=1, wait=Duration(seconds=60))
    poll = asyncio.ensure_future(place.caller.begin("DequeueRollouts", claim, "a"))
    while not await waiters(place, "a"):
        await asyncio.sleep(0.001)
    place.space("a").quiet_since -= IDLE
    assert place.server is not None
    await place.server.directory.idle.sweep()
    assert place.space("a").store is not None
    await place.caller.call("EnqueueRollouts", enqueue(), "a")
    assert len((await poll).rollouts) == 1


async def test_stream_whose_client_pauses_keeps_its_namespace_open(place: Place) -> None:
    await place.caller.create("a")
    ingest = place.channel.stream_unary(
        f"/{SERVICE}/IngestSpans",
        request_serializer=IngestSpansRequest.SerializeToString,
    )(metadata=metadata("a"))
    while not place.space("a").in_use:
        await asyncio.sleep(0.001)
    await place.advance(IDLE)
    assert place.space("a").store is not None
    await ingest.done_writing()
    await ingest
    await place.let_idle("a")


async def test_deadlines_that_passed_while_the_server_was_down_fire_at_start(place: Place) -> None:
    await place.caller.create("a")
    config = RolloutConfig(timeout=Duration(seconds=5))
    await place.caller.call("EnqueueRollouts", enqueue(config=config), "a")
    claim = DequeueRolloutsRequest(limit=1)
    (claimed,) = (await place.caller.call("DequeueRollouts", claim, "a")).rollouts
    await place.restart(down=60)
    started_ns = place.clock.wall_ns()
    while not place.space("a").quiet_since:  # set when it is opened, which no call does
        await asyncio.sleep(0.001)
    await place.advance(1)
    await place.advance(100)
    request = GetRolloutRequest(rollout_id=claimed.rollout_id)
    found = await place.caller.call("GetRollout", request, "a")
    assert found.rollout.status == ROLLOUT_STATUS_FAILED
    assert found.rollout.end_time.ToNanoseconds() <= started_ns + 1_000_000_000


async def test_namespaces_outlive_a_restart_without_being_opened(place: Place) -> None:
    made = await place.caller.create("a", labels={"k": "v"})
    rollout_id = await finish_one(place, "a")
    await place.restart()
    await place.settle()
    assert place.space("a").store is None
    assert place.space("a").namespace == made
    found = await place.caller.call("GetRollout", GetRolloutRequest(rollout_id=rollout_id), "a")
    assert found.rollout.completion_number == 1


async def test_retention_of_a_closed_namespace_is_kept(place: Place) -> None:
    await place.caller.create("a")
    rollout_id = await finish_one(place, "a")
    change = Namespace(name="a", retain_finished=Duration(seconds=3600))
    await place.caller.call("UpdateNamespace", UpdateNamespaceRequest(namespace=change))
    await place.let_idle("a")
    await place.advance(3600)
    await removed(place, rollout_id, "a")


async def test_retention_of_the_server_is_the_default(tmp_path: Path) -> None:
    place = Place("sqlite-grpc", tmp_path, retain_finished="1h")
    await place.start()
    await place.caller.create("kept", retain_finished=Duration(seconds=0))
    await place.caller.create("a")
    kept, gone = await finish_one(place, "kept"), await finish_one(place, "a")
    await place.restart(down=4000)
    await place.advance(2 * SWEEP_SECONDS)
    await removed(place, gone, "a")
    await place.caller.call("GetRollout", GetRolloutRequest(rollout_id=kept), "kept")
    await place.stop()


async def test_file_that_cannot_be_opened_costs_only_its_namespace(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("bad", "good"):
        await place.caller.create(name)
        await finish_one(place, name)
    await place.stop()
    sound = place.file("bad").read_bytes()
    place.file("bad").write_bytes(b"no database")
    with caplog.at_level(logging.ERROR):
        await place.start()
    assert "namespace bad is unavailable" in caplog.text
    assert await depth(place, "good") == await depth(place, "") == 0
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await depth(place, "bad")
        code, reason, found = reason_of(caught.value)
        assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "STORAGE_FAILED")
        assert found == {"namespace": "bad"}
    statuses = [await place.health(f"{SERVICE}/{name}") for name in ("bad", "good", "default")]
    assert statuses == [Serving.NOT_SERVING, Serving.SERVING, Serving.SERVING]
    assert await place.health("") == Serving.SERVING
    place.file("bad").write_bytes(sound)
    await place.advance(1)
    assert await depth(place, "bad") == 0
    assert await place.health(f"{SERVICE}/bad") == Serving.SERVING


async def test_file_named_default_does_not_replace_the_default_namespace(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """The folder of --data has such a file, and a copy of the folder may become that of --db."""
    await place.caller.create("a")
    store_id = (await place.caller.call("GetServerInfo", GetServerInfoRequest())).store_id
    await place.stop()
    copy = place.file("default")
    copy.write_bytes(place.file("a").read_bytes())
    with caplog.at_level(logging.WARNING):
        await place.start()
    assert f"{copy} is not used: {place.config.db} is the file of default" in caplog.text
    request = UpdateNamespaceRequest(namespace=Namespace(name="default", description="changed"))
    await place.caller.call("UpdateNamespace", request)
    listed = (await place.caller.call("ListNamespaces", ListNamespacesRequest())).namespaces
    assert [each.name for each in listed] == ["a", "default"]
    assert (listed[1].store_id, listed[1].description) == (store_id, "changed")


async def test_missing_file_is_not_created_by_a_call(place: Place) -> None:
    await place.caller.create("a")
    await place.let_idle("a")
    place.file("a").unlink()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await depth(place, "a")
    assert reason_of(caught.value)[1] == "STORAGE_FAILED"
    assert not place.file("a").exists()


async def test_file_that_cannot_be_opened_is_deleted_by_force(place: Place) -> None:
    await place.caller.create("bad")
    await place.let_idle("bad")
    place.file("bad").write_bytes(b"no database")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await place.caller.delete("bad")
    assert reason_of(caught.value)[1] == "STORAGE_FAILED"
    await place.caller.delete("bad", force=True)
    assert not place.file("bad").exists()


async def test_health_follows_creation_and_deletion(place: Place) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await place.health(f"{SERVICE}/a")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    stub = health_pb2_grpc.HealthStub(place.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=f"{SERVICE}/a"))  # type: ignore[misc]
    seen = [(await watch.read()).status]
    await place.caller.create("a")
    seen.append((await watch.read()).status)
    await place.caller.delete("a")
    seen.append((await watch.read()).status)
    assert seen == [Serving.SERVICE_UNKNOWN, Serving.SERVING, Serving.SERVICE_UNKNOWN]
    watch.cancel()


async def drained(call: Any) -> None:
    async for _ in call:
        pass


async def ends_not_found(call: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert reason_of(caught.value)[:2] == (grpc.StatusCode.NOT_FOUND, "NAMESPACE_NOT_FOUND")


@pytest.mark.parametrize("way", ["memory-grpc", "sqlite-grpc"])
async def test_calls_under_way_end_when_their_namespace_is_deleted(
    way: str, tmp_path: Path
) -> None:
    place = Place(way, tmp_path)
    await place.start()
    caller = place.caller
    await caller.create("a")
    enqueued = await caller.call("EnqueueRollouts", enqueue(2), "a")
    await caller.call("DequeueRollouts", DequeueRolloutsRequest(limit=2), "a")
    poll = caller.begin(
        "DequeueRollouts", DequeueRolloutsRequest(limit=1, wait=Duration(seconds=3600)), "a"
    )
    wait = caller.begin(
        "WaitForRollouts",
        WaitForRolloutsRequest(rollout_ids=[enqueued.rollouts[0].rollout_id]),
        "a",
    )
    watch = caller.begin("WatchRollouts", WatchRolloutsRequest(after_completion_number=0), "a")
    ingest = place.channel.stream_unary(
        f"/{SERVICE}/IngestSpans", request_serializer=IngestSpansRequest.SerializeToString
    )(metadata=metadata("a"))
    await asyncio.gather(wait.initial_metadata(), watch.initial_metadata())
    while len(place.space("a")._uses) < 4:
        await asyncio.sleep(0.001)
    other = asyncio.ensure_future(
        caller.begin("DequeueRollouts", DequeueRolloutsRequest(limit=1, wait=Duration(seconds=9)))
    )
    await caller.delete("a", force=True)
    await asyncio.gather(
        ends_not_found(poll),
        ends_not_found(drained(wait)),
        ends_not_found(drained(watch)),
        ends_not_found(ingest),
    )
    assert not other.done()  # it is in the default namespace
    await ends_not_found(caller.call("EnqueueRollouts", enqueue(), "a"))
    other.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await other
    await place.stop()


async def test_deletion_completes_although_its_caller_has_gone(place: Place) -> None:
    await place.caller.create("a")
    ingest = place.channel.stream_unary(f"/{SERVICE}/IngestSpans")(metadata=metadata("a"))
    while not place.space("a").in_use:
        await asyncio.sleep(0.001)
    assert place.server is not None
    deleting = asyncio.ensure_future(place.server.directory.delete("a", force=True))
    await asyncio.sleep(0)
    deleting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await deleting
    while place.file("a").exists():
        await asyncio.sleep(0.001)
    await place.caller.create("a")
    assert await depth(place, "a") == 0
    await ends_not_found(ingest)


async def test_stop_closes_all_namespaces(place: Place) -> None:
    for name in ("a", "b"):
        await place.caller.create(name)
        await place.caller.call("EnqueueRollouts", enqueue(3), name)
    poll = place.caller.begin(
        "DequeueRollouts",
        DequeueRolloutsRequest(limit=9, wait=Duration(seconds=3600)),
        "b",
    )
    await poll
    await place.restart()
    assert [await depth(place, name) for name in ("a", "b")] == [3, 0]
    assert not list(place.file("a").parent.glob(".*.lock")) or place.space("a").store is not None


async def test_files_are_private_as_the_file_of_the_default_namespace(place: Place) -> None:
    await place.caller.create("a")
    assert place.file("a").parent.stat().st_mode & 0o777 == 0o700
    assert place.file("a").stat().st_mode & 0o777 == 0o600


async def test_folder_that_cannot_be_read_prevents_the_start_in_one_line(tmp_path: Path) -> None:
    config = Config(db=tmp_path / "s.db", port=0)
    (tmp_path / "s.db.d").write_text("a file")
    with pytest.raises(StorageUnusable) as caught:
        await start_server(config)
    assert str(caught.value).startswith(f"cannot read {tmp_path / 's.db.d'}: ")
    (tmp_path / "s.db.d").unlink()
    server = await start_server(config)  # nothing was left open
    await server.stop(0)


async def test_failing_creation_says_why_and_can_be_repeated(place: Place) -> None:
    folder = place.file("a").parent
    folder.write_text("a file")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await place.caller.create("a")
    assert reason_of(caught.value)[:2] == (grpc.StatusCode.UNAVAILABLE, "STORAGE_FAILED")
    assert f"cannot create {place.file('a')}: " in str(caught.value.details())
    folder.unlink()
    await place.caller.create("a")
    assert await depth(place, "a") == 0


async def test_disk_of_one_namespace_that_fails_costs_only_that_namespace(place: Place) -> None:
    for name in ("bad", "good"):
        await place.caller.create(name)
    assert await depth(place, "bad") == 0
    store = place.space("bad").store
    assert store is not None
    good, bad = f"{SERVICE}/good", f"{SERVICE}/bad"
    commit, opened = store.engine.storage.commit, store.engine.storage.open

    async def fail(*_: object) -> None:
        raise StorageFailed("disk on fire")

    store.engine.storage.commit = store.engine.storage.open = fail  # type: ignore[method-assign, assignment]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await place.caller.call("EnqueueRollouts", enqueue(), "bad")
    assert reason_of(caught.value)[1] == "STORAGE_FAILED"
    await place.caller.call("EnqueueRollouts", enqueue(), "good")
    assert [await place.health(name) for name in (bad, good, "")] == [
        Serving.NOT_SERVING,
        Serving.SERVING,
        Serving.SERVING,
    ]
    store.engine.storage.commit, store.engine.storage.open = commit, opened  # type: ignore[method-assign]
    while await place.health(bad) != Serving.SERVING:
        await place.advance(1)
    while store.engine.committer.failure is not None:
        await asyncio.sleep(0.001)
    await place.caller.call("EnqueueRollouts", enqueue(), "bad")
