package io.lightningstore.client;

import static io.lightningstore.client.Events.next;
import static io.lightningstore.client.ScriptedServer.away;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Any;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.lightningstore.client.LightningStoreException.FieldViolation;
import io.lightningstore.v1.EnqueueRolloutsRequest;
import io.lightningstore.v1.EnqueueRolloutsResponse;
import io.lightningstore.v1.HeartbeatRequest;
import io.lightningstore.v1.Rollout;
import io.lightningstore.v1.WaitForRolloutsRequest;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;

class ClientTest {
  private final ScriptedServer server = new ScriptedServer();
  private final LightningStore store = server.connect();

  @AfterEach
  void close() {
    store.close();
    server.close();
  }

  private LightningStoreException enqueueFails() {
    return assertThrows(
        LightningStoreException.class,
        () -> store.enqueue(List.of(LightningStore.rollout(1).build())));
  }

  @Test
  void errorsTellAllThatTheServerSaid() {
    var info =
        ErrorInfo.newBuilder()
            .setReason("ERROR_REASON_QUEUE_FULL")
            .setDomain("lightningstore")
            .putMetadata("limit", "7");
    var retry = RetryInfo.newBuilder().setRetryDelay(Protos.fromJava(Duration.ofMillis(1500)));
    var fields = BadRequest.newBuilder();
    fields.addFieldViolationsBuilder().setField("f").setDescription("d");
    com.google.rpc.Status status =
        com.google.rpc.Status.newBuilder()
            .setCode(Status.Code.RESOURCE_EXHAUSTED.value())
            .setMessage("full")
            .addDetails(Any.pack(info.build()))
            .addDetails(Any.pack(retry.build()))
            .addDetails(Any.pack(fields.build()))
            .build();
    server.onEnqueue =
        request -> {
          throw StatusProto.toStatusRuntimeException(status);
        };
    LightningStoreException error = enqueueFails();
    assertEquals(Status.Code.RESOURCE_EXHAUSTED, error.code());
    assertEquals("ERROR_REASON_QUEUE_FULL", error.reason());
    assertEquals("lightningstore", error.domain());
    assertEquals(Map.of("limit", "7"), error.metadata());
    assertEquals(List.of(new FieldViolation("f", "d")), error.fieldViolations());
    assertEquals(Optional.of(Duration.ofMillis(1500)), error.retryDelay());
    assertTrue(error.getMessage().contains("full"));
  }

  @Test
  void silentServerIsGivenUpAfterTheTimeout() {
    CountDownLatch never = new CountDownLatch(1);
    server.onEnqueue =
        request -> {
          try {
            never.await();
          } catch (InterruptedException closed) {
            throw away();
          }
          return null;
        };
    try (LightningStore hasty =
        LightningStore.builder()
            .address(server.address())
            .timeout(Duration.ofMillis(100))
            .build()) {
      LightningStoreException error =
          assertThrows(LightningStoreException.class, () -> hasty.enqueue(List.of()));
      assertEquals(Status.Code.DEADLINE_EXCEEDED, error.code());
    }
    assertThrows(
        IllegalArgumentException.class, () -> LightningStore.builder().timeout(Duration.ZERO));
  }

  @Test
  void lostAnswersAreAskedForAgainWithTheSameRequestId() {
    List<String> ids = new CopyOnWriteArrayList<>();
    server.onEnqueue =
        request -> {
          ids.add(request.getRequestId());
          if (ids.size() < 3) {
            throw away();
          }
          return EnqueueRolloutsResponse.getDefaultInstance();
        };
    EnqueueRolloutsRequest request = EnqueueRolloutsRequest.getDefaultInstance();
    store.blockingStub().enqueueRollouts(request);
    assertEquals(3, ids.size());
    assertNotEquals("", ids.get(0));
    assertEquals(List.of(ids.get(0), ids.get(0), ids.get(0)), ids);
    store.blockingStub().enqueueRollouts(request);
    assertNotEquals(ids.get(0), ids.get(3), "a message sent twice is two writes");
    store.blockingStub().enqueueRollouts(request.toBuilder().setRequestId("own").build());
    assertEquals("own", ids.get(4));
  }

  @Test
  void closedClientFailsAtOnceAndForGood() {
    store.close();
    LightningStoreException error = enqueueFails();
    assertEquals(Status.Code.CANCELLED, error.code());
    assertFalse(error.isRetryable());
  }

  @Test
  void waitGoesOnWhereItBroke() throws Exception {
    BlockingQueue<List<String>> asked = new LinkedBlockingQueue<>();
    server.onWait =
        (request, to) -> {
          List<String> ids = List.copyOf(request.getRolloutIdsList());
          asked.add(ids);
          to.onNext(Answers.finished(ids.get(0)));
          if (ids.size() > 2) {
            throw away();
          }
          to.onNext(Answers.waitEnded(ids.subList(1, ids.size())));
        };
    WaitForRolloutsRequest request =
        WaitForRolloutsRequest.newBuilder()
            .addAllRolloutIds(List.of("a", "b", "c"))
            .setTimeout(Protos.fromJava(Duration.ofHours(1)))
            .build();
    try (WaitStream waiting = store.waitFor(request)) {
      assertEquals(List.of("a", "b"), waiting.stream().map(Rollout::getRolloutId).toList());
      assertEquals(List.of("c"), waiting.openRolloutIds());
    }
    assertEquals(List.of("a", "b", "c"), next(asked, "the first question"));
    assertEquals(List.of("b", "c"), next(asked, "the second"));
  }

  @Test
  void serverThatGoesDownIsAskedAgain() throws Exception {
    StatusRuntimeException goingDown =
        Status.CANCELLED.withDescription("CANCELLED").asRuntimeException();
    List<String> ids = new CopyOnWriteArrayList<>();
    server.onEnqueue =
        request -> {
          ids.add(request.getRequestId());
          if (ids.size() < 2) {
            throw goingDown;
          }
          return EnqueueRolloutsResponse.getDefaultInstance();
        };
    store.blockingStub().enqueueRollouts(EnqueueRolloutsRequest.getDefaultInstance());
    assertEquals(List.of(ids.get(0), ids.get(0)), ids);

    server.onWait =
        (request, to) -> {
          to.onNext(Answers.finished(request.getRolloutIds(0)));
          if (request.getRolloutIdsCount() > 1) {
            throw goingDown;
          }
          to.onNext(Answers.waitEnded(List.of()));
        };
    WaitForRolloutsRequest request =
        WaitForRolloutsRequest.newBuilder().addAllRolloutIds(List.of("a", "b")).build();
    try (WaitStream waiting = store.waitFor(request)) {
      assertEquals(List.of("a", "b"), waiting.stream().map(Rollout::getRolloutId).toList());
    }
  }

  @Test
  void waitThatBreaksAfterItsLastRolloutIsOver() {
    server.onWait =
        (request, to) -> {
          to.onNext(Answers.finished("a"));
          throw away();
        };
    WaitForRolloutsRequest request =
        WaitForRolloutsRequest.newBuilder()
            .addAllRolloutIds(List.of("a", "b"))
            .setMinCount(1)
            .build();
    try (WaitStream waiting = store.waitFor(request)) {
      assertEquals(List.of("a"), waiting.stream().map(Rollout::getRolloutId).toList());
      assertEquals(List.of("b"), waiting.openRolloutIds());
    }
  }

  @Test
  void waitFailsWhenTheServerStaysAway() {
    AtomicInteger tries = new AtomicInteger();
    server.onWait =
        (request, to) -> {
          tries.incrementAndGet();
          throw away();
        };
    try (LightningStore hasty =
            LightningStore.builder()
                .address(server.address())
                .timeout(Duration.ofSeconds(3))
                .build();
        WaitStream waiting = hasty.waitFor(List.of("a"))) {
      LightningStoreException error = assertThrows(LightningStoreException.class, waiting::hasNext);
      assertEquals(Status.Code.UNAVAILABLE, error.code());
      assertFalse(waiting.hasNext(), "it has ended");
    }
    assertTrue(tries.get() > 5, "tried again beyond gRPC's own tries");
  }

  @Test
  void otherFailuresEndAWaitAtOnce() {
    server.onWait =
        (request, to) -> {
          throw Status.NOT_FOUND.asRuntimeException();
        };
    try (WaitStream waiting = store.waitFor(List.of("a"))) {
      assertEquals(
          Status.Code.NOT_FOUND,
          assertThrows(LightningStoreException.class, waiting::hasNext).code());
    }
  }

  @Test
  void closeEndsTheReadingOfAnotherThread() throws Exception {
    CompletableFuture<Void> asked = new CompletableFuture<>();
    CountDownLatch never = new CountDownLatch(1);
    server.onWait =
        (request, to) -> {
          asked.complete(null);
          try {
            never.await();
          } catch (InterruptedException closed) {
            throw away();
          }
        };
    WaitStream waiting = store.waitFor(List.of("a"));
    CompletableFuture<Boolean> read = CompletableFuture.supplyAsync(waiting::hasNext);
    Events.end(asked);
    waiting.close();
    assertFalse(Events.end(read));
  }

  @Test
  void queryThatBreaksGivesEachSpanOnce() {
    AtomicInteger tries = new AtomicInteger();
    server.onQuery =
        (request, to) -> {
          boolean breaks = tries.incrementAndGet() == 1;
          for (int id = 1; id <= 3; id++) {
            to.onNext(Answers.spanOf("at-1", id));
            if (breaks && id == 2) {
              throw away();
            }
          }
        };
    try (SpanStream spans = store.querySpans("ro-1", "")) {
      assertEquals(List.of(1L, 2L, 3L), spans.stream().map(StoredSpan::sequenceId).toList());
    }
    assertEquals(2, tries.get());
  }

  @Test
  void tripletsThatBreakGiveEachAttemptOnceAndWhole() {
    AtomicInteger tries = new AtomicInteger();
    server.onTriplets =
        (request, to) -> {
          if (tries.incrementAndGet() == 1) {
            to.onNext(Answers.tripletsOf("at-1", 5, false));
            throw away();
          }
          to.onNext(Answers.tripletsOf("at-1", 1, true));
          to.onNext(Answers.tripletsOf("at-2", 2, false));
          if (tries.get() == 2) {
            throw away();
          }
          to.onNext(Answers.tripletsOf("at-2", 1, true));
        };
    try (TripletStream triplets = store.listTriplets(List.of("ro-1"))) {
      assertEquals(
          List.of("at-1 1", "at-2 3"),
          triplets.stream()
              .map(one -> one.getAttempt().getAttemptId() + " " + one.getTripletsCount())
              .toList());
    }
    assertEquals(3, tries.get());
  }

  @Test
  void streamResetByAServerThatGoesDownIsUnavailable() throws Exception {
    CompletableFuture<Void> asked = new CompletableFuture<>();
    CountDownLatch never = new CountDownLatch(1);
    server.onHeartbeat =
        request -> {
          asked.complete(null);
          try {
            never.await();
          } catch (InterruptedException closed) {
            throw away();
          }
          return null;
        };
    var beat =
        CompletableFuture.supplyAsync(
            () -> store.blockingStub().heartbeat(HeartbeatRequest.getDefaultInstance()));
    Events.end(asked);
    server.close();
    Throwable error = assertThrows(ExecutionException.class, () -> Events.end(beat)).getCause();
    assertTrue(LightningStoreException.from(error).isRetryable(), error.toString());
  }
}
