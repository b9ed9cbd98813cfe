package io.lightningstore.client;

import io.opentelemetry.api.GlobalOpenTelemetry;
import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.SpanBuilder;
import io.opentelemetry.api.trace.Tracer;
import io.opentelemetry.context.Context;
import io.opentelemetry.context.ContextKey;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.OptionalDouble;

/** Rewards of attempts, recorded as spans. */
public final class Rewards {
  static final String ANNOTATION = "agentlightning.annotation";
  static final String REWARD = "agentlightning.reward";

  /** Context key for the tracer of the attempt that the running code works on. */
  static final ContextKey<Tracer> TRACER = ContextKey.named("lightningstore-tracer");

  private static final String PRIMARY = "primary";
  private static final String SCOPE = "io.lightningstore.client";

  private Rewards() {}

  /**
   * Records a reward with the current tracer: that of the Runner's agent, in its thread and
   * wherever its OpenTelemetry context is propagated, else the global one. The span is a child of
   * the current one.
   *
   * @throws IllegalStateException if that tracer does not record, like the global one without an
   *     SDK
   * @throws IllegalArgumentException for a number that is not finite
   */
  public static void emitReward(double value) {
    emitReward(Map.of(PRIMARY, value), PRIMARY);
  }

  /**
   * Records a reward with one named dimension.
   *
   * @throws IllegalArgumentException for no dimension or several, and for a number that is not
   *     finite
   */
  public static void emitReward(Map<String, ? extends Number> dimension) {
    if (dimension.size() != 1) {
      throw new IllegalArgumentException(
          "a reward with several dimensions needs the name of the primary one, one of "
              + dimension.keySet());
    }
    emitReward(dimension, dimension.keySet().iterator().next());
  }

  /**
   * Records a reward with several dimensions in one span.
   *
   * @param dimensions values by name
   * @param primary name of the primary dimension
   * @throws IllegalArgumentException if the primary dimension is missing, and for a number that is
   *     not finite
   */
  public static void emitReward(Map<String, ? extends Number> dimensions, String primary) {
    Tracer tracer = Context.current().get(TRACER);
    emit(tracer == null ? GlobalOpenTelemetry.getTracer(SCOPE) : tracer, dimensions, primary);
  }

  static void emit(Tracer tracer, double value) {
    emit(tracer, Map.of(PRIMARY, value), PRIMARY);
  }

  private static void emit(
      Tracer tracer, Map<String, ? extends Number> dimensions, String primary) {
    if (!dimensions.containsKey(primary)) {
      throw new IllegalArgumentException(
          "the primary dimension " + primary + " must be one of " + dimensions.keySet());
    }
    List<String> names = new ArrayList<>(dimensions.keySet());
    names.remove(primary);
    names.add(0, primary);
    SpanBuilder builder = tracer.spanBuilder(ANNOTATION);
    for (int i = 0; i < names.size(); i++) {
      double value = dimensions.get(names.get(i)).doubleValue();
      if (!Double.isFinite(value)) {
        throw new IllegalArgumentException("a reward must be a finite number, not " + value);
      }
      builder.setAttribute(REWARD + "." + i + ".name", names.get(i));
      builder.setAttribute(REWARD + "." + i + ".value", value);
    }
    Span span = builder.startSpan();
    boolean isRecorded = span.isRecording() && span.getSpanContext().isSampled();
    span.end();
    if (!isRecorded) {
      throw new IllegalStateException(
          "the reward is lost, because the tracer does not record: emit it in a runner's agent, in a"
              + " thread that has the agent's OpenTelemetry context");
    }
  }

  /**
   * Returns the primary reward of the last span that has one, by sequence id, regardless of the
   * order of the argument.
   */
  public static OptionalDouble findFinalReward(Collection<StoredSpan> spans) {
    return spans.stream()
        .sorted(RewardReading.LAST_FIRST)
        .map(RewardReading::of)
        .filter(OptionalDouble::isPresent)
        .findFirst()
        .orElse(OptionalDouble.empty());
  }
}
