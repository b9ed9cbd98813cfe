"""OpenTelemetry tracing of the server's own calls, with --trace-calls."""

from __future__ import annotations

from typing import Any

from lightningstore.service.rules.errors import Misconfigured
from lightningstore.service.security.permissions import PERMISSIONS


def tracer() -> Any:
    """Return an interceptor that records a span of each call except health checks, and exports it by OTLP.

    OTEL_EXPORTER_OTLP_ENDPOINT and the related variables configure the exporter. Raises Misconfigured if the packages
    are missing.
    """
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.instrumentation.grpc import aio_server_interceptor  # noqa: PLC0415
    except ImportError:
        raise Misconfigured(
            "--trace-calls requires more packages: pip install 'lightningstore[tracing]'"
        ) from None
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    provider = TracerProvider(resource=Resource.create({"service.name": "lightningstore"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    # Methods become names of spans, so calls of invented methods are left out.
    return aio_server_interceptor(  # type: ignore[no-untyped-call]
        tracer_provider=provider, filter_=lambda call: call.method in PERMISSIONS
    )
