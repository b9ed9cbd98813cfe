package io.lightningstore.client;

import io.opentelemetry.api.common.Attributes;
import io.opentelemetry.api.trace.Tracer;
import io.opentelemetry.context.Context;
import io.opentelemetry.sdk.resources.Resource;
import io.opentelemetry.sdk.trace.ReadWriteSpan;
import io.opentelemetry.sdk.trace.ReadableSpan;
import io.opentelemetry.sdk.trace.SdkTracerProvider;
import io.opentelemetry.sdk.trace.SpanLimits;
import io.opentelemetry.sdk.trace.SpanProcessor;
import io.opentelemetry.sdk.trace.samplers.Sampler;
import java.util.List;
import java.util.concurrent.atomic.AtomicLong;

/**
 * The tracer of one attempt, with the attempt's ids in its resource. It forwards the spans and
 * counts them.
 */
final class AttemptTracing implements SpanProcessor {
  private static final String SCOPE = "io.lightningstore.client.runner";

  /** Nothing is truncated, because spans are training data. */
  private static final SpanLimits NO_LIMITS =
      SpanLimits.builder()
          .setMaxNumberOfAttributes(Integer.MAX_VALUE)
          .setMaxNumberOfAttributesPerEvent(Integer.MAX_VALUE)
          .setMaxNumberOfAttributesPerLink(Integer.MAX_VALUE)
          .setMaxNumberOfEvents(Integer.MAX_VALUE)
          .setMaxNumberOfLinks(Integer.MAX_VALUE)
          .build();

  private final LightningStoreSpanExporter exporter;
  private final AtomicLong ended = new AtomicLong();
  private final Tracer tracer;

  AttemptTracing(AttemptContext context, LightningStoreSpanExporter exporter) {
    this.exporter = exporter;
    Resource ids =
        Resource.create(
            Attributes.of(
                Outbox.ROLLOUT_ID, context.rolloutId(), Outbox.ATTEMPT_ID, context.attemptId()));
    // Never closed: closing it would only close this processor.
    tracer =
        SdkTracerProvider.builder()
            .setResource(Resource.getDefault().merge(ids))
            .setSampler(Sampler.alwaysOn())
            .setSpanLimits(NO_LIMITS)
            .addSpanProcessor(this)
            .build()
            .get(SCOPE);
  }

  Tracer tracer() {
    return tracer;
  }

  /** Returns the number of ended spans, stored or not. */
  long endedCount() {
    return ended.get();
  }

  @Override
  public void onStart(Context parentContext, ReadWriteSpan span) {}

  @Override
  public boolean isStartRequired() {
    return false;
  }

  @Override
  public void onEnd(ReadableSpan span) {
    ended.incrementAndGet();
    exporter.export(List.of(span.toSpanData()));
  }

  @Override
  public boolean isEndRequired() {
    return true;
  }
}
