package io.lightningstore.client;

import static io.lightningstore.client.Events.end;
import static io.lightningstore.client.Events.next;
import static io.lightningstore.client.ScriptedServer.away;
import static io.lightningstore.client.ScriptedServer.claimOf;
import static io.lightningstore.client.ScriptedServer.claims;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.gson.JsonElement;
import io.grpc.Status;
import io.lightningstore.v1.AttemptStatus;
import io.lightningstore.v1.Failure;
import io.lightningstore.v1.HeartbeatResponse;
import io.lightningstore.v1.Rollout;
import io.lightningstore.v1.StopReason;
import io.lightningstore.v1.UpdateAttemptRequest;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;

class RunnerTest {
  private static final AttemptStatus SUCCEEDED = AttemptStatus.ATTEMPT_STATUS_SUCCEEDED;

  /** More failures than gRPC repeats by itself. */
  private static final int MANY = 6;

  private final ScriptedServer server = new ScriptedServer();
  private final LightningStore store = server.connect();

  @AfterEach
  void close() {
    store.close();
    server.close();
  }

  private RunnerBuilder<JsonElement> builder(Agent<JsonElement> agent) {
    return Runner.builder(store, JsonElement.class, agent);
  }

  private UpdateAttemptRequest outcome() throws InterruptedException {
    return next(server.updates, "an outcome");
  }

  @Test
  void lostClaimIsFoundByItsRequestId() throws Exception {
    BlockingQueue<String> ids = new LinkedBlockingQueue<>();
    AtomicInteger tries = new AtomicInteger();
    server.onDequeue =
        request -> {
          ids.add(request.getRequestId());
          if (tries.incrementAndGet() <= MANY) {
            throw away();
          }
          return claims(claimOf("ro-1", "1"));
        };
    var ended = builder((input, resources, tracer, context) -> null).maxRollouts(1).build().start();
    String first = next(ids, "a claim");
    assertNotEquals("", first);
    for (int i = 0; i < MANY; i++) {
      assertEquals(first, next(ids, "its repeat"));
    }
    end(ended);
    assertEquals(SUCCEEDED, outcome().getAttempt().getStatus());
  }

  @Test
  void claimThatWasUnderWayAtTheStopIsWorkedOn() throws Exception {
    BlockingQueue<String> asked = new LinkedBlockingQueue<>();
    CountDownLatch stopped = new CountDownLatch(1);
    AtomicBoolean first = new AtomicBoolean(true);
    server.onDequeue =
        request -> {
          asked.add(request.getRequestId());
          if (first.getAndSet(false)) { // its answer comes after the stop
            await(stopped);
          }
          return claims(claimOf("ro-1", "1"));
        };
    Runner runner = builder((input, resources, tracer, context) -> null).build();
    var ended = runner.start();
    String id = next(asked, "a claim");
    runner.stop();
    stopped.countDown();
    end(ended);
    assertEquals(id, next(asked, "the question what was claimed"));
    assertEquals(SUCCEEDED, outcome().getAttempt().getStatus());
  }

  private static void await(CountDownLatch latch) {
    try {
      latch.await();
    } catch (InterruptedException interrupted) {
      throw new IllegalStateException(interrupted);
    }
  }

  @Test
  void claimAsksForNoMoreThanOneCallGives() throws Exception {
    BlockingQueue<Integer> limits = new LinkedBlockingQueue<>();
    server.onDequeue =
        request -> {
          limits.add(request.getLimit());
          return claims(claimOf("ro-1", "1"));
        };
    assertEquals(1, new Claims(store, "w", List.of(), List.of()).claim(20_000).size());
    assertEquals(1_000, next(limits, "a claim"));
  }

  @Test
  void nothingIsClaimedOnceStopped() throws Exception {
    server.onDequeue = request -> claims(claimOf("ro-1", "1"));
    Claims stopped = new Claims(store, "w", List.of(), List.of());
    stopped.stop();
    assertEquals(List.of(), stopped.claim(1));
  }

  /** Runs an agent that waits to be cancelled and then says that all is well, and returns why. */
  private void checkStopped() throws Exception {
    BlockingQueue<StopReason> reasons = new LinkedBlockingQueue<>();
    builder(
            (input, resources, tracer, context) -> {
              tracer.spanBuilder("step").startSpan().end();
              context.cancellation().await(Duration.ofSeconds(Events.PATIENCE_SECONDS));
              reasons.add(context.cancellation().reason().orElseThrow());
              return 1.0; // in spite of the cancellation
            })
        .maxRollouts(1)
        .heartbeatPeriod(Duration.ofMillis(100))
        .build()
        .start();
    server.queue.add(claimOf("ro-1", "1"));
    assertEquals(StopReason.STOP_REASON_SUPERSEDED, next(reasons, "the cancellation"));
    Failure failure = outcome().getAttempt().getFailure();
    assertEquals("Cancelled", failure.getType());
    assertEquals("a newer attempt has replaced this one", failure.getMessage());
    assertEquals(List.of("step"), server.storedSpans(), "a stopped attempt gets no reward");
  }

  @Test
  void stopToldToAHeartbeatCancelsAndIsNeverSuccess() throws Exception {
    server.onHeartbeat =
        request ->
            HeartbeatResponse.newBuilder()
                .addAllStops(
                    request.getAttemptsList().stream()
                        .map(one -> Answers.superseded(one.getRolloutId()))
                        .toList())
                .build();
    checkStopped();
  }

  @Test
  void stopToldWithSpansCancelsAndIsNeverSuccess() throws Exception {
    server.onIngest =
        batches -> server.keep(batches).toBuilder().addStops(Answers.superseded("ro-1")).build();
    checkStopped();
  }

  @Test
  void stopToldWithTheLastSpansIsNoSuccess() throws Exception {
    server.onIngest =
        batches -> server.keep(batches).toBuilder().addStops(Answers.superseded("ro-1")).build();
    builder((input, resources, tracer, context) -> 1.0).maxRollouts(1).build().start();
    server.queue.add(claimOf("ro-1", "1"));
    assertEquals("Cancelled", outcome().getAttempt().getFailure().getType());
  }

  @Test
  void spansAreStoredBeforeTheOutcomeThoughBothFailForAWhile() throws Exception {
    AtomicInteger streams = new AtomicInteger();
    server.onIngest =
        batches -> {
          if (streams.incrementAndGet() <= MANY) {
            throw away();
          }
          return server.keep(batches);
        };
    AtomicInteger updates = new AtomicInteger();
    server.onUpdate =
        request -> {
          if (updates.incrementAndGet() <= MANY) {
            throw away();
          }
        };
    builder(
            (input, resources, tracer, context) -> {
              tracer.spanBuilder("step").startSpan().end();
              return 0.5;
            })
        .maxRollouts(1)
        .build()
        .start();
    server.queue.add(claimOf("ro-1", "1"));
    assertEquals(2, outcome().getSentSpanCount());
    assertEquals(
        List.of("span step", "span " + Rewards.ANNOTATION, "update " + SUCCEEDED), server.notes);
  }

  @Test
  void rewardIsNoSuccessIfItIsNoNumber() throws Exception {
    builder((input, resources, tracer, context) -> Double.NaN).maxRollouts(1).build().start();
    server.queue.add(claimOf("ro-1", "1"));
    Failure failure = outcome().getAttempt().getFailure();
    assertTrue(failure.getMessage().contains("finite"), failure.getMessage());
  }

  record Question(int question) {}

  @Test
  void inputThatDoesNotFitIsNotRetried() throws Exception {
    Runner.builder(
            store,
            Question.class,
            (input, resources, tracer, context) -> {
              throw new IllegalStateException("was called");
            })
        .maxRollouts(1)
        .build()
        .start();
    server.queue.add(claimOf("ro-1", "\"text\""));
    Failure failure = outcome().getAttempt().getFailure();
    assertTrue(failure.getMessage().startsWith("input: "), failure.getMessage());
    assertTrue(failure.hasRetryable() && !failure.getRetryable());
  }

  @Test
  void stopLetsWhatRunsFinishSideBySide() throws Exception {
    BlockingQueue<String> working = new LinkedBlockingQueue<>();
    CountDownLatch finish = new CountDownLatch(1);
    Runner runner =
        builder(
                (input, resources, tracer, context) -> {
                  working.add(context.rolloutId());
                  finish.await();
                  return null;
                })
            .concurrency(2)
            .build();
    var ended = runner.start();
    server.queue.add(claimOf("ro-1", "1"));
    server.queue.add(claimOf("ro-2", "1"));
    next(working, "one");
    next(working, "the other");
    runner.stop();
    server.queue.add(claimOf("ro-3", "1"));
    finish.countDown();
    end(ended);
    assertEquals(SUCCEEDED, outcome().getAttempt().getStatus());
    assertEquals(SUCCEEDED, outcome().getAttempt().getStatus());
    assertEquals(1, server.queue.size(), "nothing is claimed after the stop");
  }

  /** Starts an agent that waits for its cancellation, by interrupt only. */
  private Runner startWaiting(BlockingQueue<Thread> working) {
    server.queue.add(claimOf("ro-1", "1"));
    return builder(
            (input, resources, tracer, context) -> {
              working.add(Thread.currentThread());
              Thread.sleep(Duration.ofMinutes(5).toMillis());
              return null;
            })
        .build();
  }

  private void checkCancelledByTheRunner() throws InterruptedException {
    Failure failure = outcome().getAttempt().getFailure();
    assertEquals("Cancelled", failure.getType());
    assertEquals("the runner is stopping", failure.getMessage());
  }

  @Test
  void secondStopInterruptsWhatRuns() throws Exception {
    BlockingQueue<Thread> working = new LinkedBlockingQueue<>();
    Runner runner = startWaiting(working);
    var ended = runner.start();
    next(working, "the agent");
    runner.stop();
    runner.stop();
    end(ended);
    checkCancelledByTheRunner();
  }

  @Test
  void interruptOfRunCancelsWhatRuns() throws Exception {
    BlockingQueue<Thread> working = new LinkedBlockingQueue<>();
    CompletableFuture<Boolean> interrupted = new CompletableFuture<>();
    Runner runner = startWaiting(working);
    Thread running =
        new Thread(
            () -> {
              runner.run();
              interrupted.complete(Thread.interrupted());
            });
    running.start();
    next(working, "the agent");
    running.interrupt();
    assertTrue(end(interrupted), "the interrupt is passed on");
    checkCancelledByTheRunner();
  }

  @Test
  void cancellingTheFutureCancelsWhatRunsWhateverItThenReturns() throws Exception {
    BlockingQueue<Thread> working = new LinkedBlockingQueue<>();
    server.queue.add(claimOf("ro-1", "1"));
    CompletableFuture<Void> ended =
        builder(
                (input, resources, tracer, context) -> {
                  working.add(Thread.currentThread());
                  context.cancellation().await(Duration.ofSeconds(Events.PATIENCE_SECONDS));
                  return 1.0;
                })
            .build()
            .start();
    next(working, "the agent");
    ended.cancel(true);
    checkCancelledByTheRunner();
    assertEquals(List.of(), server.storedSpans(), "no reward");
  }

  @Test
  void agentThatHeedsNothingIsLeftBehind() throws Exception {
    BlockingQueue<Thread> working = new LinkedBlockingQueue<>();
    AtomicBoolean over = new AtomicBoolean();
    server.queue.add(claimOf("ro-1", "1"));
    Runner runner =
        builder(
                (input, resources, tracer, context) -> {
                  working.add(Thread.currentThread());
                  while (!over.get()) {
                    Thread.onSpinWait();
                  }
                  return 1.0;
                })
            .build();
    var ended = runner.start();
    Thread stuck = next(working, "the agent");
    runner.stop();
    runner.stop();
    end(ended);
    assertTrue(stuck.isAlive());
    checkCancelledByTheRunner();
    over.set(true);
  }

  @Test
  void heartbeatsKeepUpWithAShortTimeoutWhateverTheAgentDoes() throws Exception {
    BlockingQueue<Long> beats = new LinkedBlockingQueue<>();
    server.onHeartbeat =
        request -> {
          if (request.getAttemptsCount() == 1) {
            beats.add(System.nanoTime());
          }
          return HeartbeatResponse.getDefaultInstance();
        };
    AtomicBoolean over = new AtomicBoolean();
    builder(
            (input, resources, tracer, context) -> {
              while (!over.get()) { // busy
                Thread.onSpinWait();
              }
              return null;
            })
        .maxRollouts(1)
        .build()
        .start();
    Rollout.Builder rollout = claimOf("ro-1", "1").toBuilder();
    rollout.getConfigBuilder().setUnresponsiveTimeout(Protos.fromJava(Duration.ofMillis(900)));
    server.queue.add(rollout.build());
    long first = next(beats, "a heartbeat");
    long last = first;
    for (int i = 0; i < 3; i++) {
      last = next(beats, "another");
    }
    over.set(true);
    assertTrue(last - first < Duration.ofSeconds(25).toNanos(), "three take 30 without it");
  }

  @Test
  void heartbeatsOfManyAttemptsAreSplit() throws Exception {
    BlockingQueue<Integer> counts = new LinkedBlockingQueue<>();
    server.onHeartbeat =
        request -> {
          counts.add(request.getAttemptsCount());
          return HeartbeatResponse.getDefaultInstance();
        };
    Heartbeats beats =
        new Heartbeats(store, "w", Duration.ofHours(1), stop -> {}, Map::of, () -> 0);
    for (int i = 0; i < 2_500; i++) {
      beats.add(new AttemptContext(claimOf("ro-" + i, "1"), "w"));
    }
    beats.start();
    assertEquals(1_000, next(counts, "a heartbeat"));
    assertEquals(1_000, next(counts, "its second part"));
    assertEquals(500, next(counts, "its last part"));
    beats.stop();
  }

  @Test
  void runEndsWithWhatWaitingDoesNotMend() throws Exception {
    store.close();
    var ended = builder((input, resources, tracer, context) -> null).build().start();
    ExecutionException error = assertThrows(ExecutionException.class, () -> end(ended));
    assertInstanceOf(LightningStoreException.class, error.getCause());
  }

  @Test
  void resourcesThatAreGoneFailTheAttempt() throws Exception {
    builder((input, resources, tracer, context) -> null).maxRollouts(1).build().start();
    Rollout.Builder rollout = claimOf("ro-1", "1").toBuilder();
    rollout.getLatestAttemptBuilder().setResourcesId("rs-1"); // the server has no GetResources
    server.queue.add(rollout.build());
    Failure failure = outcome().getAttempt().getFailure();
    assertEquals("LightningStoreException", failure.getType());
    assertTrue(failure.getMessage().contains(Status.Code.UNIMPLEMENTED.name()));
  }

  @Test
  void rewardsGoToTheRunningAttempt() throws Exception {
    builder(
            (input, resources, tracer, context) -> {
              Rewards.emitReward(2.5);
              return null;
            })
        .maxRollouts(1)
        .build()
        .start();
    server.queue.add(claimOf("ro-1", "1"));
    assertEquals(1, outcome().getSentSpanCount());
    assertEquals(List.of(Rewards.ANNOTATION), server.storedSpans());
  }

  @Test
  void rewardsThatNobodyRecordsAreErrors() {
    IllegalStateException error =
        assertThrows(IllegalStateException.class, () -> Rewards.emitReward(2.5));
    assertTrue(error.getMessage().startsWith("the reward is lost"), error.getMessage());
  }

  @Test
  void claimWithoutItsInputIsFilled() throws Exception {
    AtomicInteger tries = new AtomicInteger();
    server.onGetRollout =
        request -> {
          if (tries.incrementAndGet() <= MANY) {
            throw away();
          }
          return claimOf(request.getRolloutId(), "7");
        };
    BlockingQueue<JsonElement> inputs = new LinkedBlockingQueue<>();
    builder(
            (input, resources, tracer, context) -> {
              inputs.add(input);
              return null;
            })
        .maxRollouts(1)
        .build()
        .start();
    server.queue.add(claimOf("ro-1", "").toBuilder().setPayloadsOmitted(true).build());
    assertEquals(7, next(inputs, "an input").getAsInt());
    assertEquals(SUCCEEDED, outcome().getAttempt().getStatus());
  }

  @Test
  void spansOfARunnerHaveNoLimitOfAttributes() throws Exception {
    System.setProperty("otel.sdk.disabled", "true"); // which is for OpenTelemetry's autoconfigure
    List<Integer> counts = new CopyOnWriteArrayList<>();
    server.onIngest =
        batches -> {
          batches.forEach(
              batch -> batch.getSpansList().forEach(span -> counts.add(span.getAttributesCount())));
          return server.keep(batches);
        };
    builder(
            (input, resources, tracer, context) -> {
              var span = tracer.spanBuilder("crowded").startSpan();
              for (int i = 0; i < 1000; i++) {
                span.setAttribute("key " + i, i);
              }
              span.end();
              return null;
            })
        .maxRollouts(1)
        .build()
        .start();
    server.queue.add(claimOf("ro-1", "1"));
    assertEquals(1, outcome().getSentSpanCount());
    assertEquals(List.of(1000), counts);
    System.clearProperty("otel.sdk.disabled");
  }

  @Test
  void runnerRunsOnce() throws Exception {
    Runner runner = builder((input, resources, tracer, context) -> null).maxRollouts(0).build();
    runner.run();
    assertThrows(IllegalStateException.class, runner::run);
    assertFalse(runner.workerId().isEmpty());
  }
}
