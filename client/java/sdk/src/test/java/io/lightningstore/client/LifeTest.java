package io.lightningstore.client;

import static io.lightningstore.client.Events.next;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.gson.JsonElement;
import io.grpc.Status;
import io.lightningstore.v1.Attempt;
import io.lightningstore.v1.AttemptStatus;
import io.lightningstore.v1.AttemptTriplets;
import io.lightningstore.v1.Resource;
import io.lightningstore.v1.Rollout;
import io.lightningstore.v1.RolloutSpec;
import io.lightningstore.v1.RolloutStatus;
import io.lightningstore.v1.UpdateRolloutRequest;
import io.lightningstore.v1.WaitForRolloutsRequest;
import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.Tracer;
import io.opentelemetry.context.Scope;
import java.nio.file.Path;
import java.time.Duration;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.OptionalDouble;
import java.util.Set;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Algorithm, runner and exporter against the server itself. */
class LifeTest {
  private static final long LARGE = 9007199254740993L; // no double holds it
  private static final String[] MEMORY = {"--port", "0", "--backend", "memory"};

  @TempDir Path folder;

  record Question(long question) {}

  private static RolloutSpec question(long question) {
    return LightningStore.rollout(new Question(question)).setGroupId("g").build();
  }

  private static WaitStream waitForAll(LightningStore store) {
    return store.waitFor(WaitForRolloutsRequest.newBuilder().addGroupIds("g").build());
  }

  private static Number think(
      Question input, AttemptResources resources, Tracer tracer, AttemptContext context)
      throws NonRetryableException {
    String wanted =
        "http://h/rollout/" + context.rolloutId() + "/attempt/" + context.attemptId() + "/v1";
    if (!resources.llm("llm").getEndpoint().equals(wanted) || context.sequenceNumber() != 1) {
      throw new IllegalStateException("routed to " + resources.llm("llm").getEndpoint());
    }
    if (input.question() != LARGE) {
      throw new NonRetryableException("only one is right");
    }
    Span span = tracer.spanBuilder("think").startSpan();
    try (Scope inside = span.makeCurrent()) {
      Map<String, Double> dimensions = new LinkedHashMap<>();
      dimensions.put("care", 3.0);
      dimensions.put("speed", 2.0);
      Rewards.emitReward(dimensions, "speed");
      assertTrue(inside != Scope.noop());
    } finally {
      span.end();
    }
    return resources.custom("weights", double[].class)[0];
  }

  @Test
  void rolloutsAreWorkedOnAndTheirSpansAndRewardsFound() throws Exception {
    try (RealServer server = RealServer.start(folder, MEMORY);
        LightningStore store = LightningStore.connect(server.address())) {
      Map<String, Resource> resources =
          Map.of(
              "llm", NewResource.proxyLlm("http://h/v1", "m"),
              "weights", NewResource.custom("weights", List.of(0.5)));
      String resourcesId = store.addResources(resources).getResourcesId();
      List<Rollout> rollouts = store.enqueue(List.of(question(LARGE), question(1)));
      Rollout.Builder change =
          Rollout.newBuilder().setRolloutId(rollouts.get(1).getRolloutId()).setPriority(7);
      assertEquals(
          7,
          store
              .updateRollout(UpdateRolloutRequest.newBuilder().setRollout(change).build())
              .getPriority());
      Runner runner = Runner.builder(store, Question.class, LifeTest::think).concurrency(2).build();
      CompletableFuture<Void> ended = runner.start();
      Map<String, RolloutStatus> outcomes = new LinkedHashMap<>();
      try (WaitStream waiting = waitForAll(store)) {
        waiting.forEachRemaining(one -> outcomes.put(one.getRolloutId(), one.getStatus()));
        assertEquals(List.of(), waiting.openRolloutIds());
      }
      String right = rollouts.get(0).getRolloutId();
      assertEquals(
          Map.of(
              right,
              RolloutStatus.ROLLOUT_STATUS_SUCCEEDED,
              rollouts.get(1).getRolloutId(),
              RolloutStatus.ROLLOUT_STATUS_FAILED),
          outcomes);
      checkSpans(store, right);
      assertEquals(resourcesId, store.getResources("").getResourcesId());
      assertEquals(2, store.updateResources(resourcesId, Map.of()).getVersion());
      LightningStoreException error =
          assertThrows(LightningStoreException.class, () -> store.getRollout("nobody"));
      assertEquals(Status.Code.NOT_FOUND, error.code());
      assertEquals("ERROR_REASON_ROLLOUT_NOT_FOUND", error.reason());
      runner.stop();
      Events.end(ended);
    }
  }

  private static void checkSpans(LightningStore store, String rolloutId) {
    try (SpanStream stream = store.querySpans(rolloutId, "latest");
        TripletStream triplets = store.listTriplets(List.of(rolloutId))) {
      List<StoredSpan> spans = stream.stream().toList();
      assertEquals(
          List.of(Rewards.ANNOTATION, "think", Rewards.ANNOTATION),
          spans.stream().map(StoredSpan::name).toList());
      assertEquals(List.of(1L, 2L, 3L), spans.stream().map(StoredSpan::sequenceId).toList());
      assertEquals(spans.get(1).span().getSpanId(), spans.get(0).span().getParentSpanId());
      assertEquals(OptionalDouble.of(0.5), Rewards.findFinalReward(spans));
      assertEquals(OptionalDouble.of(2), Rewards.findFinalReward(spans.subList(0, 2)));
      List<AttemptTriplets> attempts = triplets.stream().toList();
      assertEquals(1, attempts.size());
      assertEquals(rolloutId, attempts.get(0).getAttempt().getRolloutId());
      assertEquals(2, attempts.get(0).getUnmatchedRewardsCount());
    }
  }

  @Test
  void cancelledRolloutIsNotSucceeded() throws Exception {
    try (RealServer server = RealServer.start(folder, MEMORY);
        LightningStore store = LightningStore.connect(server.address())) {
      BlockingQueue<String> working = new LinkedBlockingQueue<>();
      CompletableFuture<Void> ended =
          Runner.builder(
                  store,
                  JsonElement.class,
                  (input, resources, tracer, context) -> {
                    working.add(context.attemptId());
                    context.cancellation().toFuture().get();
                    return 1.0;
                  })
              .maxRollouts(1)
              .heartbeatPeriod(Duration.ofMillis(100))
              .build()
              .start();
      String rolloutId = store.enqueue(List.of(question(1))).get(0).getRolloutId();
      String attemptId = next(working, "the agent");
      assertEquals(
          RolloutStatus.ROLLOUT_STATUS_CANCELLED,
          store.cancel(List.of(rolloutId)).get(0).getStatus());
      Events.end(ended);
      Rollout rollout = store.getRollout(rolloutId);
      assertEquals(RolloutStatus.ROLLOUT_STATUS_CANCELLED, rollout.getStatus());
      Attempt attempt = rollout.getLatestAttempt();
      assertEquals(attemptId, attempt.getAttemptId());
      assertEquals(AttemptStatus.ATTEMPT_STATUS_FAILED, attempt.getStatus());
      assertEquals("Cancelled", attempt.getFailure().getType());
    }
  }

  @Test
  void killedServerCostsNothing() throws Exception {
    String[] options = {
      "--port", RealServer.freePort(), "--backend", "sqlite", "--db", folder.resolve("db") + ""
    };
    BlockingQueue<Long> working = new LinkedBlockingQueue<>();
    BlockingQueue<Long> done = new LinkedBlockingQueue<>();
    CountDownLatch goOn = new CountDownLatch(1);
    Agent<Question> agent =
        (input, resources, tracer, context) -> {
          tracer.spanBuilder("before").startSpan().end();
          working.add(input.question());
          goOn.await();
          tracer.spanBuilder("after").startSpan().end();
          done.add(input.question());
          return input.question();
        };
    RealServer first = RealServer.start(folder, options);
    try (LightningStore store = LightningStore.connect(first.address())) {
      store.enqueue(IntStream.range(0, 12).mapToObj(LifeTest::question).toList());
      Runner runner = Runner.builder(store, Question.class, agent).concurrency(4).build();
      CompletableFuture<Void> ended = runner.start();
      for (int i = 0; i < 4; i++) {
        next(working, "the agents");
      }
      // Four work, their claims stored, their spans perhaps not.
      first.close();
      goOn.countDown();
      for (int i = 0; i < 4; i++) {
        next(done, "the agents' end"); // while the server is away
      }
      try (RealServer second = RealServer.start(folder, options);
          WaitStream waiting = waitForAll(store)) {
        assertEquals(first.address(), second.address());
        Set<OptionalDouble> rewards = new HashSet<>();
        waiting.forEachRemaining(rollout -> rewards.add(rewardOf(store, rollout)));
        assertEquals(12, rewards.size());
        runner.stop();
        Events.end(ended);
      }
    } finally {
      first.close();
    }
  }

  /** Checks that it took one attempt, whose spans are there, each once. */
  private static OptionalDouble rewardOf(LightningStore store, Rollout rollout) {
    assertEquals(RolloutStatus.ROLLOUT_STATUS_SUCCEEDED, rollout.getStatus());
    assertEquals(1, rollout.getAttemptCount());
    try (SpanStream stream = store.querySpans(rollout.getRolloutId(), "")) {
      List<StoredSpan> spans = stream.stream().toList();
      assertEquals(
          List.of("before", "after", Rewards.ANNOTATION),
          spans.stream().map(StoredSpan::name).toList());
      return Rewards.findFinalReward(spans);
    }
  }
}
