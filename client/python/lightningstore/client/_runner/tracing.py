"""Tracers whose spans are stored under the attempt that they belong to."""

from __future__ import annotations

import logging
import threading

from lightningstore.client._runner.context import RunContext, current
from lightningstore.client._runner.ids import SystemIdGenerator, take_from_system
from lightningstore.client._values.attributes import ATTEMPT_ID, ROLLOUT_ID
from lightningstore.client.exporter import SpanExporter
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

logger = logging.getLogger(__name__)

SCOPE = "lightningstore.client.runner"
#: Maximum open spans of a foreign provider whose attempts are remembered.
MAX_OPEN = 100_000

_NO_LIMITS = SpanLimits(
    max_attributes=SpanLimits.UNSET,
    max_attribute_length=SpanLimits.UNSET,
    max_span_attribute_length=SpanLimits.UNSET,
    max_span_attributes=SpanLimits.UNSET,
    max_event_attributes=SpanLimits.UNSET,
    max_link_attributes=SpanLimits.UNSET,
    max_events=SpanLimits.UNSET,
    max_links=SpanLimits.UNSET,
)


class _Passing(SpanProcessor):
    """Passes spans to an exporter as they end. Shutting it down does not shut the exporter down."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def on_end(self, span: ReadableSpan) -> None:
        self._exporter.export((span,))


class _Filing(SpanProcessor):
    """Does the same for spans of a foreign provider that start in the context of an attempt."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._lock = threading.Lock()
        # The attempt of each open span. Its attributes have the ids too, for other exporters. But they are the
        # oldest attributes, which a provider drops first when a span exceeds its limit.
        self._open: dict[tuple[int, int], dict[str, str]] = {}

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        del parent_context
        context = current.get()
        if context is None:
            return
        ids = {ROLLOUT_ID: context.rollout_id, ATTEMPT_ID: context.attempt_id}
        for key, value in ids.items():
            span.set_attribute(key, value)
        with self._lock:
            self._open[_key_of(span)] = ids
            if len(self._open) > MAX_OPEN:  # some spans never end
                del self._open[next(iter(self._open))]

    def on_end(self, span: ReadableSpan) -> None:
        with self._lock:
            ids = self._open.pop(_key_of(span), None)
        if ids is None and ATTEMPT_ID not in (span.attributes or ()):
            return
        if span.context.trace_flags.sampled:
            self._exporter.file((span,), ids)


def _key_of(span: ReadableSpan) -> tuple[int, int]:
    return span.context.trace_id, span.context.span_id


class Tracing:
    """Creates one tracer for each attempt. The resource of its spans has the ids, in every thread."""

    def __init__(self, exporter: SpanExporter, provider: TracerProvider | None) -> None:
        """Send spans to an exporter, also those of another provider."""
        self._processor = _Passing(exporter)
        self._resource = Resource.create()
        if provider is not None:
            take_from_system(provider)
            provider.add_span_processor(_Filing(exporter))
            if isinstance(provider.get_tracer(SCOPE), trace.NoOpTracer):
                logger.warning(
                    "tracer_provider does not record: OTEL_SDK_DISABLED is set, which disables all spans "
                    "except those of the runner's own tracer"
                )

    def tracer(self, context: RunContext) -> trace.Tracer:
        """Return the tracer of an attempt. It records every span, because spans are training data.

        For the same reason it ignores the environment variables that disable the SDK or limit spans. Raises
        RuntimeError if the SDK cannot be enabled.
        """
        ids = {ROLLOUT_ID: context.rollout_id, ATTEMPT_ID: context.attempt_id}
        provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=self._resource.merge(Resource(ids)),
            span_limits=_NO_LIMITS,
            shutdown_on_exit=False,
            id_generator=SystemIdGenerator(),
        )
        provider._disabled = False  # OTEL_SDK_DISABLED
        provider.add_span_processor(self._processor)
        tracer = provider.get_tracer(SCOPE)
        if isinstance(tracer, trace.NoOpTracer):
            raise RuntimeError(  # noqa: TRY004
                "OpenTelemetry does not record spans: unset OTEL_SDK_DISABLED"
            )
        return tracer
