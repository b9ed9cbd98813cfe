package io.lightningstore.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.protobuf.ByteString;
import io.lightningstore.v1.LLM;
import io.lightningstore.v1.PromptTemplate;
import io.lightningstore.v1.ProxyLLM;
import io.lightningstore.v1.TemplateEngine;
import io.opentelemetry.api.common.AttributeKey;
import io.opentelemetry.context.Context;
import io.opentelemetry.context.Scope;
import io.opentelemetry.proto.common.v1.AnyValue;
import io.opentelemetry.proto.common.v1.InstrumentationScope;
import io.opentelemetry.proto.common.v1.KeyValue;
import io.opentelemetry.proto.resource.v1.Resource;
import io.opentelemetry.proto.trace.v1.Span;
import io.opentelemetry.sdk.testing.exporter.InMemorySpanExporter;
import io.opentelemetry.sdk.trace.SdkTracerProvider;
import io.opentelemetry.sdk.trace.data.SpanData;
import io.opentelemetry.sdk.trace.export.SimpleSpanProcessor;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.OptionalDouble;
import java.util.stream.Stream;
import java.util.stream.StreamSupport;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.TestFactory;

/** What the clients of all languages agree on: the vectors of the conformance tests. */
class VectorsTest {
  private interface Check {
    void of(JsonObject vector);
  }

  private static Stream<DynamicTest> tests(String file, String list, Check check)
      throws IOException {
    Path path = Path.of("../../../tests/conformance/vectors", file);
    JsonObject vectors = JsonParser.parseString(Files.readString(path)).getAsJsonObject();
    return StreamSupport.stream(vectors.getAsJsonArray(list).spliterator(), false)
        .map(JsonElement::getAsJsonObject)
        .map(one -> DynamicTest.dynamicTest(one.get("name").getAsString(), () -> check.of(one)));
  }

  private static String text(JsonObject vector, String key) {
    JsonElement found = vector.get(key);
    return found == null || found.isJsonNull() ? null : found.getAsString();
  }

  @TestFactory
  Stream<DynamicTest> templates() throws IOException {
    return tests("templates.json", "cases", VectorsTest::checkTemplate);
  }

  private static void checkTemplate(JsonObject vector) {
    PromptTemplate template =
        PromptTemplate.newBuilder()
            .setTemplate(text(vector, "template"))
            .setEngine(
                TemplateEngine.valueOf(
                    "TEMPLATE_ENGINE_" + text(vector, "engine").toUpperCase(Locale.ROOT)))
            .build();
    Map<?, ?> decoded =
        Json.decode(ByteString.copyFromUtf8(vector.get("variables").toString()), Map.class);
    Map<String, Object> variables = new LinkedHashMap<>();
    decoded.forEach((name, value) -> variables.put((String) name, value));
    if (vector.has("text")) {
      assertEquals(text(vector, "text"), PromptTemplates.format(template, variables));
      return;
    }
    boolean lacksLibrary = text(vector, "error").equals("no_library");
    Class<? extends RuntimeException> kind =
        lacksLibrary ? UnsupportedOperationException.class : IllegalArgumentException.class;
    RuntimeException error = assertThrows(kind, () -> PromptTemplates.format(template, variables));
    String wanted =
        switch (text(vector, "error")) {
          case "missing" -> "missing value";
          case "no_library" -> "library";
          default -> "";
        };
    assertTrue(error.getMessage().contains(wanted), error.getMessage());
    if (vector.has("names")) {
      assertTrue(error.getMessage().contains(text(vector, "names")), error.getMessage());
    }
  }

  @TestFactory
  Stream<DynamicTest> baseUrls() throws IOException {
    return tests("base_urls.json", "cases", VectorsTest::checkBaseUrl);
  }

  private static void checkBaseUrl(JsonObject vector) {
    ProxyLLM proxy =
        ProxyLLM.newBuilder()
            .setLlm(LLM.newBuilder().setEndpoint(text(vector, "endpoint")).setModel("m"))
            .build();
    String rollout = text(vector, "rollout_id");
    String attempt = text(vector, "attempt_id");
    if (vector.has("error")) {
      assertThrows(
          IllegalArgumentException.class, () -> Endpoints.baseUrl(proxy, rollout, attempt));
      return;
    }
    assertEquals(text(vector, "url"), Endpoints.baseUrl(proxy, rollout, attempt));
    assertEquals("m", Endpoints.routed(proxy, rollout, attempt).getModel());
  }

  @TestFactory
  Stream<DynamicTest> finalRewards() throws IOException {
    return tests("rewards.json", "find_final_reward", VectorsTest::checkFinalReward);
  }

  private static void checkFinalReward(JsonObject vector) {
    List<StoredSpan> spans = new ArrayList<>();
    vector.getAsJsonArray("spans").forEach(one -> spans.add(stored(one.getAsJsonObject())));
    OptionalDouble wanted =
        vector.get("reward").isJsonNull()
            ? OptionalDouble.empty()
            : OptionalDouble.of(vector.get("reward").getAsDouble());
    assertEquals(wanted, Rewards.findFinalReward(spans));
  }

  private static StoredSpan stored(JsonObject vector) {
    Span.Builder span = Span.newBuilder().setName(text(vector, "name"));
    vector
        .getAsJsonObject("attributes")
        .entrySet()
        .forEach(
            one ->
                span.addAttributes(
                    KeyValue.newBuilder().setKey(one.getKey()).setValue(value(one.getValue()))));
    return new StoredSpan(
        span.build(),
        "ro-1",
        "at-1",
        vector.get("sequence_id").getAsLong(),
        Resource.getDefaultInstance(),
        InstrumentationScope.getDefaultInstance());
  }

  private static AnyValue value(JsonElement given) {
    if (!given.getAsJsonPrimitive().isNumber()) {
      return AnyValue.newBuilder().setStringValue(given.getAsString()).build();
    }
    boolean whole = !given.getAsString().contains(".");
    return whole
        ? AnyValue.newBuilder().setIntValue(given.getAsLong()).build()
        : AnyValue.newBuilder().setDoubleValue(given.getAsDouble()).build();
  }

  @TestFactory
  Stream<DynamicTest> emittedRewards() throws IOException {
    return tests("rewards.json", "emit_reward", VectorsTest::checkEmittedReward);
  }

  private static void checkEmittedReward(JsonObject vector) {
    InMemorySpanExporter spans = InMemorySpanExporter.create();
    SdkTracerProvider provider =
        SdkTracerProvider.builder().addSpanProcessor(SimpleSpanProcessor.create(spans)).build();
    try (Scope attempt = Context.root().with(Rewards.TRACER, provider.get("test")).makeCurrent()) {
      assertTrue(attempt != Scope.noop());
      if (vector.has("error")) {
        IllegalArgumentException error =
            assertThrows(IllegalArgumentException.class, () -> emit(vector));
        assertTrue(error.getMessage().contains(text(vector, "error")), error.getMessage());
        assertTrue(spans.getFinishedSpanItems().isEmpty());
        return;
      }
      emit(vector);
    }
    SpanData span = spans.getFinishedSpanItems().get(0);
    assertEquals("agentlightning.annotation", span.getName());
    Map<String, Object> found = new LinkedHashMap<>();
    span.getAttributes()
        .forEach((AttributeKey<?> key, Object value) -> found.put(key.getKey(), value));
    Map<String, Object> wanted = new LinkedHashMap<>();
    vector
        .getAsJsonObject("attributes")
        .entrySet()
        .forEach(
            one -> {
              boolean number = one.getValue().getAsJsonPrimitive().isNumber();
              wanted.put(
                  one.getKey(),
                  number ? (Object) one.getValue().getAsDouble() : one.getValue().getAsString());
            });
    assertEquals(wanted, found);
  }

  private static void emit(JsonObject vector) {
    JsonElement reward = vector.get("reward");
    if (!reward.isJsonArray()) {
      Rewards.emitReward(Double.parseDouble(reward.getAsString()));
      return;
    }
    Map<String, Double> dimensions = new LinkedHashMap<>();
    reward
        .getAsJsonArray()
        .forEach(
            one ->
                dimensions.put(
                    one.getAsJsonArray().get(0).getAsString(),
                    Double.valueOf(one.getAsJsonArray().get(1).getAsString())));
    if (vector.has("primary")) {
      Rewards.emitReward(dimensions, text(vector, "primary"));
    } else {
      Rewards.emitReward(dimensions);
    }
  }
}
