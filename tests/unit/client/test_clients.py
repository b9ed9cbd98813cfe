"""Both clients against a server that the test decides about."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from lightningstore.client import (
    AsyncLightningStore,
    CancelledCallError,
    DeadlineExceededError,
    LightningStore,
    NotFoundError,
    ResourceExhaustedError,
    RolloutConfig,
    SpanBatch,
    UnavailableError,
)
from lightningstore.client.connection import resolve
from lightningstore.v1 import (
    attempt_pb2,
    claim_pb2,
    completion_pb2,
    resources_pb2,
    rollout_pb2,
    span_pb2,
    statistics_pb2,
    triplet_pb2,
    worker_pb2,
)

from .fakes import FakeServer, Fault, faults_first, rich, unavailable, watched
from .twins import Twin

pytestmark = pytest.mark.asyncio


def echo_specs(request: Any) -> Any:
    return rollout_pb2.EnqueueRolloutsResponse(
        rollouts=[{"rollout_id": s.rollout_id, "status": 1} for s in request.rollouts]
    )


async def test_enqueue_gives_ids_and_repeats_them(twin: Twin, server: FakeServer) -> None:
    left = [2]

    def handle(request: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise unavailable()
        return echo_specs(request)

    server.on["EnqueueRollouts"] = handle
    [one, two] = await twin.call("enqueue_rollouts", [{"input": 1}, {"input": 2}])
    requests = server.requests("EnqueueRollouts")
    assert len(requests) == 3
    assert requests[0] == requests[1] == requests[2]
    assert requests[0].request_id
    assert one.rollout_id != two.rollout_id
    assert one.rollout_id.startswith("ro-")
    assert len(one.rollout_id) == 15


@pytest.mark.parametrize(
    ("method", "arguments", "rpc", "answer"),
    [
        ("start_rollout", ({"a": 1},), "StartRollout", claim_pb2.StartRolloutResponse()),
        ("dequeue_rollouts", (), "DequeueRollouts", claim_pb2.DequeueRolloutsResponse()),
        ("start_attempt", ("ro-1",), "StartAttempt", claim_pb2.StartAttemptResponse()),
        ("update_rollout", ("ro-1",), "UpdateRollout", rollout_pb2.UpdateRolloutResponse()),
        (
            "allocate_sequence_ids",
            ([("ro-1", "at-1", 3)],),
            "AllocateSequenceIds",
            span_pb2.AllocateSequenceIdsResponse(),
        ),
        ("add_resources", ({"a": 1},), "AddResources", resources_pb2.AddResourcesResponse()),
        (
            "update_resources",
            ("rs-1", {}),
            "UpdateResources",
            resources_pb2.UpdateResourcesResponse(),
        ),
    ],
)
async def test_writes_have_a_request_id_of_their_own_and_keep_it_when_repeated(
    twin: Twin, server: FakeServer, method: str, arguments: Any, rpc: str, answer: Any
) -> None:
    server.on[rpc] = faults_first(1, answer)
    await twin.call(method, *arguments)
    await twin.call(method, *arguments)
    await twin.call(method, *arguments, request_id="mine")
    first, repeated, second, third = server.requests(rpc)
    assert first == repeated
    assert len(first.request_id) == 32
    assert second.request_id not in ("", first.request_id)
    assert third.request_id == "mine"


@pytest.mark.parametrize(
    ("method", "arguments", "rpc", "answer"),
    [
        ("get_rollout", ("ro-1",), "GetRollout", rollout_pb2.GetRolloutResponse()),
        ("list_rollouts", (), "ListRollouts", rollout_pb2.ListRolloutsResponse()),
        ("get_statistics", (), "GetStatistics", statistics_pb2.GetStatisticsResponse()),
        ("heartbeat", ("w",), "Heartbeat", worker_pb2.HeartbeatResponse()),
        (
            "update_attempt",
            ("ro-1", "at-1"),
            "UpdateAttempt",
            attempt_pb2.UpdateAttemptResponse(),
        ),
        ("cancel_rollouts", (["ro-1"],), "CancelRollouts", rollout_pb2.CancelRolloutsResponse()),
        ("delete_rollouts", (["ro-1"],), "DeleteRollouts", rollout_pb2.DeleteRolloutsResponse()),
        ("add_spans", (SpanBatch(),), "AddSpans", span_pb2.AddSpansResponse()),
    ],
)
async def test_what_the_contract_calls_harmless_is_repeated(
    twin: Twin, server: FakeServer, method: str, arguments: Any, rpc: str, answer: Any
) -> None:
    server.on[rpc] = faults_first(2, answer)
    await twin.call(method, *arguments)
    assert len(server.requests(rpc)) == 3


async def test_a_write_without_ids_is_not_repeated(twin: Twin, server: FakeServer) -> None:
    server.on["DequeueRollouts"] = faults_first(1, claim_pb2.DequeueRolloutsResponse())
    with pytest.raises(UnavailableError, match="not now"):
        await twin.call("call", "DequeueRollouts", claim_pb2.DequeueRolloutsRequest(limit=1))
    server.on["DequeueRollouts"] = faults_first(1, claim_pb2.DequeueRolloutsResponse())
    with pytest.raises(UnavailableError):
        await twin.call("dequeue_rollouts", request_id="")
    assert len(server.requests("DequeueRollouts")) == 2


async def test_a_refused_call_is_not_repeated(twin: Twin, server: FakeServer) -> None:
    ending = rich(grpc.StatusCode.NOT_FOUND, "ERROR_REASON_ROLLOUT_NOT_FOUND", rolloutId="x")
    server.on["GetRollout"] = faults_first(9, None, Fault(*ending))
    with pytest.raises(NotFoundError) as caught:
        await twin.call("get_rollout", "x")
    assert caught.value.metadata == {"rolloutId": "x"}
    assert len(server.requests("GetRollout")) == 1


async def test_overload_is_waited_out_for_as_long_as_the_server_says(
    twin: Twin, server: FakeServer
) -> None:
    busy = Fault(*rich(grpc.StatusCode.RESOURCE_EXHAUSTED, "ERROR_REASON_BUSY", retry=0.01))
    server.on["GetRollout"] = faults_first(2, rollout_pb2.GetRolloutResponse(), busy)
    await twin.call("get_rollout", "x")
    assert len(server.requests("GetRollout")) == 3
    full = Fault(*rich(grpc.StatusCode.RESOURCE_EXHAUSTED, "ERROR_REASON_BATCH_TOO_LARGE"))
    server.on["GetRollout"] = faults_first(9, None, full)
    with pytest.raises(ResourceExhaustedError):
        await twin.call("get_rollout", "x")
    assert len(server.requests("GetRollout")) == 4


async def test_a_server_that_is_away_is_waited_for_until_the_deadline(
    kind: str, server: FakeServer
) -> None:
    server.on["GetRollout"] = lambda _: rollout_pb2.GetRolloutResponse()
    server.stop()
    twin = Twin(kind, server.address, timeout=20.0)
    answer = asyncio.create_task(twin.call("get_rollout", "x"))
    with pytest.raises(UnavailableError):
        await twin.client_with_timeout(1.0).call("get_rollout", "x")
    server.start()
    await answer
    await twin.close()


async def test_a_silent_server_is_given_up_at_the_deadline(kind: str, server: FakeServer) -> None:
    done = threading.Event()
    server.on["GetRollout"] = lambda _: done.wait(10) and rollout_pb2.GetRolloutResponse()
    twin = Twin(kind, server.address, timeout=0.1)
    with pytest.raises(DeadlineExceededError):
        await twin.call("get_rollout", "x")
    done.set()
    await twin.close()


async def test_a_long_poll_has_its_wait_on_top_of_the_deadline(
    twin: Twin, server: FakeServer
) -> None:
    server.on["DequeueRollouts"] = lambda _: claim_pb2.DequeueRolloutsResponse()
    await twin.call("dequeue_rollouts", wait=60.5)
    [seen] = server.seen
    assert seen.request.wait.seconds == 60
    assert seen.time_remaining is not None
    assert 60 < seen.time_remaining <= 65.6


async def test_metadata_goes_with_every_call(kind: str, server: FakeServer) -> None:
    server.on["GetRollout"] = lambda _: rollout_pb2.GetRolloutResponse()
    twin = Twin(kind, server.address, metadata={"x-tenant": "blue"})
    await twin.call("get_rollout", "x")
    assert server.seen[0].metadata["x-tenant"] == "blue"
    assert "lightningstore-python/" in server.seen[0].metadata["user-agent"]
    await twin.close()


async def test_fields_left_out_stay_and_none_clears(twin: Twin, server: FakeServer) -> None:
    server.on["UpdateAttempt"] = lambda _: attempt_pb2.UpdateAttemptResponse(stop_reason=3)
    update = await twin.call("update_attempt", "ro", "at", failure=None, worker_id="w")
    await twin.call("update_attempt", "ro", "at", sent_span_count=0)
    first, second = server.requests("UpdateAttempt")
    assert list(first.update_mask.paths) == ["failure", "worker_id"]
    assert not first.attempt.HasField("failure")
    assert not first.HasField("sent_span_count")
    assert not second.HasField("update_mask")
    assert second.HasField("sent_span_count")
    assert update.stop_reason == "superseded"
    assert update.missing_span_count is None
    server.on["UpdateRollout"] = lambda _: rollout_pb2.UpdateRolloutResponse()
    await twin.call("update_rollout", "ro", input=None, config=RolloutConfig(timeout=1), mode=None)
    [request] = server.requests("UpdateRollout")
    assert list(request.update_mask.paths) == ["input_json", "mode", "config"]
    assert request.rollout.input_json == b"null"


async def test_iteration_follows_the_pages(twin: Twin, server: FakeServer) -> None:
    pages = {
        "": rollout_pb2.ListRolloutsResponse(rollouts=[{"rollout_id": "a"}], next_page_token="t"),
        "t": rollout_pb2.ListRolloutsResponse(rollouts=[{"rollout_id": "b"}]),
    }
    server.on["ListRollouts"] = lambda request: pages[request.page_token]
    found = await twin.call("iter_rollouts", statuses=["running"], page_size=1, skip=5)
    assert [r.rollout_id for r in found] == ["a", "b"]
    first, second = server.requests("ListRollouts")
    assert (first.skip, second.skip) == (5, 0)
    assert list(first.statuses) == list(second.statuses) == [3]


async def test_large_messages_pass_both_ways(twin: Twin, server: FakeServer) -> None:
    text = b'"' + b"x" * (60 << 20) + b'"'
    server.on["GetRollout"] = lambda _: rollout_pb2.GetRolloutResponse(
        rollout=rollout_pb2.Rollout(input_json=text)
    )
    assert len((await twin.call("get_rollout", "x")).message.input_json) == len(text)


async def test_a_closed_client_says_so(twin: Twin) -> None:
    await twin.close()
    await twin.close()
    with pytest.raises(RuntimeError, match="closed"):
        await twin.call("get_rollout", "x")
    with pytest.raises(RuntimeError, match="closed"):
        await twin.next(twin.client.watch_rollouts())


async def test_closing_ends_calls_that_run_with_an_error(twin: Twin, server: FakeServer) -> None:
    begun, done = threading.Event(), threading.Event()

    def handle(request: Any) -> Any:
        del request
        begun.set()
        done.wait(10)
        return rollout_pb2.GetRolloutResponse()

    server.on["GetRollout"] = handle
    call = asyncio.create_task(twin.call("get_rollout", "x"))
    await asyncio.to_thread(begun.wait)
    await twin.close()
    with pytest.raises((CancelledCallError, UnavailableError)):
        await call
    done.set()


async def test_cancelling_a_task_cancels_its_call_and_is_no_error_of_the_store(
    server: FakeServer,
) -> None:
    begun, done = threading.Event(), threading.Event()

    def handle(request: Any) -> Any:
        del request
        begun.set()
        done.wait(10)
        return rollout_pb2.GetRolloutResponse()

    server.on["GetRollout"] = handle
    async with AsyncLightningStore(server.address) as store:
        task = asyncio.create_task(store.get_rollout("x"))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    done.set()


async def test_a_pickled_client_is_a_client(kind: str, server: FakeServer) -> None:
    server.on["GetRollout"] = lambda _: rollout_pb2.GetRolloutResponse()
    twin = Twin(kind, server.address, timeout=3.0, metadata={"x-tenant": "blue"})
    await twin.call("get_rollout", "x")
    twin.client, first = pickle.loads(pickle.dumps(twin.client)), twin.client
    await twin.call("get_rollout", "x")
    assert server.seen[1].metadata["x-tenant"] == "blue"
    assert server.seen[1].time_remaining == pytest.approx(3.0, abs=0.5)
    await twin.close()
    twin.client = first
    await twin.call("get_rollout", "x")
    await twin.close()


async def test_clients_that_share_a_connection_have_deadlines_of_their_own(
    twin: Twin, server: FakeServer
) -> None:
    server.on["GetRollout"] = lambda _: rollout_pb2.GetRolloutResponse()
    await twin.client_with_timeout(50.0).call("get_rollout", "x")
    await twin.client_with_timeout(None).call("get_rollout", "x")
    first, second = server.seen
    assert first.time_remaining == pytest.approx(50, abs=1)
    assert second.time_remaining is None or second.time_remaining > 1e6


async def test_streams_are_context_managers(server: FakeServer) -> None:
    def handle(request: Any) -> Iterator[Any]:
        del request
        yield None
        yield watched(4, through=4)

    server.on["WatchRollouts"] = handle
    async with AsyncLightningStore(server.address) as store, store.watch_rollouts() as stream:
        async for rollout in stream:
            assert rollout.completion_number == 4
            break
    with LightningStore(server.address) as client, client.watch_rollouts() as blocking:
        assert next(blocking).completion_number == 4


async def test_the_address_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    del kind
    assert resolve(None) == "127.0.0.1:4747"
    monkeypatch.setenv("LIGHTNINGSTORE_ADDRESS", "store:1")
    assert resolve(None) == "store:1"
    assert resolve("other:2") == "other:2"
    with pytest.raises(ValueError, match="http://store"):
        LightningStore("http://store:1")


async def test_an_export_fetches_payloads_that_were_left_out(
    twin: Twin, server: FakeServer
) -> None:
    attempt = {"rollout_id": "r1", "attempt_id": "at-1", "status": 3}
    told = {"rollout_id": "r1", "status": 5, "attempt_count": 1, "completion_number": 1}

    def watch(request: Any) -> Any:
        del request
        yield completion_pb2.WatchRolloutsResponse(through_completion_number=0, store_id="s")
        yield completion_pb2.WatchRolloutsResponse(
            rollouts=[{**told, "payloads_omitted": True, "latest_attempt": attempt}],
            through_completion_number=1,
        )

    server.on["GetStatistics"] = lambda _: statistics_pb2.GetStatisticsResponse(
        last_completion_number=1
    )
    server.on["WatchRollouts"] = watch
    server.on["GetRollout"] = lambda _: rollout_pb2.GetRolloutResponse(
        rollout={**told, "input_json": b"7", "metadata_json": b'{"a":1}'}
    )
    server.on["ListAttempts"] = lambda _: attempt_pb2.ListAttemptsResponse(
        attempts=[{**attempt, "metadata_json": b'{"b":2}'}]
    )
    server.on["ListTriplets"] = lambda _: iter([triplet_pb2.ListTripletsResponse()])
    [found] = await twin.call("export_rollouts", spans=False)
    assert (found.rollout.input, found.rollout.metadata) == (7, {"a": 1})
    assert [attempt.metadata for attempt in found.attempts] == [{"b": 2}]
