"""Tracers whose spans are filed under the attempt that they belong to."""

from __future__ import annotations

from lightningstore.client._context import RunContext, current
from lightningstore.client._outbox import ATTEMPT_ID, ROLLOUT_ID
from lightningstore.client.exporter import SpanExporter
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

_NO_LIMITS = SpanLimits(
    max_span_attributes=SpanLimits.UNSET,
    max_event_attributes=SpanLimits.UNSET,
    max_link_attributes=SpanLimits.UNSET,
    max_events=SpanLimits.UNSET,
    max_links=SpanLimits.UNSET,
)


class _Passing(SpanProcessor):
    """Hands spans to an exporter as they end. Its shutdown is not the exporter's."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def on_end(self, span: ReadableSpan) -> None:
        self._exporter.export((span,))


class _Filing(SpanProcessor):
    """Does the same for spans of a foreign provider that begin while an attempt is worked on."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        del parent_context
        context = current.get()
        if context is not None:
            span.set_attribute(ROLLOUT_ID, context.rollout_id)
            span.set_attribute(ATTEMPT_ID, context.attempt_id)

    def on_end(self, span: ReadableSpan) -> None:
        if span.attributes and ATTEMPT_ID in span.attributes and span.context.trace_flags.sampled:
            self._exporter.export((span,))


class Tracing:
    """Makes tracers, one an attempt: its spans bear the ids in their resource, in any thread."""

    def __init__(self, exporter: SpanExporter, provider: TracerProvider | None) -> None:
        """Take where spans go, and a provider whose spans are to be filed too."""
        self._processor = _Passing(exporter)
        self._resource = Resource.create()
        if provider is not None:
            provider.add_span_processor(_Filing(exporter))

    def tracer(self, context: RunContext) -> trace.Tracer:
        """Return the tracer of an attempt. Nothing is sampled away: spans are training data."""
        ids = {ROLLOUT_ID: context.rollout_id, ATTEMPT_ID: context.attempt_id}
        provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=self._resource.merge(Resource(ids)),
            span_limits=_NO_LIMITS,
            shutdown_on_exit=False,
        )
        provider.add_span_processor(self._processor)
        return provider.get_tracer("lightningstore.client.runner")
