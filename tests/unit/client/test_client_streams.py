"""Streams of both clients against a server that the test decides about."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from lightningstore.client import (
    AsyncLightningStore,
    CancelledCallError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    SpanBatch,
    UnavailableError,
)
from lightningstore.v1 import (
    completion_pb2,
    span_pb2,
)

from .fakes import FakeServer, Fault, rich, unavailable, watched
from .twins import Twin

pytestmark = pytest.mark.asyncio


def finished(*ids: str) -> Any:
    return completion_pb2.WaitForRolloutsResponse(
        rollouts=[{"rollout_id": i, "status": 4} for i in ids]
    )


def summary(*open_ids: str) -> Any:
    return completion_pb2.WaitForRolloutsResponse(
        summary={"open_count": len(open_ids), "open_rollout_ids": open_ids}
    )


async def test_a_wait_goes_on_after_a_break_and_yields_nothing_twice(
    twin: Twin, server: FakeServer
) -> None:
    tries = iter(
        [
            [None, finished("a"), unavailable()],
            [None, finished("a", "c"), completion_pb2.WaitForRolloutsResponse()],  # ends early
            [None, finished("b"), summary("d")],
        ]
    )

    def handle(request: Any) -> Iterator[Any]:
        del request
        for item in next(tries):
            if isinstance(item, Fault):
                raise item
            yield item

    server.on["WaitForRollouts"] = handle
    stream = twin.client.wait_for_rollouts(["a", "b", "c", "d"], timeout=30)
    await twin.do(stream, "registered")
    assert [r.rollout_id for r in await twin.do(stream, "results")] == ["a", "c", "b"]
    assert stream.open_rollout_ids == ["d"]
    assert stream.finished_count == 3
    assert await twin.next(stream) is None
    asked = [list(request.rollout_ids) for request in server.requests("WaitForRollouts")]
    assert asked == [["a", "b", "c", "d"], ["b", "c", "d"], ["b", "d"]]


async def test_registering_waits_for_a_server_that_is_away(twin: Twin, server: FakeServer) -> None:
    fails = [2]

    def handle(request: Any) -> Iterator[Any]:
        del request
        if fails[0]:
            fails[0] -= 1
            raise unavailable()
        yield None
        yield summary()

    server.on["WaitForRollouts"] = handle
    stream = twin.client.wait_for_rollouts(["a"])
    await twin.do(stream, "registered")
    assert await twin.do(stream, "results") == []
    assert len(server.requests("WaitForRollouts")) == 3


async def test_a_wait_for_what_is_not_there_fails_when_registering_and_when_iterating(
    twin: Twin, server: FakeServer
) -> None:
    def handle(request: Any) -> Iterator[Any]:
        del request
        raise Fault(*rich(grpc.StatusCode.NOT_FOUND, "ERROR_REASON_ROLLOUT_NOT_FOUND"))
        yield

    server.on["WaitForRollouts"] = handle
    with pytest.raises(NotFoundError):
        await twin.do(twin.client.wait_for_rollouts(["a"]), "registered")
    with pytest.raises(NotFoundError):
        await twin.do(twin.client.wait_for_rollouts(["a"]), "results")


async def test_a_watch_goes_on_after_a_break_where_its_user_stands(
    twin: Twin, server: FakeServer
) -> None:
    tries = iter(
        [
            [None, watched(through=3), watched(4, 5, through=5), unavailable()],
            [None, watched(through=5), watched(6, through=7), watched(through=9)],
            [
                None,
                Fault(*rich(grpc.StatusCode.FAILED_PRECONDITION, "ERROR_REASON_STORE_ID_MISMATCH")),
            ],
        ]
    )

    def handle(request: Any) -> Iterator[Any]:
        del request
        for item in next(tries):
            if isinstance(item, Fault):
                raise item
            yield item

    server.on["WatchRollouts"] = handle
    stream = twin.client.watch_rollouts()
    assert (stream.through_completion_number, stream.store_id) == (None, "")
    assert (await twin.next(stream)).completion_number == 4
    assert stream.through_completion_number == 4
    assert (await twin.next(stream)).completion_number == 5
    assert (await twin.next(stream)).completion_number == 6
    assert stream.through_completion_number == 6
    with pytest.raises(FailedPreconditionError):
        await twin.next(stream)
    assert (stream.through_completion_number, stream.store_id) == (9, "store-1")
    asked = [
        (r.HasField("after_completion_number"), r.after_completion_number, r.store_id)
        for r in server.requests("WatchRollouts")
    ]
    assert asked == [(False, 0, ""), (True, 5, "store-1"), (True, 9, "store-1")]
    assert await twin.next(stream) is None


async def test_a_read_that_is_given_up_loses_nothing(server: FakeServer) -> None:
    silent = threading.Event()
    tries = iter([[watched(through=3), watched(4, through=4), silent], [watched(5, through=5)]])

    def handle(request: Any) -> Iterator[Any]:
        del request
        yield None
        for item in next(tries):
            if item is silent:
                silent.wait(10)
            else:
                yield item

    server.on["WatchRollouts"] = handle
    async with AsyncLightningStore(server.address) as store:
        stream = store.watch_rollouts()
        assert (await anext(stream)).completion_number == 4
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(stream), 0.05)
        assert (await anext(stream)).completion_number == 5
    silent.set()
    assert [r.after_completion_number for r in server.requests("WatchRollouts")] == [0, 4]


async def test_a_stream_that_stays_away_is_given_up(kind: str, server: FakeServer) -> None:
    def handle(request: Any) -> Iterator[Any]:
        del request
        raise unavailable()
        yield

    server.on["WatchRollouts"] = handle
    twin = Twin(kind, server.address, timeout=2.0)
    with pytest.raises(UnavailableError):
        await twin.next(twin.client.watch_rollouts())
    assert len(server.requests("WatchRollouts")) > 1
    await twin.close()


def spans(*numbers: int) -> Any:
    batch = span_pb2.SpanBatch(rollout_id="ro", attempt_id="at", sequence_ids=numbers)
    for number in numbers:
        batch.spans.add(span_id=number.to_bytes(8, "big"))
    return span_pb2.QuerySpansResponse(batches=[batch])


async def test_a_query_goes_on_after_a_break_without_doubles(
    twin: Twin, server: FakeServer
) -> None:
    tries = iter([[spans(1, 2), unavailable()], [spans(1), spans(2, 3)]])

    def handle(request: Any) -> Iterator[Any]:
        del request
        for item in next(tries):
            if isinstance(item, Fault):
                raise item
            yield item

    server.on["QuerySpans"] = handle
    found = await twin.call("query_spans", "ro", name_contains="x", parent_span_id="", limit=None)
    assert [span.sequence_id for span in found] == [1, 2, 3]
    [first, second] = server.requests("QuerySpans")
    assert first == second
    assert first.name.contains == "x"
    assert first.parent_span_id.WhichOneof("match") == "equals"
    assert not first.HasField("span_id")
    assert not first.HasField("limit")


async def test_exact_and_partial_filters_exclude_each_other(twin: Twin) -> None:
    with pytest.raises(ValueError, match="name_contains"):
        await twin.call("query_spans", "ro", name="a", name_contains="b")


def take_all(request_iterator: Any) -> Any:
    count = sum(len(request.batch.spans) for request in request_iterator)
    return span_pb2.IngestSpansResponse(result={"accepted_count": count})


def broken_first(after: int = 1) -> Any:
    left = [1]

    def handle(request_iterator: Any) -> Any:
        if left[0]:
            left[0] -= 1
            for _ in range(after):
                next(request_iterator)
            raise unavailable()
        return take_all(request_iterator)

    return handle


def batches(count: int) -> list[SpanBatch]:
    return [SpanBatch(rollout_id="ro", attempt_id="at", spans=[{}]) for _ in range(count)]


async def test_a_list_of_batches_is_sent_again_after_a_break(
    twin: Twin, server: FakeServer
) -> None:
    server.on["IngestSpans"] = broken_first()
    result = await twin.call("ingest_spans", batches(3))
    assert result.accepted_count == 3
    assert len(server.requests("IngestSpans")) == 2


async def test_a_break_at_the_end_of_sending_is_a_break_like_any_other(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """grpc.aio fails the half-close of a call that the server's end cuts off, before it knows of the end."""
    server.on["IngestSpans"] = broken_first(after=3)
    half_close, failures = grpc.aio._call.StreamUnaryCall.done_writing, [1]

    async def fail_once(call: Any) -> None:
        if failures:
            failures.pop()
            raise grpc.aio.InternalError('Failed "execute_batch"')
        await half_close(call)

    monkeypatch.setattr(grpc.aio._call.StreamUnaryCall, "done_writing", fail_once)
    async with AsyncLightningStore(server.address) as store:
        assert (await store.ingest_spans(batches(3))).accepted_count == 3
    assert len(server.requests("IngestSpans")) == 2
    assert not failures


async def test_an_iterator_of_batches_is_not(twin: Twin, server: FakeServer) -> None:
    server.on["IngestSpans"] = broken_first()
    with pytest.raises(UnavailableError):
        await twin.call("ingest_spans", iter(batches(3)))
    assert len(server.requests("IngestSpans")) == 1
    result = await twin.call("ingest_spans", iter(batches(3)))
    assert result.accepted_count == 3


async def test_what_the_callers_iterator_raises_is_the_callers(
    twin: Twin, server: FakeServer
) -> None:
    server.on["IngestSpans"] = take_all

    def bad() -> Iterator[SpanBatch]:
        yield from batches(2)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await twin.call("ingest_spans", bad())


async def test_asynchronous_batches_are_taken(server: FakeServer) -> None:
    server.on["IngestSpans"] = take_all

    async def produce() -> AsyncIterator[SpanBatch]:
        for batch in batches(4):
            yield batch

    async with AsyncLightningStore(server.address) as store:
        assert (await store.ingest_spans(produce())).accepted_count == 4


async def test_a_stream_refused_half_way_tells_why(twin: Twin, server: FakeServer) -> None:
    def handle(request_iterator: Any) -> Any:
        next(request_iterator)
        raise Fault(*rich(grpc.StatusCode.INVALID_ARGUMENT, "ERROR_REASON_MALFORMED_MESSAGE"))

    server.on["IngestSpans"] = handle
    many = [SpanBatch(schema_url="x" * 100_000) for _ in range(100)]
    with pytest.raises(InvalidArgumentError):
        await twin.call("ingest_spans", many)


async def test_upload_ends_when_the_server_accepts_nothing(twin: Twin, server: FakeServer) -> None:
    release = threading.Event()

    def handle(request_iterator: Any) -> Any:
        next(request_iterator)
        release.wait(30)
        return take_all(request_iterator)

    server.on["IngestSpans"] = handle
    try:
        with pytest.raises(DeadlineExceededError, match="accepted nothing for"):
            await twin.client_with_timeout(0.3).call("ingest_spans", batches(3))
    finally:
        release.set()
    assert len(server.requests("IngestSpans")) <= 1  # not sent again


async def test_slow_batches_of_the_caller_are_no_stall(twin: Twin, server: FakeServer) -> None:
    server.on["IngestSpans"] = take_all

    def slow() -> Iterator[SpanBatch]:
        first, second = batches(2)
        yield first
        time.sleep(2.2)
        yield second

    result = await twin.client_with_timeout(2.0).call("ingest_spans", slow())
    assert result.accepted_count == 2


async def test_upload_ends_when_its_connection_is_closed_before_it_is_made() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = AsyncLightningStore(f"127.0.0.1:{silent.getsockname()[1]}", timeout=None)
        upload = asyncio.create_task(store.ingest_spans(batches(1)))
        await asyncio.sleep(0.02)
        await store.close()
        with pytest.raises(CancelledCallError):
            await asyncio.wait_for(upload, 30)
