"""The life of a runner: heartbeats, stops, signals, servers that crash."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from typing import Any, cast

import pytest
from lightningstore.client import (
    AttemptStatus,
    Failure,
    LightningStore,
    PermissionDeniedError,
    RolloutConfig,
    RolloutStatus,
    RunContext,
    Runner,
)
from lightningstore.client._runner.claims import Claims
from lightningstore.v1 import claim_pb2
from opentelemetry.sdk.trace import TracerProvider

from .fakes import FakeServer, Fault, RealServer, grpc, unavailable
from .runners import Holding, Start, plain, results


def block_thread(released: threading.Event) -> Any:
    def agent(*_: Any) -> None:
        released.wait(50)

    return agent


def block_loop(released: threading.Event) -> Any:
    async def agent(*_: Any) -> None:
        released.wait(50)

    return agent


@pytest.mark.parametrize("blocking", [block_thread, block_loop])
def test_heartbeats_go_out_however_stuck_the_function_is(
    store: LightningStore, start: Start, blocking: Any
) -> None:
    released, seen = threading.Event(), set[float | None]()
    rollout = store.enqueue_rollout(1, config=RolloutConfig(unresponsive_timeout=30))
    running = start(blocking(released), max_rollouts=1, heartbeat_period=0.05)
    while len(seen) < 6:  # pytest's own timeout ends it
        seen |= {attempt.last_heartbeat_time for attempt in store.list_attempts(rollout.rollout_id)}
        time.sleep(0.01)
    released.set()
    running.join()
    [done] = results(store, rollout)
    assert done.status is RolloutStatus.SUCCEEDED
    assert done.attempt_count == 1


def test_a_short_unresponsive_timeout_shortens_the_heartbeat_period(
    store: LightningStore, start: Start
) -> None:
    holding = Holding()
    store.enqueue_rollout(1, config=RolloutConfig(unresponsive_timeout=6))
    running = start(holding, heartbeat_period=60.0)
    assert holding.begun.wait(30)
    assert running.runner._heartbeats._interval() == 2.0
    running.stop()
    assert running.runner._heartbeats._interval() == 60.0


def test_the_worker_tells_about_itself(store: LightningStore, start: Start) -> None:
    holding = Holding()
    store.enqueue_rollout(1)
    start(holding, worker_id="teller", concurrency=3, heartbeat_period=0.05)
    assert holding.begun.wait(30)
    while not (stats := store.get_worker("teller").stats) or stats["running"] != 1:
        time.sleep(0.01)
    assert stats == {"running": 1, "finished": 0, "concurrency": 3, "dropped_spans": 0}


def test_stop_finishes_what_runs_and_claims_no_more(store: LightningStore, start: Start) -> None:
    holding = Holding()
    first, second = store.enqueue_rollouts([{"input": 1}, {"input": 2}])
    running = start(holding)
    assert holding.begun.wait(30)
    running.runner.stop()
    assert not holding.contexts[0].cancelled.is_set()
    holding.go.set()
    running.join()
    assert store.get_rollout(first.rollout_id).status is RolloutStatus.SUCCEEDED
    assert store.get_rollout(second.rollout_id).status is RolloutStatus.QUEUING


def test_a_second_stop_cancels_what_runs(store: LightningStore, start: Start) -> None:
    holding = Holding()
    rollout = store.enqueue_rollout(1)
    running = start(holding)
    assert holding.begun.wait(30)
    running.stop()
    attempt = store.get_attempt(rollout.rollout_id)
    assert attempt.failure == Failure("Cancelled", "the runner stops")


def test_a_function_that_does_not_end_is_left_behind(store: LightningStore, start: Start) -> None:
    begun, release = threading.Event(), threading.Event()

    def stubborn(*_: Any) -> None:
        begun.set()
        release.wait(30)

    rollout = store.enqueue_rollout(1)
    running = start(stubborn, grace=0.1)
    assert begun.wait(30)
    running.stop()
    assert store.get_attempt(rollout.rollout_id).status is AttemptStatus.FAILED
    release.set()


def test_an_idle_runner_stops_at_once(store: LightningStore, start: Start) -> None:
    running = start(plain(), worker_id="idle", poll_wait=300.0)
    while not store.get_statistics().waiter_count:  # pytest's own timeout ends it
        time.sleep(0.01)
    running.runner.stop()
    running.join()  # in less time than a poll takes
    assert running.error is None


def test_cancelling_the_coroutine_cancels_what_runs(
    store: LightningStore, shared: RealServer
) -> None:
    holding = Holding()
    rollout = store.enqueue_rollout(1)

    async def main() -> None:
        task = asyncio.create_task(Runner(shared.address, holding).arun())
        await asyncio.to_thread(holding.begun.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert store.get_attempt(rollout.rollout_id).failure == Failure("Cancelled", "the runner stops")


def test_spans_of_a_foreign_provider_are_filed_too(store: LightningStore, start: Start) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    library = provider.get_tracer("openai")

    async def agent(task: Any, resources: Any, tracer: Any, context: RunContext) -> None:
        del resources, tracer, context
        with library.start_as_current_span("openai.chat.completion", attributes={"task": task}):
            await asyncio.to_thread(lambda: library.start_span("inner").end())

    rollouts = store.enqueue_rollouts([{"input": n} for n in range(4)])
    start(agent, concurrency=4, max_rollouts=4, tracer_provider=provider).join()
    library.start_span("outside").end()
    for rollout in rollouts:
        spans = list(store.query_spans(rollout.rollout_id))
        assert [span.name for span in spans] == ["inner", "openai.chat.completion"]
        assert spans[1].attributes["task"] == rollout.input


def test_no_claim_and_no_result_is_lost_when_the_server_crashes(
    real: RealServer, start: Start
) -> None:
    crash = threading.Event()
    seen: list[tuple[str, str]] = []

    def agent(task: Any, resources: Any, tracer: Any, context: RunContext) -> float:
        del resources
        seen.append((context.rollout_id, context.attempt_id))
        if len(seen) in (10, 30):
            crash.set()
        tracer.start_span(f"step {task}").end()
        time.sleep(0.005)
        return float(task)

    with LightningStore(real.address) as store:
        rollouts = store.enqueue_rollouts([{"input": n} for n in range(60)])
        running = start(agent, address=real.address, concurrency=4, max_rollouts=60)
        for _ in range(2):
            assert crash.wait(30)
            crash.clear()
            real.kill()
            real.start()
        running.join()
        done = results(store, *rollouts)
        assert {r.status for r in done} == {RolloutStatus.SUCCEEDED}
        assert {r.attempt_count for r in done} == {1}
        assert len(seen) == len(set(seen)) == 60
        for rollout in done:
            names = [span.name for span in store.query_spans(rollout.rollout_id)]
            assert names == [f"step {rollout.input}", "agentlightning.annotation"]


def test_a_claim_whose_answer_was_lost_is_asked_for_again(server: FakeServer, start: Start) -> None:
    left = [3]

    def handle(request: Any) -> Any:
        del request
        if left[0]:
            left[0] -= 1
            raise unavailable()
        return claim_pb2.DequeueRolloutsResponse()

    server.on["DequeueRollouts"] = handle
    running = start(plain(), address=server.address, worker_id="w", poll_wait=7.0)
    while len(server.requests("DequeueRollouts")) < 5:
        time.sleep(0.01)
    running.stop()
    requests = server.requests("DequeueRollouts")
    assert requests[0] == requests[1] == requests[2] == requests[3]
    assert requests[0].wait.seconds == 7
    assert requests[4].request_id != requests[0].request_id


def test_what_a_poll_had_claimed_at_the_stop_is_worked_on(server: FakeServer, start: Start) -> None:
    polling, worked, over = threading.Event(), threading.Event(), threading.Event()

    def poll(request: Any) -> Any:
        if not polling.is_set():
            polling.set()
            over.wait(30)  # the claim is made, and its answer is never read
        attempt = {"rollout_id": "ro-1", "attempt_id": "at-1", "status": 1}
        return claim_pb2.DequeueRolloutsResponse(
            rollouts=[
                {"rollout_id": "ro-1", "input_json": b"1", "latest_attempt": attempt},
            ]
        )

    server.on["DequeueRollouts"] = poll
    running = start(lambda *_: worked.set(), address=server.address, outage=0.1)
    assert polling.wait(30)
    running.runner.stop()
    assert worked.wait(30)
    over.set()
    running.stop()
    first, *more = server.requests("DequeueRollouts")
    assert more
    assert all(again == first for again in more)  # a busy server may be asked three times


def test_an_error_that_waiting_does_not_mend_ends_the_runner(
    server: FakeServer, start: Start
) -> None:
    def refuse(request: Any) -> Any:
        del request
        raise Fault(grpc.StatusCode.PERMISSION_DENIED, "not you")

    server.on["DequeueRollouts"] = refuse
    running = start(plain(), address=server.address)
    running.join()
    assert isinstance(running.error, PermissionDeniedError)


RUNNER = """
import sys, time
from lightningstore.client import Runner

def agent(task, resources, tracer, context):
    print("begun", flush=True)
    while not context.cancelled.wait(0.01):
        if sys.argv[2] == "finish" and stopped():
            return 1.0
    context.check()

runner = Runner(sys.argv[1], agent, grace=1.0)

def stopped():
    return runner._stops > 0

runner.run()
print("ended", flush=True)
"""


@pytest.mark.parametrize(
    ("how", "signals", "status"),
    [
        ("finish", [signal.SIGTERM], AttemptStatus.SUCCEEDED),
        ("finish", [signal.SIGINT], AttemptStatus.SUCCEEDED),
        ("hold", [signal.SIGTERM, signal.SIGTERM], AttemptStatus.FAILED),
        ("hold", [signal.SIGINT, signal.SIGINT], AttemptStatus.FAILED),
    ],
)
def test_signals_stop_it_gently_and_twice_at_once(
    store: LightningStore, shared: RealServer, how: str, signals: Any, status: AttemptStatus
) -> None:
    rollout = store.enqueue_rollout(1)
    with subprocess.Popen(
        [sys.executable, "-c", RUNNER, shared.address, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "begun\n"
        lines = [process.stderr.readline()]
        for number in signals:
            process.send_signal(number)
            lines.append(process.stderr.readline())  # two that come together count as one
        assert process.stdout.read() == "ended\n"
        assert process.wait(30) == 0
        lines += process.stderr.read().splitlines()
        _, *said = [line.strip().partition(": ")[2] for line in lines]
    assert said[0] == "claiming no more, finishing 1 attempt; a second signal cancels them"
    assert said[1:-1] == ["cancelling 1 attempt, for up to 1 s"] * (len(signals) - 1)
    assert said[-1] == "stopped, 1 attempt finished"
    assert store.get_attempt(rollout.rollout_id).status is status


@pytest.mark.asyncio
async def test_runner_that_is_cancelled_as_a_pause_ends_is_cancelled() -> None:
    """`wait_for` of Python 3.11 returns then, as if it had not been cancelled."""
    claims = Claims(cast(LightningStore, None), "w1", (), 0.0, [])
    pausing = asyncio.create_task(claims._pause(60))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    claims._woken.set()
    pausing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pausing
