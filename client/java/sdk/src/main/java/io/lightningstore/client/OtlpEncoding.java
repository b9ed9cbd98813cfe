package io.lightningstore.client;

import com.google.protobuf.ByteString;
import io.opentelemetry.api.common.AttributeKey;
import io.opentelemetry.api.common.Attributes;
import io.opentelemetry.api.trace.SpanContext;
import io.opentelemetry.api.trace.SpanKind;
import io.opentelemetry.proto.common.v1.AnyValue;
import io.opentelemetry.proto.common.v1.ArrayValue;
import io.opentelemetry.proto.common.v1.InstrumentationScope;
import io.opentelemetry.proto.common.v1.KeyValue;
import io.opentelemetry.proto.resource.v1.Resource;
import io.opentelemetry.proto.trace.v1.Span;
import io.opentelemetry.proto.trace.v1.SpanFlags;
import io.opentelemetry.proto.trace.v1.Status;
import io.opentelemetry.sdk.common.InstrumentationScopeInfo;
import io.opentelemetry.sdk.trace.data.EventData;
import io.opentelemetry.sdk.trace.data.LinkData;
import io.opentelemetry.sdk.trace.data.SpanData;
import io.opentelemetry.sdk.trace.data.StatusData;
import java.util.ArrayList;
import java.util.List;

/** Converts spans of the OpenTelemetry SDK to messages of OTLP, and repairs their text. */
final class OtlpEncoding {
  private OtlpEncoding() {}

  static Span span(SpanData data) {
    SpanContext context = data.getSpanContext();
    Span.Builder span =
        Span.newBuilder()
            .setTraceId(ByteString.copyFrom(context.getTraceIdBytes()))
            .setSpanId(ByteString.copyFrom(context.getSpanIdBytes()))
            .setTraceState(traceState(context))
            .setFlags(flags(context, data.getParentSpanContext()))
            .setName(Texts.valid(data.getName()))
            .setKind(kind(data.getKind()))
            .setStartTimeUnixNano(data.getStartEpochNanos())
            .setEndTimeUnixNano(data.getEndEpochNanos())
            .addAllAttributes(attributes(data.getAttributes()))
            .setDroppedAttributesCount(data.getTotalAttributeCount() - data.getAttributes().size())
            .setDroppedEventsCount(data.getTotalRecordedEvents() - data.getEvents().size())
            .setDroppedLinksCount(data.getTotalRecordedLinks() - data.getLinks().size())
            .setStatus(status(data.getStatus()));
    if (data.getParentSpanContext().isValid()) {
      span.setParentSpanId(ByteString.copyFrom(data.getParentSpanContext().getSpanIdBytes()));
    }
    data.getEvents().forEach(event -> span.addEvents(event(event)));
    data.getLinks().forEach(link -> span.addLinks(link(link)));
    return span.build();
  }

  static Resource resource(io.opentelemetry.sdk.resources.Resource resource) {
    return Resource.newBuilder().addAllAttributes(attributes(resource.getAttributes())).build();
  }

  static InstrumentationScope scope(InstrumentationScopeInfo scope) {
    return InstrumentationScope.newBuilder()
        .setName(Texts.valid(scope.getName()))
        .setVersion(orEmpty(scope.getVersion()))
        .addAllAttributes(attributes(scope.getAttributes()))
        .build();
  }

  static String orEmpty(String text) {
    return text == null ? "" : Texts.valid(text);
  }

  private static Span.Event event(EventData event) {
    return Span.Event.newBuilder()
        .setName(Texts.valid(event.getName()))
        .setTimeUnixNano(event.getEpochNanos())
        .addAllAttributes(attributes(event.getAttributes()))
        .setDroppedAttributesCount(event.getDroppedAttributesCount())
        .build();
  }

  private static Span.Link link(LinkData link) {
    SpanContext context = link.getSpanContext();
    return Span.Link.newBuilder()
        .setTraceId(ByteString.copyFrom(context.getTraceIdBytes()))
        .setSpanId(ByteString.copyFrom(context.getSpanIdBytes()))
        .setTraceState(traceState(context))
        .setFlags(flags(context, context))
        .addAllAttributes(attributes(link.getAttributes()))
        .setDroppedAttributesCount(link.getTotalAttributeCount() - link.getAttributes().size())
        .build();
  }

  private static int flags(SpanContext context, SpanContext parent) {
    int remote =
        SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK_VALUE
            | (parent.isRemote() ? SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK_VALUE : 0);
    return remote | (context.getTraceFlags().asByte() & 0xff);
  }

  private static String traceState(SpanContext context) {
    List<String> entries = new ArrayList<>();
    context.getTraceState().forEach((key, value) -> entries.add(key + "=" + value));
    return Texts.valid(String.join(",", entries));
  }

  private static Span.SpanKind kind(SpanKind kind) {
    return switch (kind) {
      case INTERNAL -> Span.SpanKind.SPAN_KIND_INTERNAL;
      case SERVER -> Span.SpanKind.SPAN_KIND_SERVER;
      case CLIENT -> Span.SpanKind.SPAN_KIND_CLIENT;
      case PRODUCER -> Span.SpanKind.SPAN_KIND_PRODUCER;
      case CONSUMER -> Span.SpanKind.SPAN_KIND_CONSUMER;
    };
  }

  private static Status status(StatusData status) {
    Status.StatusCode code =
        switch (status.getStatusCode()) {
          case UNSET -> Status.StatusCode.STATUS_CODE_UNSET;
          case OK -> Status.StatusCode.STATUS_CODE_OK;
          case ERROR -> Status.StatusCode.STATUS_CODE_ERROR;
        };
    return Status.newBuilder()
        .setCode(code)
        .setMessage(Texts.valid(status.getDescription()))
        .build();
  }

  private static List<KeyValue> attributes(Attributes attributes) {
    List<KeyValue> found = new ArrayList<>(attributes.size());
    attributes.forEach(
        (AttributeKey<?> key, Object value) ->
            found.add(
                KeyValue.newBuilder()
                    .setKey(Texts.valid(key.getKey()))
                    .setValue(value(value))
                    .build()));
    return found;
  }

  private static AnyValue value(Object value) {
    AnyValue.Builder built = AnyValue.newBuilder();
    if (value instanceof String text) {
      built.setStringValue(Texts.valid(text));
    } else if (value instanceof Boolean truth) {
      built.setBoolValue(truth);
    } else if (value instanceof Long whole) {
      built.setIntValue(whole);
    } else if (value instanceof Double number) {
      built.setDoubleValue(number);
    } else if (value instanceof List<?> list) {
      ArrayValue.Builder array = ArrayValue.newBuilder();
      list.forEach(one -> array.addValues(value(one)));
      built.setArrayValue(array);
    } else { // of a kind that came after this client
      built.setStringValue(Texts.valid(String.valueOf(value)));
    }
    return built.build();
  }
}
