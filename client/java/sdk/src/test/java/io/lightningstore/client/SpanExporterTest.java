package io.lightningstore.client;

import static io.lightningstore.client.ScriptedServer.away;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.grpc.stub.StreamObserver;
import io.lightningstore.v1.BatchRejection;
import io.lightningstore.v1.ErrorReason;
import io.lightningstore.v1.IngestResult;
import io.lightningstore.v1.IngestSpansResponse;
import io.lightningstore.v1.SpanBatch;
import io.opentelemetry.api.common.Attributes;
import io.opentelemetry.api.trace.StatusCode;
import io.opentelemetry.api.trace.Tracer;
import io.opentelemetry.context.Scope;
import io.opentelemetry.proto.trace.v1.Span;
import io.opentelemetry.sdk.common.CompletableResultCode;
import io.opentelemetry.sdk.resources.Resource;
import io.opentelemetry.sdk.trace.SdkTracerProvider;
import io.opentelemetry.sdk.trace.data.DelegatingSpanData;
import io.opentelemetry.sdk.trace.data.EventData;
import io.opentelemetry.sdk.trace.data.SpanData;
import io.opentelemetry.sdk.trace.export.BatchSpanProcessor;
import io.opentelemetry.sdk.trace.export.SimpleSpanProcessor;
import io.opentelemetry.sdk.trace.export.SpanExporter;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;

class SpanExporterTest {
  private final ScriptedServer server = new ScriptedServer();
  private final LightningStore store = server.connect();
  private final LightningStoreSpanExporter exporter =
      LightningStoreSpanExporter.create(store, "ro-1", "at-1");

  @AfterEach
  void close() {
    exporter.close();
    store.close();
    server.close();
  }

  private static SdkTracerProvider over(LightningStoreSpanExporter exporter) {
    return SdkTracerProvider.builder()
        .addSpanProcessor(SimpleSpanProcessor.create(exporter))
        .build();
  }

  private static void makeSpans(LightningStoreSpanExporter exporter, String... names) {
    Tracer tracer = over(exporter).get("test");
    for (String name : names) {
      tracer.spanBuilder(name).startSpan().end();
    }
  }

  private static void flush(LightningStoreSpanExporter exporter) {
    assertTrue(exporter.flush().join(Events.PATIENCE_SECONDS, TimeUnit.SECONDS).isSuccess());
  }

  @Test
  void whatWasNotAcknowledgedIsSentAgainAndNothingElse() {
    List<String> lost = new CopyOnWriteArrayList<>();
    AtomicInteger streams = new AtomicInteger();
    server.onIngest =
        batches -> {
          if (streams.incrementAndGet() <= 6) { // more than gRPC repeats by itself
            batches.forEach(batch -> batch.getSpansList().forEach(one -> lost.add(one.getName())));
            throw away();
          }
          return server.keep(batches);
        };
    makeSpans(exporter, "a", "b");
    flush(exporter);
    makeSpans(exporter, "c");
    flush(exporter);
    assertTrue(exporter.shutdown().join(Events.PATIENCE_SECONDS, TimeUnit.SECONDS).isSuccess());
    assertEquals(List.of("a", "b", "c"), server.storedSpans());
    assertTrue(lost.contains("a"));
    assertEquals(0, exporter.droppedCount());
  }

  @Test
  void spansBeyondTheBufferAndAfterTheShutdownAreDroppedAndCounted() {
    CountDownLatch free = new CountDownLatch(1);
    server.onIngest =
        batches -> {
          try {
            free.await();
          } catch (InterruptedException closed) {
            throw away();
          }
          return server.keep(batches);
        };
    Resource ids =
        Resource.create(Attributes.of(Outbox.ROLLOUT_ID, "ro-1", Outbox.ATTEMPT_ID, "at-1"));
    LightningStoreSpanExporter small = LightningStoreSpanExporter.create(store, 1000, stop -> {});
    Tracer tracer =
        SdkTracerProvider.builder()
            .setResource(ids)
            .addSpanProcessor(SimpleSpanProcessor.create(small))
            .build()
            .get("test");
    for (int i = 0; i < 100; i++) {
      tracer.spanBuilder("span " + i).startSpan().end();
    }
    long dropped = small.droppedCount();
    assertTrue(dropped > 0 && dropped < 100, "dropped " + dropped);
    assertFalse(small.flush().isDone());
    free.countDown();
    flush(small);
    assertEquals(100 - dropped, server.storedSpans().size());
    small.close();
    tracer.spanBuilder("late").startSpan().end();
    assertEquals(dropped + 1, small.droppedCount());
  }

  @Test
  void shutdownHoldsNobodyUpForLongAndCountsWhatIsLost() {
    server.onIngest =
        batches -> {
          throw away();
        };
    makeSpans(exporter, "a");
    CompletableResultCode flushed = exporter.flush();
    long began = System.nanoTime();
    exporter.close();
    long seconds = TimeUnit.NANOSECONDS.toSeconds(System.nanoTime() - began);
    assertTrue(seconds < 30, "took " + seconds + " s");
    assertTrue(flushed.isDone() && !flushed.isSuccess());
    assertFalse(exporter.shutdown().isSuccess());
    assertEquals(1, exporter.droppedCount());
  }

  @Test
  void exportIsDoneWhenItsSpansAreStored() {
    CountDownLatch free = new CountDownLatch(1);
    server.onIngest =
        batches -> {
          try {
            free.await();
          } catch (InterruptedException closed) {
            throw away();
          }
          return server.keep(batches);
        };
    try (SdkTracerProvider provider = over(exporter)) {
      provider.get("test").spanBuilder("a").startSpan().end();
      CompletableResultCode flushed = provider.forceFlush();
      assertFalse(flushed.isDone());
      free.countDown();
      assertTrue(flushed.join(Events.PATIENCE_SECONDS, TimeUnit.SECONDS).isSuccess());
      assertEquals(List.of("a"), server.storedSpans());
    }
  }

  @Test
  void spansSayThemselvesWhereTheyBelong() {
    List<String> filed = new CopyOnWriteArrayList<>();
    server.onIngest =
        batches -> {
          for (SpanBatch batch : batches) {
            for (int i = 0; i < batch.getSpansCount(); i++) {
              String number = batch.getSequenceIdsCount() == 0 ? "" : " " + batch.getSequenceIds(i);
              filed.add(
                  String.join(
                          " ",
                          batch.getSpans(i).getName(),
                          batch.getRolloutId(),
                          batch.getAttemptId())
                      + number);
            }
          }
          return server.keep(batches);
        };
    try (LightningStoreSpanExporter any = LightningStoreSpanExporter.create(store)) {
      Tracer tracer =
          SdkTracerProvider.builder()
              .setResource(
                  Resource.create(
                      Attributes.of(Outbox.ROLLOUT_ID, "ro-r", Outbox.ATTEMPT_ID, "at-r")))
              .addSpanProcessor(SimpleSpanProcessor.create(any))
              .build()
              .get("test");
      tracer.spanBuilder("resource").startSpan().end();
      tracer
          .spanBuilder("own")
          .setAttribute(Outbox.ROLLOUT_ID, "ro-s")
          .setAttribute(Outbox.ATTEMPT_ID, "at-s")
          .setAttribute("agentlightning.span_sequence_id", 7)
          .startSpan()
          .end();
      makeSpans(any, "nobody's");
      flush(any);
      assertEquals(List.of("resource ro-r at-r", "own ro-s at-s 7"), filed);
      assertEquals(1, any.droppedCount());
    }
  }

  /** Refuses messages with a span of a name, and tells of the first refusal only. */
  private IngestResult refuse(String name, List<SpanBatch> batches) {
    List<SpanBatch> good = new ArrayList<>();
    IngestResult.Builder result = IngestResult.newBuilder();
    for (int i = 0; i < batches.size(); i++) {
      SpanBatch batch = batches.get(i);
      if (batch.getSpansList().stream().noneMatch(one -> one.getName().startsWith(name))) {
        good.add(batch);
        continue;
      }
      result.setRejectedCount(result.getRejectedCount() + batch.getSpansCount());
      if (result.getRejectionsCount() == 0) {
        result.addRejections(
            BatchRejection.newBuilder()
                .setMessageIndex(i)
                .setReason(ErrorReason.ERROR_REASON_FIELD_INVALID)
                .setSpanCount(batch.getSpansCount()));
      }
    }
    return result.setAcceptedCount(server.keep(good).getAcceptedCount()).build();
  }

  @Test
  void badSpansCostNoOthersThoughOnlyTheFirstRefusalIsTold() {
    server.onIngest = batches -> refuse("bad", batches);
    try (SdkTracerProvider provider =
        SdkTracerProvider.builder()
            .addSpanProcessor(BatchSpanProcessor.builder(exporter).build()) // all in one export
            .build()) {
      for (String name : List.of("a", "bad 1", "b", "bad 2", "c")) {
        provider.get("test").spanBuilder(name).startSpan().end();
      }
      provider.forceFlush().join(Events.PATIENCE_SECONDS, TimeUnit.SECONDS);
      assertEquals(2, exporter.droppedCount());
      assertEquals(
          List.of("a", "b", "c"), server.storedSpans().stream().distinct().sorted().toList());
    }
  }

  @Test
  void spansOfABatchThatAreRefusedAreCountedAndTheOthersNotSentAgain() {
    AtomicInteger streams = new AtomicInteger();
    server.onIngest =
        batches -> {
          streams.incrementAndGet();
          return IngestResult.newBuilder()
              .setAcceptedCount(1)
              .setRejectedCount(2)
              .addRejections(BatchRejection.newBuilder().setSpanCount(2))
              .build();
        };
    try (SdkTracerProvider provider =
        SdkTracerProvider.builder()
            .addSpanProcessor(BatchSpanProcessor.builder(exporter).build())
            .build()) {
      for (String name : List.of("a", "b", "c")) {
        provider.get("test").spanBuilder(name).startSpan().end();
      }
      provider.forceFlush().join(Events.PATIENCE_SECONDS, TimeUnit.SECONDS);
      assertEquals(2, exporter.droppedCount());
      assertEquals(1, streams.get());
    }
  }

  @Test
  void refusalsWithoutAReasonAreCounted() {
    server.onIngest = batches -> IngestResult.newBuilder().setRejectedCount(2).build();
    makeSpans(exporter, "a", "b");
    flush(exporter);
    assertEquals(2, exporter.droppedCount());
  }

  @Test
  void textOfSpansIsSentAsValidUnicode() {
    String half = "\ud83d";
    List<Span> spans = new CopyOnWriteArrayList<>();
    server.onIngest =
        batches -> {
          batches.forEach(batch -> spans.addAll(batch.getSpansList()));
          return server.keep(batches);
        };
    var span = over(exporter).get("test").spanBuilder("name " + half).startSpan();
    span.setAttribute("key " + half, "value " + half);
    span.setStatus(StatusCode.ERROR, "status " + half);
    span.addEvent("event " + half);
    span.end();
    flush(exporter);
    assertEquals("name \ufffd", spans.get(0).getName());
    assertEquals("key \ufffd", spans.get(0).getAttributes(0).getKey());
    assertEquals("value \ufffd", spans.get(0).getAttributes(0).getValue().getStringValue());
    assertEquals("status \ufffd", spans.get(0).getStatus().getMessage());
    assertEquals("event \ufffd", spans.get(0).getEvents(0).getName());
  }

  @Test
  void idsThatAreNotValidAreRefusedByName() {
    try (Warnings warnings = new Warnings(LightningStoreSpanExporter.class)) {
      var span = over(exporter).get("test").spanBuilder("a").startSpan();
      span.setAttribute(Outbox.ROLLOUT_ID, "ro-\ud83d").end();
      assertEquals(1, exporter.droppedCount());
      assertEquals(
          1, warnings.with("attribute agentlightning.rollout_id must be valid Unicode").size());
      IllegalArgumentException error =
          assertThrows(
              IllegalArgumentException.class,
              () -> LightningStoreSpanExporter.create(store, "ro-1", "\ud83d"));
      assertTrue(error.getMessage().startsWith("attemptId must be"), error.getMessage());
    }
  }

  @Test
  void idsBeyondTheLimitOfAttributesAreMissedAloud() {
    try (Warnings warnings = new Warnings(LightningStoreSpanExporter.class);
        LightningStoreSpanExporter any = LightningStoreSpanExporter.create(store)) {
      var span = over(any).get("test").spanBuilder("crowded").startSpan();
      for (int i = 0; i < 128; i++) {
        span.setAttribute("key " + i, i);
      }
      span.setAttribute(Outbox.ROLLOUT_ID, "ro-1").setAttribute(Outbox.ATTEMPT_ID, "at-1").end();
      assertEquals(1, any.droppedCount());
      assertEquals(1, warnings.with("crowded").size());
      assertEquals(1, warnings.with("dropped 2 attributes over its limit").size());
    }
  }

  /** A span whose data cannot be read. */
  private static final class Unreadable extends DelegatingSpanData {
    Unreadable(SpanData data) {
      super(data);
    }

    @Override
    public List<EventData> getEvents() {
      throw new StackOverflowError();
    }
  }

  @Test
  void spanThatCannotBeEncodedIsLostAlone() {
    SpanExporter broken =
        new SpanExporter() {
          @Override
          public CompletableResultCode export(Collection<SpanData> spans) {
            List<SpanData> both = new ArrayList<>(spans);
            spans.forEach(span -> both.add(0, new Unreadable(span)));
            return exporter.export(both);
          }

          @Override
          public CompletableResultCode flush() {
            return exporter.flush();
          }

          @Override
          public CompletableResultCode shutdown() {
            return exporter.shutdown();
          }
        };
    SdkTracerProvider.builder()
        .addSpanProcessor(SimpleSpanProcessor.create(broken))
        .build()
        .get("test")
        .spanBuilder("a")
        .startSpan()
        .end();
    flush(exporter);
    assertEquals(List.of("a"), server.storedSpans());
    assertEquals(1, exporter.droppedCount());
  }

  @Test
  void messagesStaySmall() {
    List<Integer> sizes = new CopyOnWriteArrayList<>();
    server.onIngest =
        batches -> {
          batches.forEach(batch -> sizes.add(batch.getSpansCount()));
          return server.keep(batches);
        };
    String large = "x".repeat(400_000);
    makeSpans(exporter, large, large, large);
    flush(exporter);
    assertEquals(3, sizes.stream().mapToInt(Integer::intValue).sum());
    assertTrue(sizes.stream().allMatch(size -> size <= 2), sizes.toString());
  }

  @Test
  void tooLargeSpansAreDroppedBeforeTheyAreSent() {
    makeSpans(exporter, "x".repeat(4 << 20), "small");
    flush(exporter);
    assertEquals(List.of("small"), server.storedSpans());
    assertEquals(1, exporter.droppedCount());
  }

  @Test
  void spansOfOneTraceAreLinkedAsTheyWere() {
    List<Span> spans = new CopyOnWriteArrayList<>();
    server.onIngest =
        batches -> {
          batches.forEach(batch -> spans.addAll(batch.getSpansList()));
          return server.keep(batches);
        };
    Tracer tracer = over(exporter).get("test");
    var parent = tracer.spanBuilder("parent").startSpan();
    try (Scope inside = parent.makeCurrent()) {
      assertTrue(inside != Scope.noop());
      tracer.spanBuilder("child").startSpan().end();
    }
    parent.end();
    flush(exporter);
    assertEquals(List.of("child", "parent"), spans.stream().map(Span::getName).toList());
    assertEquals(spans.get(1).getSpanId(), spans.get(0).getParentSpanId());
    assertEquals(spans.get(1).getTraceId(), spans.get(0).getTraceId());
    assertTrue(spans.get(1).getParentSpanId().isEmpty());
  }

  @Test
  void uploadEndsWhenTheStoreIsClosedBeforeItIsConnected() throws Exception {
    try (ServerSocket silent = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
      LightningStore unconnected = LightningStore.connect("127.0.0.1:" + silent.getLocalPort());
      var sending = LightningStoreSpanExporter.create(unconnected, "ro-1", "at-1");
      makeSpans(sending, "a");
      CompletableResultCode flushed = sending.flush();
      CompletableFuture<IngestSpansResponse> uploaded = new CompletableFuture<>();
      unconnected.asyncStub().ingestSpans(new Uploaded(uploaded));
      try (Socket accepted = silent.accept()) { // the calls wait for it, and it says nothing
        unconnected.close();
        assertThrows(
            ExecutionException.class,
            () -> uploaded.get(Events.PATIENCE_SECONDS, TimeUnit.SECONDS));
        flushed.join(Events.PATIENCE_SECONDS, TimeUnit.SECONDS);
        assertTrue(flushed.isDone());
        assertEquals(1, sending.droppedCount());
        accepted.getPort();
      }
      sending.close();
    }
  }

  private record Uploaded(CompletableFuture<IngestSpansResponse> to)
      implements StreamObserver<IngestSpansResponse> {
    @Override
    public void onNext(IngestSpansResponse response) {
      to.complete(response);
    }

    @Override
    public void onError(Throwable error) {
      to.completeExceptionally(error);
    }

    @Override
    public void onCompleted() {}
  }
}
