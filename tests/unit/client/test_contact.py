"""A first call to a server that is not there: a warning soon, retries until the deadline, an error that helps."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from lightningstore.client import (
    AsyncLightningStore,
    LightningStore,
    LightningStoreError,
    UnavailableError,
)
from lightningstore.client._transport import channel
from lightningstore.client._transport.contact import FIRST_ANSWER, Contact
from lightningstore.v1 import statistics_pb2

from .fakes import FakeServer
from .twins import Twin


class Heard(logging.Handler):
    """Waits for a warning of the client."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self.said = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.said.set()


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler = Heard()
    logger = logging.getLogger("lightningstore.client")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture
def nowhere(server: FakeServer) -> str:
    """An address at which nothing listens, until the test starts the server again."""
    server.stop()
    return server.address


def test_the_limit_is_two_seconds() -> None:
    assert FIRST_ANSWER == 2.0


@pytest.mark.asyncio
async def test_a_warning_names_the_address_and_the_call_still_succeeds(
    kind: str, server: FakeServer, nowhere: str, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "FIRST_ANSWER", 0.05)
    server.on["GetStatistics"] = lambda _: statistics_pb2.GetStatisticsResponse(queue_depth=7)
    twin = Twin(kind, nowhere, timeout=30.0)
    call = asyncio.create_task(twin.call("get_statistics"))
    assert await asyncio.to_thread(heard.said.wait, 30)
    assert nowhere in heard.lines[0]
    assert "is `lightningstore serve` running there?" in heard.lines[0]
    assert not call.done()
    server.start()
    assert (await call).queue_depth == 7
    await twin.close()
    assert len(heard.lines) == 1


@pytest.mark.asyncio
async def test_the_error_at_the_deadline_names_the_address_too(kind: str, nowhere: str) -> None:
    twin = Twin(kind, nowhere, timeout=1.0)
    with pytest.raises(UnavailableError) as caught:
        await twin.call("get_statistics")
    text = f"no server answers at {nowhere}: is `lightningstore serve` running there?"
    assert text in str(caught.value)
    assert text in caught.value.message
    with pytest.raises(UnavailableError, match="is `lightningstore serve` running there"):
        await twin.call("query_spans", "ro-1")
    await twin.close()


@pytest.mark.asyncio
async def test_a_server_that_takes_long_over_its_first_answer_is_not_reported(
    kind: str, server: FakeServer, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look that the timer makes comes when the call has reached the server, however long that takes."""
    states: list[grpc.ChannelConnectivity] = []
    begun, looked = threading.Event(), threading.Event()
    report = Contact.report

    def watched(self: Contact, state: grpc.ChannelConnectivity) -> None:
        report(self, state)
        states.append(state)
        looked.set()

    def slow(_: Any) -> Any:
        begun.set()
        assert looked.wait(30)
        return statistics_pb2.GetStatisticsResponse()

    monkeypatch.setattr(Contact, "report", watched)
    server.on["GetStatistics"] = slow
    twin = Twin(kind, server.address)
    call = asyncio.create_task(twin.call("get_statistics"))
    assert await asyncio.to_thread(begun.wait, 30)
    holder = twin.client._transport._holder
    assert holder.contact.is_timed
    if twin.blocking:
        channel._report_state(holder._channel, holder.contact)
    else:
        holder._report_state(holder._channel)
    await call
    await twin.close()
    assert states == [grpc.ChannelConnectivity.READY]
    assert heard.lines == []


def test_no_hint_once_the_server_has_answered(server: FakeServer) -> None:
    server.on["GetStatistics"] = lambda _: statistics_pb2.GetStatisticsResponse()
    with LightningStore(server.address, timeout=1.0) as store:
        store.get_statistics()
        server.stop()
        with pytest.raises(UnavailableError) as caught:
            store.get_statistics()
    assert "lightningstore serve" not in str(caught.value)


def test_no_warning_after_close(
    nowhere: str, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(Contact, "report", lambda *arguments: reported.append(arguments))
    with LightningStore(nowhere, timeout=0.1) as store:
        with pytest.raises(LightningStoreError):
            store.get_statistics()
        contact: Contact = store._transport._holder.contact  # type: ignore[attr-defined]
        assert contact.is_timed
        [timer] = [t for t in threading.enumerate() if getattr(t, "args", ())[1:] == (contact,)]
    timer.join(1.5)  # ended by close, before its time
    assert not timer.is_alive()
    assert not reported

    async def closed() -> bool:
        async with AsyncLightningStore(nowhere, timeout=0.1) as store:
            with pytest.raises(LightningStoreError):
                await store.get_statistics()
            cancel = store._transport._holder.contact._cancel  # type: ignore[attr-defined]
        return bool(cancel.__self__.cancelled())

    assert asyncio.run(closed())
    assert heard.lines == []
