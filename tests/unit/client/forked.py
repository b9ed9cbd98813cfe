"""What the child processes of test_fork run: found by name, since the child imports it anew."""

from __future__ import annotations

from lightningstore.client import SpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor


def export_and_end(address: str, rollout_id: str, attempt_id: str, name: str) -> None:
    """Export one span and return, without a flush or shutdown."""
    exporter = SpanExporter(address, rollout_id=rollout_id, attempt_id=attempt_id)
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.get_tracer("t").start_span(name).end()
