"""The runner on a real server, and its claims against one that the test decides about."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from typing import Any

import pytest
from lightningstore.client import (
    LLM,
    AttemptCancelled,
    AttemptStatus,
    CustomResource,
    Failure,
    LightningStore,
    NonRetryable,
    ProxyLLM,
    RolloutConfig,
    RolloutStatus,
    RunContext,
    Runner,
    StopReason,
)

from .runners import Holding, Start, asynchronous, ended, plain, results


@pytest.mark.parametrize("kind", [plain, asynchronous])
def test_a_function_that_returns_has_succeeded(
    store: LightningStore, start: Start, kind: Any
) -> None:
    rollout = store.enqueue_rollout({"question": 1})
    start(kind(0.5), worker_id="w-1", max_rollouts=1).join()
    [done] = results(store, rollout)
    assert done.status is RolloutStatus.SUCCEEDED
    assert done.attempt.worker_id == "w-1"
    spans = list(store.query_spans(rollout.rollout_id))
    assert [span.name for span in spans] == ["step", "agentlightning.annotation"]
    assert spans[1].attributes == {
        "agentlightning.reward.0.name": "primary",
        "agentlightning.reward.0.value": 0.5,
    }
    assert spans[0].resource_attributes["agentlightning.attempt_id"] == done.latest_attempt_id


def test_no_reward_makes_no_span(store: LightningStore, start: Start) -> None:
    rollout = store.enqueue_rollout(1)
    start(plain(None), max_rollouts=1).join()
    assert [s.name for s in store.query_spans(rollout.rollout_id)] == ["step"]


def test_the_function_gets_input_resources_and_context(store: LightningStore, start: Start) -> None:
    got: list[Any] = []

    def agent(*arguments: Any) -> None:
        got.extend(arguments)

    store.add_resources(
        {"w": [1, 2], "llm": LLM("http://h/v1", "m"), "proxy": ProxyLLM("http://p/v1", "m")}
    )
    rollout = store.enqueue_rollout({"a": [1]}, metadata={"k": "v"})
    start(agent, worker_id="me", max_rollouts=1).join()
    task, resources, tracer, context = got
    [done] = results(store, rollout)
    assert task == {"a": [1]}
    assert resources["w"] == CustomResource("", [1, 2])
    assert resources["llm"] == LLM("http://h/v1", "m")
    route = f"rollout/{rollout.rollout_id}/attempt/{done.latest_attempt_id}"
    assert resources["proxy"] == LLM(f"http://p/{route}/v1", "m")
    assert hasattr(tracer, "start_as_current_span")
    assert context.rollout.metadata == {"k": "v"}
    assert context.worker_id == "me"
    assert (context.rollout_id, context.attempt_id) == (rollout.rollout_id, done.latest_attempt_id)


def test_the_function_gets_the_version_that_the_attempt_names(
    store: LightningStore, start: Start
) -> None:
    got: list[Any] = []
    claimed = threading.Event()
    first = store.update_resources("weights", {"w": 1})

    def agent(_: Any, resources: Any, __: Any, context: RunContext) -> None:
        got.append((context.attempt.publish_number, resources["w"].value))
        if not claimed.is_set():
            claimed.set()
            published.wait(10)

    published = threading.Event()
    rollouts = [store.enqueue_rollout(n, resources_id="latest") for n in range(3)]
    running = start(agent, worker_id="me", max_rollouts=3, heartbeat_period=0.05)
    assert claimed.wait(10)
    for _ in range(900):  # the function waits meanwhile
        if store.get_worker("me").publish_number == first.publish_number:
            break
        time.sleep(0.01)
    assert store.get_worker("me").publish_number == first.publish_number
    held = store.start_attempt(store.enqueue_rollout(3).rollout_id)
    second = store.update_resources("weights", {"w": 2})
    published.set()
    results(store, *rollouts)
    running.join()
    assert got == [
        (first.publish_number, 1),
        (second.publish_number, 2),
        (second.publish_number, 2),
    ]
    old = store.get_resources("weights", version=held.attempt.resources_version)
    assert old["w"].value == 1


def test_heartbeats_report_what_the_caller_has_loaded(store: LightningStore, start: Start) -> None:
    loaded: list[int | None] = [None]
    asynchronous_agent = plain(None)
    running = start(
        asynchronous_agent,
        worker_id="loader",
        heartbeat_period=0.05,
        publish_number=lambda: loaded[0],
    )
    for number in (7, 8):
        loaded[0] = number
        for _ in range(500):
            if [w.worker_id for w in store.list_workers(min_publish_number=number)] == ["loader"]:
                break
            time.sleep(0.01)
        assert store.get_worker("loader").publish_number == number
    running.stop()


def fail(error: BaseException, cause: BaseException | None = None) -> Any:
    def agent(*_: Any) -> None:
        raise error from cause

    return agent


RETRIED = RolloutConfig(max_attempts=2, retry_condition=("failed",))


@pytest.mark.parametrize(
    ("agent", "failure", "attempts"),
    [
        (fail(ValueError("no luck")), Failure("ValueError", "no luck"), 2),
        (fail(ValueError()), Failure("ValueError", "ValueError()"), 2),
        (fail(NonRetryable("never")), Failure("NonRetryable", "never", False), 1),
        (fail(NonRetryable("why"), OSError()), Failure("OSError", "why", False), 1),
        (fail(SystemExit(3)), Failure("SystemExit", "3"), 2),
        (fail(KeyboardInterrupt()), Failure("KeyboardInterrupt", "KeyboardInterrupt()"), 2),
    ],
)
def test_an_exception_is_a_failure_with_type_and_message(
    store: LightningStore, start: Start, agent: Any, failure: Failure, attempts: int
) -> None:
    rollout = store.enqueue_rollout(1, config=RETRIED)
    start(agent, max_rollouts=attempts).join()
    [done] = results(store, rollout)
    assert done.status is RolloutStatus.FAILED
    assert done.attempt.failure == failure
    assert done.attempt_count == attempts


def test_an_exit_of_a_coroutine_is_a_failure_too(store: LightningStore, start: Start) -> None:
    async def leave(*_: Any) -> None:
        sys.exit(1)

    rollout = store.enqueue_rollout(1)
    start(leave, max_rollouts=1).join()
    [done] = results(store, rollout)
    assert done.attempt.failure is not None
    assert done.attempt.failure.type == "RuntimeError"


@pytest.mark.parametrize("wrong", ["1.0", {"reward": 1}, [1]])
def test_a_reward_is_a_number(store: LightningStore, start: Start, wrong: Any) -> None:
    rollout = store.enqueue_rollout(1)
    start(plain(wrong), max_rollouts=1).join()
    [done] = results(store, rollout)
    assert done.attempt.failure is not None
    assert done.attempt.failure.type == "TypeError"


def test_so_many_run_at_a_time(store: LightningStore, start: Start) -> None:
    together = threading.Barrier(4, timeout=10)

    def agent(*_: Any) -> None:
        together.wait()

    rollouts = store.enqueue_rollouts([{"input": n} for n in range(8)])
    start(agent, concurrency=4, max_rollouts=8).join()
    assert {r.status for r in results(store, *rollouts)} == {RolloutStatus.SUCCEEDED}
    with pytest.raises(ValueError, match="concurrency"):
        Runner("127.0.0.1:1", agent, concurrency=0)


def test_only_rollouts_of_its_modes_are_claimed(store: LightningStore, start: Start) -> None:
    train, val = store.enqueue_rollouts([{"input": 1, "mode": m} for m in ("train", "val")])
    start(plain(), modes=["val"], max_rollouts=1).join()
    assert results(store, val)[0].status is RolloutStatus.SUCCEEDED
    assert store.get_rollout(train.rollout_id).status is RolloutStatus.QUEUING


def test_cancellation_reaches_a_plain_function(store: LightningStore, start: Start) -> None:
    seen: list[BaseException] = []

    def check(context: RunContext) -> None:
        try:
            context.check()
        except AttemptCancelled as error:
            seen.append(error)
            raise

    holding = Holding(check)
    rollout = store.enqueue_rollout(1)
    start(holding, heartbeat_period=0.05)
    assert holding.begun.wait(10)
    holding.contexts[0].check()
    store.cancel_rollouts([rollout.rollout_id])
    attempt = ended(store, rollout)
    assert attempt.status is AttemptStatus.FAILED
    assert attempt.failure == Failure("Cancelled", "rollout_cancelled")
    assert holding.contexts[0].stop_reason is StopReason.ROLLOUT_CANCELLED
    assert len(seen) == 1
    assert store.get_rollout(rollout.rollout_id).status is RolloutStatus.CANCELLED


def test_cancellation_reaches_a_coroutine(store: LightningStore, start: Start) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def agent(*_: Any) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    rollout = store.enqueue_rollout(1)
    start(agent, heartbeat_period=0.05)
    assert begun.wait(10)
    store.cancel_rollouts([rollout.rollout_id])
    assert cancelled.wait(10)
    assert ended(store, rollout).failure == Failure("Cancelled", "rollout_cancelled")


def test_spans_bring_the_word_to_stop_too(store: LightningStore, start: Start) -> None:
    holding = Holding()

    def agent(task: Any, resources: Any, tracer: Any, context: RunContext) -> Any:
        holding.begun.set()
        while not context.cancelled.wait(0.01):
            tracer.start_span("busy").end()
        return holding(task, resources, tracer, context)

    rollout = store.enqueue_rollout(1)
    start(agent, heartbeat_period=1000.0)
    assert holding.begun.wait(10)
    store.cancel_rollouts([rollout.rollout_id])
    assert ended(store, rollout).failure == Failure("Cancelled", "rollout_cancelled")


def test_a_cancelled_attempt_never_succeeds_whatever_it_returns(
    store: LightningStore, start: Start
) -> None:
    holding = Holding(lambda _: 1.0)
    rollout = store.enqueue_rollout(1)
    start(holding, heartbeat_period=0.05)
    assert holding.begun.wait(10)
    store.cancel_rollouts([rollout.rollout_id])
    assert ended(store, rollout).status is AttemptStatus.FAILED
    assert store.get_rollout(rollout.rollout_id).status is RolloutStatus.CANCELLED
    assert not list(store.query_spans(rollout.rollout_id))


def test_a_superseded_attempt_never_succeeds(store: LightningStore, start: Start) -> None:
    holding = Holding(lambda _: 1.0)
    rollout = store.enqueue_rollout(1)
    start(holding, heartbeat_period=0.05)
    assert holding.begun.wait(10)
    newer = store.start_attempt(rollout.rollout_id)
    first = ended(store, rollout, holding.contexts[0].attempt_id)
    assert first.status is AttemptStatus.FAILED
    assert first.failure == Failure("Cancelled", "superseded")
    now = store.get_rollout(rollout.rollout_id)
    assert now.latest_attempt_id == newer.latest_attempt_id
    assert now.status is RolloutStatus.PREPARING


def test_the_watchdogs_word_on_an_attempt_stays(store: LightningStore, start: Start) -> None:
    holding = Holding()
    rollout = store.enqueue_rollout(1, config=RolloutConfig(timeout=0.2))
    start(holding, heartbeat_period=0.05)
    [done] = results(store, rollout)
    assert done.attempt.status is AttemptStatus.TIMEOUT
    again = store.enqueue_rollout(2)
    holding.go.set()
    results(store, again)  # the slot is free: the first one is through
    assert store.get_attempt(rollout.rollout_id).status is AttemptStatus.TIMEOUT
