"""Spans of a runner are stored, whatever the agent and the environment do to OpenTelemetry."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import Any

import pytest
from lightningstore.client import (
    LightningStore,
    RolloutStatus,
    RunContext,
    SystemIdGenerator,
    UnavailableError,
    emit_reward,
)
from lightningstore.client._runner.ids import take_from_system
from lightningstore.client._transport.retries import Retry
from opentelemetry.sdk.trace import RandomIdGenerator, TracerProvider

from .runners import Start, results

ANNOTATION = "agentlightning.annotation"


def test_an_agent_that_seeds_random_repeats_no_ids(store: LightningStore, start: Start) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    early = provider.get_tracer("made before the runner")

    def agent(task: Any, resources: Any, tracer: Any, context: RunContext) -> float:
        del task, resources, context
        for number in range(5):
            random.seed(0)
            tracer.start_span(f"own-{number}").end()
            random.seed(0)
            early.start_span(f"early-{number}").end()
        random.seed(0)
        return 1.0

    rollouts = store.enqueue_rollouts([{"input": 1}, {"input": 2}])
    start(agent, max_rollouts=2, tracer_provider=provider).join()
    ids = []
    for done in results(store, *rollouts):
        spans = list(store.query_spans(done.rollout_id))
        assert len(spans) == 11
        ids += [span.span_id for span in spans]
    assert len(set(ids)) == 22


def test_ids_come_from_the_operating_system() -> None:
    ids = set()
    for _ in range(100):
        random.seed(7)
        generator = SystemIdGenerator()
        ids |= {generator.generate_span_id(), generator.generate_trace_id()}
    assert len(ids) == 200
    assert all(0 < number < 1 << 128 for number in ids)


def test_a_provider_with_a_generator_of_its_own_keeps_it() -> None:
    class Counting(RandomIdGenerator):
        def generate_span_id(self) -> int:
            return 7

    provider = TracerProvider(id_generator=Counting(), shutdown_on_exit=False)
    take_from_system(provider)
    assert provider.id_generator.generate_span_id() == 7


def test_delays_neither_follow_nor_use_up_the_numbers_of_the_agent() -> None:
    def delays() -> list[float | None]:
        random.seed(1)
        retry = Retry(None)
        return [retry.delay_after(UnavailableError()) for _ in range(3)]

    first = delays()
    state = random.getstate()
    random.seed(1)
    assert random.getstate() == state
    assert delays() != first


def test_a_switched_off_sdk_takes_no_span_and_no_reward(
    store: LightningStore,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    foreign = TracerProvider(shutdown_on_exit=False)

    def agent(task: Any, resources: Any, tracer: Any, context: RunContext) -> float:
        del task, resources, context
        tracer.start_span("step").end()
        return 0.5

    rollout = store.enqueue_rollout(1)
    start(agent, max_rollouts=1, tracer_provider=foreign).join()
    [done] = results(store, rollout)
    assert done.status is RolloutStatus.SUCCEEDED
    assert [s.name for s in store.query_spans(done.rollout_id)] == ["step", ANNOTATION]
    assert "tracer_provider does not record: OTEL_SDK_DISABLED is set" in caplog.text


def test_limits_of_the_environment_cut_no_training_data() -> None:
    script = "from lightningstore.client._runner.tracing import _NO_LIMITS; print(vars(_NO_LIMITS))"
    limits = ("ATTRIBUTE_VALUE_LENGTH", "ATTRIBUTE_COUNT", "SPAN_ATTRIBUTE_VALUE_LENGTH")
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **{f"OTEL_{name}_LIMIT": "7" for name in limits}},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "7" not in done.stdout


def test_spans_of_a_foreign_provider_keep_their_attempt_beyond_its_limit_of_attributes(
    store: LightningStore, start: Start
) -> None:
    provider = TracerProvider(shutdown_on_exit=False)

    def agent(*_: Any) -> None:
        with provider.get_tracer("library").start_as_current_span("long call") as span:
            for number in range(200):
                span.set_attribute(f"gen_ai.prompt.{number}", "text")

    rollout = store.enqueue_rollout(1)
    start(agent, max_rollouts=1, tracer_provider=provider).join()
    results(store, rollout)
    [span] = store.query_spans(rollout.rollout_id)
    assert span.name == "long call"
    assert len(span.attributes) == 128
    assert span.otlp.dropped_attributes_count == 74


def test_a_reward_that_nobody_records_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    emit_reward(0.25)
    assert "the reward 0.25 is lost" in caplog.text
    caplog.clear()
    emit_reward(0.25, tracer=TracerProvider(shutdown_on_exit=False).get_tracer("t"))
    assert not caplog.records
