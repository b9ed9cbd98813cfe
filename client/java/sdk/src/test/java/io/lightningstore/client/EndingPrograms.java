package io.lightningstore.client;

import com.google.gson.JsonElement;
import io.opentelemetry.api.trace.Tracer;
import io.opentelemetry.sdk.trace.SdkTracerProvider;
import io.opentelemetry.sdk.trace.export.SimpleSpanProcessor;
import java.time.Duration;
import java.util.concurrent.TimeUnit;

/** Programs that {@link EndOfProgramTest} ends. */
final class EndingPrograms {
  private EndingPrograms() {}

  public static void main(String[] arguments) {
    LightningStore store = LightningStore.connect(); // never closed
    if (arguments[0].equals("exporter")) {
      var exporter = LightningStoreSpanExporter.create(store, "ro-1", "at-1");
      Tracer tracer =
          SdkTracerProvider.builder()
              .addSpanProcessor(SimpleSpanProcessor.create(exporter))
              .build()
              .get("test");
      tracer.spanBuilder("first").startSpan().end();
      exporter
          .flush()
          .join(Events.PATIENCE_SECONDS, TimeUnit.SECONDS); // all is loaded and connected
      tracer.spanBuilder("last").startSpan().end();
      System.exit(0);
    }
    Runner.builder(
            store,
            JsonElement.class,
            (input, resources, tracer, context) -> {
              System.out.println("working");
              return System.in.read(); // until the test says so
            })
        .build()
        .runUntilShutdown(Duration.ofMinutes(1));
  }
}
