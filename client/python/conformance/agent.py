"""The agent that does what the rollout's input says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lightningstore.client import LLM, NonRetryable, PromptTemplate
from lightningstore.client.runner import RunContext
from opentelemetry.trace import Tracer

LONGEST_WAIT = 60.0


def scripted(
    task: dict[str, Any], resources: Mapping[str, Any], tracer: Tracer, context: RunContext
) -> float | None:
    """Do what the task says."""
    for name in task.get("spans", []):
        tracer.start_span(name).end()
    if "resource" in task:
        value = text(resources[task["resource"]])
        tracer.start_span("resource", attributes={"value": value}).end()
    if task.get("wait"):
        context.cancelled.wait(LONGEST_WAIT)
        tracer.start_span("cancelled").end()
        context.check()
    fail = task.get("fail")
    if fail and context.attempt.sequence_number in fail.get(
        "attempts", [context.attempt.sequence_number]
    ):
        kind = RuntimeError if fail.get("retryable", True) else NonRetryable
        raise kind(fail.get("message", ""))
    reward = task.get("reward")
    return None if reward is None else float(reward)


def text(resource: Any) -> str:
    """Return what tells a resource apart."""
    if isinstance(resource, LLM):
        return resource.endpoint
    if isinstance(resource, PromptTemplate):
        return resource.template
    return json.dumps(resource.value)
