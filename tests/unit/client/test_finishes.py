"""Cancellation reaches a runner's function without waiting for the next heartbeat, and without more calls."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lightningstore.client import (
    Failure,
    LightningStore,
    Rollout,
    StopReason,
    UnavailableError,
)
from lightningstore.client._runner import finishes
from lightningstore.client._runner.finishes import DELAY, Finishes
from lightningstore.client._runner.heartbeats import Heartbeats
from lightningstore.v1 import attempt_pb2, rollout_pb2

from .runners import Holding, Start, ended, plain, results

#: Heartbeats that no test waits for.
NEVER = 1000.0


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The ids of each wait that is opened."""
    opened: list[list[str]] = []
    wait_for_rollouts = LightningStore.wait_for_rollouts

    def watched(self: LightningStore, rollout_ids: Any = (), **options: Any) -> Any:
        if threading.current_thread().name == "lightningstore-finishes":
            opened.append(list(rollout_ids))
        return wait_for_rollouts(self, rollout_ids, **options)

    monkeypatch.setattr(LightningStore, "wait_for_rollouts", watched)
    return opened


@pytest.fixture
def beats(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The attempts of each heartbeat."""
    sent: list[Any] = []
    beat = Heartbeats._beat

    def watched(self: Heartbeats, attempts: Any, interval: float) -> bool:
        sent.append(attempts)
        return beat(self, attempts, interval)

    monkeypatch.setattr(Heartbeats, "_beat", watched)
    return sent


def until(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it never held")


def test_a_second_is_enough() -> None:
    assert DELAY <= 0.5


def test_cancellation_reaches_a_coroutine_between_heartbeats(
    store: LightningStore, start: Start
) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def agent(*_: Any) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    rollout = store.enqueue_rollout(1)
    start(agent, heartbeat_period=NEVER)
    assert begun.wait(10)
    store.cancel_rollouts([rollout.rollout_id])
    assert cancelled.wait(10)
    assert ended(store, rollout).failure == Failure("Cancelled", "rollout_cancelled")


def test_so_does_a_finish_by_somebody_else(store: LightningStore, start: Start) -> None:
    holding = Holding()
    rollout = store.enqueue_rollout(1)
    start(holding, heartbeat_period=NEVER)
    assert holding.begun.wait(10)
    store.update_rollout(rollout.rollout_id, status="succeeded")
    assert holding.contexts[0].cancelled.wait(10)
    assert holding.contexts[0].stop_reason is StopReason.ROLLOUT_FINISHED


def test_one_wait_covers_all_that_run_and_stops_only_the_cancelled_one(
    store: LightningStore, start: Start, waits: list[list[str]]
) -> None:
    holding = Holding()
    rollouts = store.enqueue_rollouts([{"input": n} for n in range(3)])
    start(holding, heartbeat_period=NEVER, concurrency=3)
    ids = {rollout.rollout_id for rollout in rollouts}
    until(lambda: len(holding.contexts) == 3)
    store.cancel_rollouts([rollouts[1].rollout_id])
    assert ended(store, rollouts[1]).failure == Failure("Cancelled", "rollout_cancelled")
    assert set(waits[-1]) == ids
    holding.go.set()
    assert {r.status.value for r in results(store, rollouts[0], rollouts[2])} == {"succeeded"}


def test_short_functions_open_no_wait(
    store: LightningStore, start: Start, waits: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finishes, "DELAY", 30.0)
    store.enqueue_rollouts([{"input": n} for n in range(20)])
    start(plain(1.0), concurrency=4, max_rollouts=20).join()
    assert waits == []


def test_own_reports_cause_no_heartbeats(
    store: LightningStore,
    start: Start,
    waits: list[list[str]],
    beats: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(finishes, "DELAY", 0.01)
    holding = Holding()
    rollouts = store.enqueue_rollouts([{"input": n} for n in range(3)])
    running = start(holding, heartbeat_period=NEVER, concurrency=3, max_rollouts=3)
    until(lambda: len({i for opened in waits for i in opened}) == 3)
    holding.go.set()
    results(store, *rollouts)
    running.join()
    assert len(beats) == 1


class Store:
    """Answers waits as the test says; each is a function that yields rollouts or raises."""

    def __init__(self, *waits: Any) -> None:
        self.waits = list(waits)
        self.asked: list[list[str]] = []

    def wait_for_rollouts(self, rollout_ids: list[str]) -> Any:
        self.asked.append(rollout_ids)
        return Wait(self.waits.pop(0))


class Wait:
    def __init__(self, answers: Any) -> None:
        self._answers = answers

    def __iter__(self) -> Iterator[Any]:
        yield from self._answers()

    def close(self) -> None: ...


def claim(rollout_id: str) -> Rollout:
    attempt = attempt_pb2.Attempt(rollout_id=rollout_id, attempt_id="at-1")
    return Rollout(rollout_pb2.Rollout(rollout_id=rollout_id, latest_attempt=attempt))


def test_a_wait_that_fails_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finishes, "DELAY", 0.01)
    monkeypatch.setattr(finishes, "PAUSE", 0.02)

    def broken() -> Any:
        raise UnavailableError("away")
        yield

    store = Store(broken, broken, lambda: [claim("ro-1")])

    async def watch() -> list[str]:
        loop, told = asyncio.get_running_loop(), asyncio.Event()
        finished: list[str] = []

        def on_finish(rollout_id: str) -> None:
            finished.append(rollout_id)
            loop.call_soon_threadsafe(told.set)

        watched = Finishes(store, on_finish)  # type: ignore[arg-type]
        watched.add(claim("ro-1"))
        await asyncio.wait_for(told.wait(), 10)
        watched.stop()
        return finished

    assert asyncio.run(watch()) == ["ro-1"]
    assert store.asked == [["ro-1"]] * 3


def test_no_stream_is_open_at_a_fork_and_it_is_opened_again(
    store: LightningStore, start: Start, waits: list[list[str]]
) -> None:
    holding = Holding()
    rollout = store.enqueue_rollout(1)
    running = start(holding, heartbeat_period=NEVER)
    until(lambda: len(waits) == 1)
    finishes._before_fork()  # what a fork runs
    assert running.runner._finishes._reading == []
    finishes._after_fork()
    until(lambda: len(waits) == 2)
    assert waits == [[rollout.rollout_id]] * 2
    store.cancel_rollouts([rollout.rollout_id])
    assert ended(store, rollout).failure == Failure("Cancelled", "rollout_cancelled")
