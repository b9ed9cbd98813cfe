"""Two namespaces on one server: every call of the contract, and nothing crosses."""

from __future__ import annotations

from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.service.rpc import handlers
from lightningstore.v1 import (
    attempt_pb2,
    claim_pb2,
    completion_pb2,
    consumer_pb2,
    group_pb2,
    import_pb2,
    resources_pb2,
    rollout_pb2,
    sample_pb2,
    series_pb2,
    span_pb2,
    statistics_pb2,
    triplet_pb2,
    worker_pb2,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.namespaced import Caller

pytestmark = pytest.mark.asyncio

#: Part of everything that namespace a holds, and of nothing else.
MARK = "only-in-a"
QUEUED, RUNNING, FINISHED = (f"{MARK}-{name}" for name in ("queued", "running", "finished"))
WORKER, GROUP, RESOURCES = (f"{MARK}-{name}" for name in ("worker", "group", "resources"))
INPUT = f'{{"task": "{MARK}"}}'.encode()
SUCCEEDED = attempt_pb2.ATTEMPT_STATUS_SUCCEEDED

spec = rollout_pb2.RolloutSpec


def spans(rollout_id: str) -> span_pb2.SpanBatch:
    span = Span(trace_id=b"t" * 16, span_id=b"s" * 8, name=MARK, start_time_unix_nano=1)
    return span_pb2.SpanBatch(rollout_id=rollout_id, attempt_id="latest", spans=[span])


def finished(rollout_id: str) -> attempt_pb2.UpdateAttemptRequest:
    attempt = attempt_pb2.Attempt(rollout_id=rollout_id, attempt_id="latest", status=SUCCEEDED)
    return attempt_pb2.UpdateAttemptRequest(attempt=attempt)


#: What fills a namespace with something of everything.
FILLING: list[tuple[str, Message]] = [
    ("AddResources", resources_pb2.AddResourcesRequest(resources_id=RESOURCES, request_id=MARK)),
    ("UpdateResources", resources_pb2.UpdateResourcesRequest(resources_id=RESOURCES)),
    (
        "EnqueueRollouts",
        rollout_pb2.EnqueueRolloutsRequest(
            request_id=MARK,
            rollouts=[
                spec(rollout_id=name, input_json=INPUT, group_id=GROUP)
                for name in (FINISHED, RUNNING, QUEUED)
            ],
            groups=[rollout_pb2.GroupSpec(group_id=GROUP, size=4)],
        ),
    ),
    *(
        ("DequeueRollouts", claim_pb2.DequeueRolloutsRequest(limit=1, worker_id=WORKER))
        for _ in (FINISHED, RUNNING)
    ),
    ("AddSpans", span_pb2.AddSpansRequest(batch=spans(FINISHED))),
    ("UpdateAttempt", finished(FINISHED)),
    (
        "CreateConsumer",
        consumer_pb2.CreateConsumerRequest(
            consumer=consumer_pb2.Consumer(name=MARK, after_completion_number=0)
        ),
    ),
]

#: For each call a request that names what namespace a holds.
REQUESTS: dict[str, Message] = {
    **dict(FILLING),
    "StartRollout": claim_pb2.StartRolloutRequest(
        rollout=spec(rollout_id=f"{MARK}-started", input_json=b"{}")
    ),
    "DequeueRollouts": claim_pb2.DequeueRolloutsRequest(limit=10),
    "StartAttempt": claim_pb2.StartAttemptRequest(rollout_id=QUEUED),
    "PauseClaims": claim_pb2.PauseClaimsRequest(reason="isolation"),
    "ResumeClaims": claim_pb2.ResumeClaimsRequest(),
    "UpdateAttempt": finished(RUNNING),
    "ListAttempts": attempt_pb2.ListAttemptsRequest(rollout_id=FINISHED),
    "GetAttempt": attempt_pb2.GetAttemptRequest(rollout_id=FINISHED, attempt_id="latest"),
    "GetRollout": rollout_pb2.GetRolloutRequest(rollout_id=FINISHED),
    "ListRollouts": rollout_pb2.ListRolloutsRequest(include_total_size=True),
    "UpdateRollout": rollout_pb2.UpdateRolloutRequest(
        rollout=rollout_pb2.Rollout(rollout_id=QUEUED, priority=5)
    ),
    "DeleteRollouts": rollout_pb2.DeleteRolloutsRequest(rollout_ids=[FINISHED]),
    "CancelRollouts": rollout_pb2.CancelRolloutsRequest(rollout_ids=[QUEUED, RUNNING]),
    "WaitForRollouts": completion_pb2.WaitForRolloutsRequest(
        rollout_ids=[FINISHED], group_ids=[GROUP], timeout=Duration(seconds=0)
    ),
    "WatchRollouts": completion_pb2.WatchRolloutsRequest(after_completion_number=0),
    "GetGroup": group_pb2.GetGroupRequest(group_id=GROUP),
    "ListGroups": group_pb2.ListGroupsRequest(),
    "GetSeries": series_pb2.GetSeriesRequest(
        measure=series_pb2.SERIES_MEASURE_ATTEMPTS,
        axis=series_pb2.SERIES_AXIS_COMPLETION_NUMBER,
        bucket_count=1,
    ),
    "WatchGroups": group_pb2.WatchGroupsRequest(after_completion_number=0),
    "GetConsumer": consumer_pb2.GetConsumerRequest(name=MARK),
    "ListConsumers": consumer_pb2.ListConsumersRequest(),
    "UpdateConsumer": consumer_pb2.UpdateConsumerRequest(
        consumer=consumer_pb2.Consumer(name=MARK, max_outstanding=5)
    ),
    "DeleteConsumer": consumer_pb2.DeleteConsumerRequest(name=MARK),
    "PullFinished": consumer_pb2.PullFinishedRequest(consumer=MARK, max_items=5),
    "Acknowledge": consumer_pb2.AcknowledgeRequest(consumer=MARK),
    "ModifyAckDeadline": consumer_pb2.ModifyAckDeadlineRequest(
        consumer=MARK, ack_deadline=Duration(seconds=5)
    ),
    "ListDeliveries": consumer_pb2.ListDeliveriesRequest(consumer=MARK),
    "IngestSpans": span_pb2.IngestSpansRequest(batch=spans(RUNNING)),
    "AllocateSequenceIds": span_pb2.AllocateSequenceIdsRequest(
        demands=[span_pb2.SequenceIdDemand(rollout_id=RUNNING, attempt_id="latest", count=1)]
    ),
    "QuerySpans": span_pb2.QuerySpansRequest(rollout_id=FINISHED),
    "ListTriplets": triplet_pb2.ListTripletsRequest(rollout_ids=[FINISHED]),
    "ListSamples": sample_pb2.ListSamplesRequest(rollout_ids=[FINISHED]),
    "ImportRollouts": import_pb2.ImportRolloutsRequest(
        rollout=rollout_pb2.Rollout(
            rollout_id=f"{MARK}-imported",
            input_json=b"{}",
            status=rollout_pb2.ROLLOUT_STATUS_CANCELLED,
            start_time=Timestamp(seconds=1),
            end_time=Timestamp(seconds=2),
        )
    ),
    "GetResources": resources_pb2.GetResourcesRequest(),
    "ListResources": resources_pb2.ListResourcesRequest(),
    "WatchResources": resources_pb2.WatchResourcesRequest(after_publish_number=0),
    "Heartbeat": worker_pb2.HeartbeatRequest(
        worker_id=WORKER,
        attempts=[attempt_pb2.AttemptRef(rollout_id=RUNNING, attempt_id="latest")],
    ),
    "GetWorker": worker_pb2.GetWorkerRequest(worker_id=WORKER),
    "ListWorkers": worker_pb2.ListWorkersRequest(),
    "GetStatistics": statistics_pb2.GetStatisticsRequest(),
    "GetServerInfo": statistics_pb2.GetServerInfoRequest(),
}
#: Calls whose answer repeats what the request names, or that report it as unknown.
REPEATING = {
    *("StartRollout", "EnqueueRollouts", "AddResources", "UpdateResources", "Heartbeat"),
    "IngestSpans",
    "DeleteRollouts",
    "PauseClaims",
    "CreateConsumer",
}


@pytest_asyncio.fixture
async def caller(channel: grpc.aio.Channel) -> Caller:
    """Namespaces a, full, and b and c, empty."""
    caller = Caller(channel)
    for name in ("a", "b", "c"):
        await caller.create(name)
    for method, request in FILLING:
        await caller.call(method, request, "a")
    return caller


async def outcome(caller: Caller, method: str, namespace: str) -> tuple[str, str]:
    """Return how a call ends, and what it says, as texts."""
    request = REQUESTS[method]
    try:
        answer = await caller.call(method, request, namespace, 0.5 if "Watch" in method else 20)
    except grpc.aio.AioRpcError as error:
        return error.code().name, str(error.details())
    answers = answer if isinstance(answer, list) else [answer]
    if method == "GetStatistics":
        answer.ClearField("disk_free_bytes")  # of the machine, whose other programs change it
    return "OK", "".join(map(str, answers))


async def seen(caller: Caller, namespace: str) -> dict[str, Any]:
    """Return everything that reads show of a namespace."""
    found = {}
    for method in (
        *("ListRollouts", "ListWorkers", "ListResources", "GetResources", "GetStatistics"),
        *("ListGroups", "GetSeries", "GetServerInfo", "QuerySpans", "ListAttempts"),
        "ListConsumers",
    ):
        found[method] = await outcome(caller, method, namespace)
    return found


@pytest.mark.parametrize("method", sorted(m.name for m in handlers.SERVICE.methods))
async def test_call_in_one_namespace_neither_shows_nor_changes_another(
    caller: Caller, method: str
) -> None:
    assert method in REQUESTS, f"{method} needs a request that names what namespace a holds"
    before = await seen(caller, "a")
    empty = await seen(caller, "c")
    for namespace in ("b", ""):
        code, text = await outcome(caller, method, namespace)
        assert code in ("OK", "NOT_FOUND", "DEADLINE_EXCEEDED"), text
        if code == "OK" and method not in REPEATING:
            assert MARK not in text
    assert await seen(caller, "a") == before
    assert await seen(caller, "c") == empty


@pytest.mark.parametrize("method", sorted(m.name for m in handlers.SERVICE.methods))
async def test_the_same_call_in_the_full_namespace_finds_what_it_names(
    caller: Caller, method: str
) -> None:
    """Without this, the test above could pass with requests that name nothing."""
    others = await seen(caller, "b"), await seen(caller, "")
    code, text = await outcome(caller, method, "a")
    if method in ("WatchRollouts", "WatchResources", "WatchGroups"):
        assert code == "DEADLINE_EXCEEDED"  # it goes on
    else:
        assert code == "OK", text
    assert (await seen(caller, "b"), await seen(caller, "")) == others


async def test_ids_numbers_and_the_latest_are_each_namespace_s_own(caller: Caller) -> None:
    for method, request in FILLING:  # the same ids and request ids
        await caller.call(method, request, "b")
    for namespace in ("a", "b"):
        listed = await caller.call("ListRollouts", REQUESTS["ListRollouts"], namespace)
        assert listed.total_size == 3
        (numbered,) = [r for r in listed.rollouts if r.completion_number]
        assert (numbered.rollout_id, numbered.completion_number) == (FINISHED, 1)
        latest = await caller.call("GetResources", REQUESTS["GetResources"], namespace)
        assert (latest.resources.resources_id, latest.resources.version) == (RESOURCES, 2)
        assert latest.resources.publish_number == 2
    a, b = [await caller.call("GetServerInfo", REQUESTS["GetServerInfo"], n) for n in "ab"]
    request = completion_pb2.WatchRolloutsRequest(after_completion_number=1, store_id=a.store_id)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.call("WatchRollouts", request, "b")
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert b.store_id in str(caught.value.details())


async def test_page_token_of_another_namespace_shows_nothing_of_it(caller: Caller) -> None:
    request = rollout_pb2.ListRolloutsRequest(page_size=1)
    first = await caller.call("ListRollouts", request, "a")
    request.page_token = first.next_page_token
    assert not (await caller.call("ListRollouts", request, "b")).rollouts
