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

/** Rewards: what an attempt was worth, written down as spans. */
public final class Rewards {
  static final String ANNOTATION = "agentlightning.annotation";
  static final String REWARD = "agentlightning.reward";

  /** Where the tracer of the attempt is found that the running code works on. */
  static final ContextKey<Tracer> TRACER = ContextKey.named("lightningstore-tracer");

  private static final String PRIMARY = "primary";
  private static final String SCOPE = "io.lightningstore.client";

  private Rewards() {}

  /**
   * Writes a reward down with the current tracer: that of the Runner's agent, in its thread and
   * where its OpenTelemetry context was taken to, else the global one. The span hangs under the
   * current one.
   *
   * @throws IllegalStateException if that tracer records nothing, as the global one without an SDK
   * @throws IllegalArgumentException for a number that is not finite
   */
  public static void emitReward(double value) {
    emitReward(Map.of(PRIMARY, value), PRIMARY);
  }

  /**
   * Does the same for a reward of one dimension, by its name.
   *
   * @throws IllegalArgumentException for no dimension or several, and a number that is not finite
   */
  public static void emitReward(Map<String, ? extends Number> dimension) {
    if (dimension.size() != 1) {
      throw new IllegalArgumentException(
          "one dimension is wanted, or which of " + dimension.keySet() + " is the primary one");
    }
    emitReward(dimension, dimension.keySet().iterator().next());
  }

  /**
   * Does the same for a reward of several dimensions, in one span.
   *
   * @param dimensions by name
   * @param primary the name of the one that counts where one number is wanted
   * @throws IllegalArgumentException for a primary one that is not there, and a number that is not
   *     finite
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
          "the primary dimension " + primary + " is none of " + dimensions.keySet());
    }
    List<String> names = new ArrayList<>(dimensions.keySet());
    names.remove(primary);
    names.add(0, primary);
    SpanBuilder builder = tracer.spanBuilder(ANNOTATION);
    for (int i = 0; i < names.size(); i++) {
      double value = dimensions.get(names.get(i)).doubleValue();
      if (!Double.isFinite(value)) {
        throw new IllegalArgumentException("a finite number is wanted as reward, not " + value);
      }
      builder.setAttribute(REWARD + "." + i + ".name", names.get(i));
      builder.setAttribute(REWARD + "." + i + ".value", value);
    }
    Span span = builder.startSpan();
    boolean isRecorded = span.isRecording() && span.getSpanContext().isSampled();
    span.end();
    if (!isRecorded) {
      throw new IllegalStateException(
          "the reward is lost, since the tracer records no spans: emit it in a runner's agent, in a"
              + " thread that has the agent's OpenTelemetry context");
    }
  }

  /**
   * Returns the primary reward of the last span that holds one: the last by sequence id, in
   * whatever order they come.
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
