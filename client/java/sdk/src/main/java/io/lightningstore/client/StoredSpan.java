package io.lightningstore.client;

import io.opentelemetry.proto.common.v1.AnyValue;
import io.opentelemetry.proto.common.v1.InstrumentationScope;
import io.opentelemetry.proto.common.v1.KeyValue;
import io.opentelemetry.proto.resource.v1.Resource;
import io.opentelemetry.proto.trace.v1.Span;
import java.util.Optional;

/**
 * A span as the store has it.
 *
 * @param span OpenTelemetry's own
 * @param rolloutId the rollout that it is filed under
 * @param attemptId the attempt that it is filed under
 * @param sequenceId its place within the attempt, from 1
 * @param resource what produced it; perhaps empty
 * @param scope the instrumentation that made it; perhaps empty
 */
public record StoredSpan(
    Span span,
    String rolloutId,
    String attemptId,
    long sequenceId,
    Resource resource,
    InstrumentationScope scope) {

  /** Returns the span's name. */
  public String name() {
    return span.getName();
  }

  /** Returns the value of the span's attribute of that name. */
  public Optional<AnyValue> attribute(String name) {
    return span.getAttributesList().stream()
        .filter(one -> one.getKey().equals(name))
        .map(KeyValue::getValue)
        .findFirst();
  }
}
