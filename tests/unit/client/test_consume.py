"""`consume`, which pulls without end, on a server whose answers a test decides."""

from __future__ import annotations

import asyncio
import threading

import grpc
import pytest
from lightningstore.client import AsyncLightningStore, NotFoundError
from lightningstore.v1.consumer_pb2 import PullFinishedRequest, PullFinishedResponse

from .fakes import FakeServer, Fault, rich, unavailable
from .twins import Twin

pytestmark = pytest.mark.asyncio


def delivering(*ids: str) -> PullFinishedResponse:
    answer = PullFinishedResponse()
    for delivery_id in ids:
        answer.deliveries.add(delivery_id=delivery_id)
    return answer


async def test_an_iteration_takes_nothing_ahead_and_repeats_what_is_lost(
    twin: Twin, server: FakeServer
) -> None:
    answers = [
        delivering("a", "b"),
        unavailable(),  # the response to the next pull is lost
        delivering("c"),
        delivering(),  # the end of a long poll
        Fault(*rich(grpc.StatusCode.NOT_FOUND, "ERROR_REASON_CONSUMER_NOT_FOUND")),
    ]

    def pull(_: PullFinishedRequest) -> PullFinishedResponse:
        answer = answers[len(server.requests("PullFinished")) - 1]
        if isinstance(answer, Fault):
            raise answer
        return answer

    server.on["PullFinished"] = pull
    iterated = twin.client.consume("trainer", 2, min_items=1)
    assert server.seen == []  # it begins when it is iterated
    assert [d.delivery_id for d in await twin.next(iterated)] == ["a", "b"]
    assert len(server.seen) == 1
    assert [d.delivery_id for d in await twin.next(iterated)] == ["c"]
    assert len(server.seen) == 3
    with pytest.raises(NotFoundError):
        await twin.next(iterated)
    requests = server.requests("PullFinished")
    first, second, third, *_ = requests
    assert second == third
    assert len({request.request_id for request in requests}) == 4
    assert (first.consumer, first.max_items, first.min_items) == ("trainer", 2, 1)
    assert (first.wait.seconds, first.partial_ok) == (20, False)
    # The deadline of the call is the timeout of the client after the end of the wait.
    assert all(seen.time_remaining > 20 for seen in server.seen if seen.time_remaining)


async def test_cancelling_an_iteration_ends_it(server: FakeServer) -> None:
    begun, done = threading.Event(), threading.Event()

    def pull(_: PullFinishedRequest) -> PullFinishedResponse:
        begun.set()
        done.wait(30)
        return delivering()

    server.on["PullFinished"] = pull
    async with AsyncLightningStore(server.address) as store:
        iterated = store.consume("trainer")
        task = asyncio.ensure_future(anext(iterated))
        assert await asyncio.to_thread(begun.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [deliveries async for deliveries in iterated] == []
    done.set()
    assert len(server.requests("PullFinished")) == 1
