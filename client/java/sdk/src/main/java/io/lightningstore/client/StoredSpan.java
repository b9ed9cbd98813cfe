package io.lightningstore.client;

import io.opentelemetry.proto.common.v1.AnyValue;
import io.opentelemetry.proto.common.v1.InstrumentationScope;
import io.opentelemetry.proto.common.v1.KeyValue;
import io.opentelemetry.proto.resource.v1.Resource;
import io.opentelemetry.proto.trace.v1.Span;
import java.util.Optional;

/**
 * A stored span.
 *
 * @param span the OpenTelemetry span
 * @param rolloutId id of its rollout
 * @param attemptId id of its attempt
 * @param sequenceId position within the attempt, counted from 1
 * @param resource the entity that produced it; may be empty
 * @param scope the instrumentation scope; may be empty
 */
public record StoredSpan(
    Span span,
    String rolloutId,
    String attemptId,
    long sequenceId,
    Resource resource,
    InstrumentationScope scope) {

  /** Returns the name of the span. */
  public String name() {
    return span.getName();
  }

  /** Returns the value of an attribute of the span. */
  public Optional<AnyValue> attribute(String name) {
    return span.getAttributesList().stream()
        .filter(one -> one.getKey().equals(name))
        .map(KeyValue::getValue)
        .findFirst();
  }
}
