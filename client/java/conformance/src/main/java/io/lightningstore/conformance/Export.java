package io.lightningstore.conformance;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import io.lightningstore.client.LightningStore;
import io.lightningstore.client.LightningStoreSpanExporter;
import io.opentelemetry.api.common.AttributeKey;
import io.opentelemetry.api.common.Attributes;
import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.Tracer;
import io.opentelemetry.context.Context;
import io.opentelemetry.exporter.otlp.trace.OtlpGrpcSpanExporter;
import io.opentelemetry.sdk.resources.Resource;
import io.opentelemetry.sdk.trace.SdkTracerProvider;
import io.opentelemetry.sdk.trace.SdkTracerProviderBuilder;
import io.opentelemetry.sdk.trace.export.BatchSpanProcessor;
import io.opentelemetry.sdk.trace.export.SimpleSpanProcessor;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.concurrent.TimeUnit;

/** Creates spans with the OpenTelemetry SDK and exports them. */
final class Export {
  private Export() {}

  static JsonObject run(LightningStore store, String address, JsonObject command) {
    String rollout = Driver.text(command, "rollout_id");
    String attempt = Driver.text(command, "attempt_id");
    SdkTracerProviderBuilder builder = SdkTracerProvider.builder();
    switch (Driver.text(command, "exporter")) {
      case "sdk" ->
          builder.addSpanProcessor(
              SimpleSpanProcessor.create(
                  LightningStoreSpanExporter.create(store, rollout, attempt)));
      case "otlp" ->
          builder
              .setResource(
                  Resource.create(
                      Attributes.of(
                          AttributeKey.stringKey("agentlightning.rollout_id"), rollout,
                          AttributeKey.stringKey("agentlightning.attempt_id"), attempt)))
              .addSpanProcessor(
                  BatchSpanProcessor.builder(
                          OtlpGrpcSpanExporter.builder().setEndpoint("http://" + address).build())
                      .build());
      default -> {
        JsonObject what = new JsonObject();
        what.addProperty("unsupported", "no exporter " + command.get("exporter"));
        return what;
      }
    }
    try (SdkTracerProvider provider = builder.build()) {
      JsonObject what = new JsonObject();
      what.add("span_ids", makeSpans(provider, command.getAsJsonArray("spans")));
      if (!provider.forceFlush().join(30, TimeUnit.SECONDS).isSuccess()) {
        throw new IllegalStateException("the spans could not be flushed");
      }
      return what;
    }
  }

  /** Creates a span with each name, each the child of the previous one, and returns their ids. */
  private static JsonArray makeSpans(SdkTracerProvider provider, JsonArray names) {
    Tracer tracer = provider.get("conformance");
    JsonArray ids = new JsonArray();
    Context context = Context.root();
    Deque<Span> open = new ArrayDeque<>();
    for (JsonElement name : names) {
      Span span = tracer.spanBuilder(name.getAsString()).setParent(context).startSpan();
      open.push(span);
      context = context.with(span);
      ids.add(span.getSpanContext().getSpanId());
    }
    open.forEach(Span::end); // children end first
    return ids;
  }
}
