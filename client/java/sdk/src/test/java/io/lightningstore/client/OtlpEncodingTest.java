package io.lightningstore.client;

import static org.junit.jupiter.api.Assertions.assertEquals;

import io.opentelemetry.api.common.AttributeKey;
import io.opentelemetry.api.common.Attributes;
import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.SpanContext;
import io.opentelemetry.api.trace.SpanKind;
import io.opentelemetry.api.trace.StatusCode;
import io.opentelemetry.api.trace.TraceFlags;
import io.opentelemetry.api.trace.TraceState;
import io.opentelemetry.context.Context;
import io.opentelemetry.exporter.internal.otlp.traces.TraceRequestMarshaler;
import io.opentelemetry.proto.collector.trace.v1.ExportTraceServiceRequest;
import io.opentelemetry.sdk.trace.ReadableSpan;
import io.opentelemetry.sdk.trace.SdkTracerProvider;
import io.opentelemetry.sdk.trace.SpanLimits;
import io.opentelemetry.sdk.trace.data.SpanData;
import java.io.ByteArrayOutputStream;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;

class OtlpEncodingTest {
  private static SpanContext remote() {
    return SpanContext.createFromRemoteParent(
        "0af7651916cd43dd8448eb211c80319c",
        "b7ad6b7169203331",
        TraceFlags.getSampled(),
        TraceState.builder().put("a", "1").put("b", "2").build());
  }

  private static SpanData rich(SpanKind kind, StatusCode status) {
    Span span =
        SdkTracerProvider.builder()
            .setSpanLimits(SpanLimits.builder().setMaxNumberOfAttributes(8).build())
            .build()
            .tracerBuilder("scope")
            .setInstrumentationVersion("1.2")
            .setSchemaUrl("https://example.org/schema")
            .build()
            .spanBuilder("é🙂")
            .setParent(Context.root().with(Span.wrap(remote())))
            .setSpanKind(kind)
            .setStartTimestamp(1_700_000_000_123_456_789L, TimeUnit.NANOSECONDS)
            .addLink(remote(), Attributes.of(AttributeKey.stringKey("why"), "link"))
            .setAttribute("text", "x")
            .setAttribute("long", Long.MAX_VALUE)
            .setAttribute("double", -0.5)
            .setAttribute("boolean", true)
            .setAttribute(AttributeKey.stringArrayKey("texts"), List.of("a", "b"))
            .setAttribute(AttributeKey.longArrayKey("longs"), List.of(1L, -1L))
            .setAttribute(AttributeKey.doubleArrayKey("doubles"), List.of(0.25))
            .setAttribute(AttributeKey.booleanArrayKey("booleans"), List.of(true, false))
            .setAttribute("beyond the limit", "dropped")
            .startSpan();
    span.addEvent("event", Attributes.of(AttributeKey.longKey("n"), 1L), 5, TimeUnit.NANOSECONDS);
    span.setStatus(status, "why");
    span.end(1_700_000_000_223_456_789L, TimeUnit.NANOSECONDS);
    return ((ReadableSpan) span).toSpanData();
  }

  /** What OpenTelemetry's own exporter would send. */
  private static ExportTraceServiceRequest byOpenTelemetry(SpanData data) throws Exception {
    ByteArrayOutputStream bytes = new ByteArrayOutputStream();
    TraceRequestMarshaler.create(List.of(data)).writeBinaryTo(bytes);
    return ExportTraceServiceRequest.parseFrom(bytes.toByteArray());
  }

  private static void check(SpanData data) throws Exception {
    var resource = byOpenTelemetry(data).getResourceSpans(0);
    var scope = resource.getScopeSpans(0);
    assertEquals(scope.getSpans(0), OtlpEncoding.span(data));
    assertEquals(scope.getScope(), OtlpEncoding.scope(data.getInstrumentationScopeInfo()));
    assertEquals(resource.getResource(), OtlpEncoding.resource(data.getResource()));
  }

  @Test
  void spansAreEncodedAsOpenTelemetrysOwnExporterDoes() throws Exception {
    for (SpanKind kind : SpanKind.values()) {
      check(rich(kind, StatusCode.ERROR));
    }
    for (StatusCode status : StatusCode.values()) {
      check(rich(SpanKind.INTERNAL, status));
    }
  }
}
