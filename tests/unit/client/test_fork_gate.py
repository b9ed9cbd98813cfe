"""Forks and calls keep apart: what a fork of this process runs is called here, without a fork."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from lightningstore.client import LightningStore
from lightningstore.client._transport import forks
from lightningstore.client._transport.forks import Gate, gate
from lightningstore.v1 import claim_pb2, span_pb2, statistics_pb2, worker_pb2

from .fakes import FakeServer
from .runners import Start

ANSWERS: dict[str, Any] = {
    "GetServerInfo": statistics_pb2.GetServerInfoResponse(),
    "IngestSpans": span_pb2.IngestSpansResponse(result={}),
}
CALLS: dict[str, Callable[[LightningStore], Callable[[], Any]]] = {
    "GetServerInfo": lambda store: store.get_server_info,
    "IngestSpans": lambda store: lambda: store.ingest_spans([]),
}


def in_thread(function: Callable[[], Any]) -> tuple[threading.Thread, threading.Event]:
    """Start a thread, and return it with an event that is set when the function has returned."""
    done = threading.Event()
    thread = threading.Thread(target=lambda: (function(), done.set()), daemon=True)
    thread.start()
    return thread, done


@contextmanager
def forking(gate: Gate) -> Iterator[None]:
    gate.before_fork()
    try:
        yield
    finally:
        gate.after_fork()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait that only ends by what is waited for."""
    monkeypatch.setattr(forks, "WAIT", 60.0)


@pytest.mark.usefixtures("patient")
def test_a_fork_waits_for_a_call_and_a_new_call_for_the_fork() -> None:
    own, calling, answered = Gate(), threading.Event(), threading.Event()

    def call() -> None:
        with own.call():
            calling.set()
            answered.wait(20)

    in_thread(call)
    assert calling.wait(20)
    forked, over = threading.Event(), threading.Event()

    def fork() -> None:
        with forking(own):
            forked.set()
            over.wait(20)

    in_thread(fork)
    assert not forked.wait(0.05)
    answered.set()
    assert forked.wait(20)

    def another() -> None:
        with own.call():
            pass

    _, done = in_thread(another)
    assert not done.wait(0.05)
    over.set()
    assert done.wait(20)


@pytest.mark.usefixtures("patient")
def test_the_thread_that_forks_waits_for_nothing_of_its_own() -> None:
    own = Gate()
    with own.call(), forking(own), own.call():
        pass


@pytest.mark.usefixtures("patient")
def test_a_fork_waits_for_no_call_that_lasts_long() -> None:
    own, calling, answered = Gate(), threading.Event(), threading.Event()

    def call() -> None:
        with own.call():
            calling.set()
            answered.wait(20)

    thread, _ = in_thread(call)
    assert calling.wait(20)
    for ticket in own._tickets:
        ticket.began -= forks.WAIT
    with forking(own):
        assert not answered.is_set()
    answered.set()
    thread.join(20)


@pytest.mark.usefixtures("patient")
def test_a_child_has_neither_the_calls_nor_the_forks_of_its_parent() -> None:
    own, calling, answered = Gate(), threading.Event(), threading.Event()

    def call() -> None:
        with own.call():
            calling.set()
            answered.wait(20)

    thread, _ = in_thread(call)
    assert calling.wait(20)
    own._forking.append(0)  # as in the child of a thread that forks
    own.after_fork_in_child()
    with forking(own):
        pass
    with own.call():
        pass
    answered.set()
    thread.join(20)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("method", ["GetServerInfo", "IngestSpans"])
def test_a_fork_waits_for_the_calls_of_a_client(server: FakeServer, method: str) -> None:
    asked, answered = threading.Event(), threading.Event()

    def handle(request: Any) -> Any:
        del request
        asked.set()
        answered.wait(20)
        return ANSWERS[method]

    def fork() -> None:
        with forking(gate):
            pass

    server.on[method] = handle
    with LightningStore(server.address) as store:
        called, done = in_thread(CALLS[method](store))
        assert asked.wait(20)
        forker, forked = in_thread(fork)
        assert not forked.wait(0.05)
        answered.set()
        assert forked.wait(20)
        assert done.wait(20)
        called.join()
        forker.join()


@pytest.mark.usefixtures("patient")
def test_a_fork_cancels_the_poll_of_a_runner_which_asks_the_same_again(
    server: FakeServer, start: Start
) -> None:
    asked, over = threading.Semaphore(0), threading.Event()

    def poll(request: Any) -> Any:
        del request
        asked.release()
        over.wait(20)
        return claim_pb2.DequeueRolloutsResponse()

    server.on["DequeueRollouts"] = poll
    server.on["Heartbeat"] = lambda _: worker_pb2.HeartbeatResponse()
    running = start(lambda *_: None, address=server.address)
    for _ in range(2):
        assert asked.acquire(timeout=20)
        with forking(gate):
            assert not gate._tickets
            assert not asked.acquire(timeout=0.05)
    assert asked.acquire(timeout=20)
    over.set()
    running.stop()
    first, *others = server.requests("DequeueRollouts")
    assert others[:2] == [first] * 2
