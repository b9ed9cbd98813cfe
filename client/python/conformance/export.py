"""Makes spans with OpenTelemetry's SDK and exports them: by our exporter, or by the standard one."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from lightningstore.client import SpanExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor


def export(address: str, command: dict[str, Any]) -> list[str]:
    """Make and export the spans of a command; return their ids."""
    rollout_id, attempt_id = command["rollout_id"], command["attempt_id"]
    if command["exporter"] == "sdk":
        exporter = SpanExporter(address, rollout_id=rollout_id, attempt_id=attempt_id)
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    else:
        resource = Resource(
            {
                "agentlightning.rollout_id": rollout_id,
                "agentlightning.attempt_id": attempt_id,
            }
        )
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        standard = OTLPSpanExporter(endpoint=address, insecure=True)
        provider.add_span_processor(BatchSpanProcessor(standard))
    ids = []
    with ExitStack() as open_spans:
        tracer = provider.get_tracer("conformance")
        for name in command["spans"]:
            span = open_spans.enter_context(tracer.start_as_current_span(name))
            ids.append(f"{span.get_span_context().span_id:016x}")
    provider.force_flush()
    provider.shutdown()
    return ids
