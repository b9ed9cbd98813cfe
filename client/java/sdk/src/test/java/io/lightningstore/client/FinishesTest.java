package io.lightningstore.client;

import static io.lightningstore.client.Events.end;
import static io.lightningstore.client.Events.next;
import static io.lightningstore.client.ScriptedServer.claimOf;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.gson.JsonElement;
import io.grpc.Status;
import io.lightningstore.client.ScriptedServer.Wait;
import io.lightningstore.v1.HeartbeatResponse;
import io.lightningstore.v1.StopReason;
import io.lightningstore.v1.WaitForRolloutsResponse;
import java.time.Duration;
import java.util.List;
import java.util.Set;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.atomic.AtomicBoolean;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;

class FinishesTest {
  private static final Duration SOON = Duration.ofMillis(1);
  private static final Duration NEVER = Duration.ofHours(1);

  private final ScriptedServer server = new ScriptedServer();
  private final LightningStore store = server.connect();
  private final BlockingQueue<String> finishes = new LinkedBlockingQueue<>();

  @AfterEach
  void close() {
    store.close();
    server.close();
  }

  private Finishes watch(Duration delay, Duration pause) {
    Finishes watch = new Finishes(store, () -> finishes.add("finish"), delay, pause);
    watch.start();
    return watch;
  }

  private static AttemptContext attempt(String rolloutId) {
    return new AttemptContext(claimOf(rolloutId, "1"), "w");
  }

  private Wait nextWait() throws InterruptedException {
    return next(server.waits, "a wait");
  }

  @Test
  void cancelledRolloutStopsItsAgentWithoutWaitingForAHeartbeatToBeDue() throws Exception {
    AtomicBoolean cancelled = new AtomicBoolean();
    server.onHeartbeat =
        request ->
            HeartbeatResponse.newBuilder()
                .addAllStops(
                    request.getAttemptsList().stream()
                        .filter(one -> cancelled.get())
                        .map(one -> Answers.superseded(one.getRolloutId()))
                        .toList())
                .build();
    BlockingQueue<StopReason> reasons = new LinkedBlockingQueue<>();
    Agent<JsonElement> agent =
        (input, resources, tracer, context) -> {
          context.cancellation().await(Duration.ofSeconds(Events.PATIENCE_SECONDS));
          reasons.add(context.cancellation().reason().orElseThrow());
          return null;
        };
    Runner.builder(store, JsonElement.class, agent)
        .maxRollouts(1)
        .heartbeatPeriod(NEVER)
        .build()
        .start();
    server.queue.add(claimOf("ro-1", "1"));
    Wait wait = nextWait();
    assertEquals(Set.of("ro-1"), wait.rolloutIds());
    cancelled.set(true);
    wait.stream().onNext(Answers.finished("ro-1"));
    assertEquals(StopReason.STOP_REASON_SUPERSEDED, next(reasons, "the cancellation"));
    assertEquals(
        "Cancelled", next(server.updates, "an outcome").getAttempt().getFailure().getType());
  }

  @Test
  void delayLeavesTimeForASecond() {
    assertTrue(Finishes.DELAY.compareTo(Duration.ofMillis(500)) <= 0);
  }

  @Test
  void oneStreamCoversAllRollouts() throws Exception {
    Finishes watch = watch(SOON, NEVER);
    watch.add(attempt("ro-1"));
    Wait first = nextWait();
    assertEquals(Set.of("ro-1"), first.rolloutIds());
    watch.add(attempt("ro-2"));
    Wait both = nextWait();
    assertEquals(Set.of("ro-1", "ro-2"), both.rolloutIds());
    end(first.cancelled());
    both.stream().onNext(Answers.finished("ro-1"));
    next(finishes, "the finish of the first");
    watch.stop();
  }

  @Test
  void streamEndsWithTheLastAttemptThatItCovers() throws Exception {
    Finishes watch = watch(SOON, NEVER);
    AttemptContext attempt = attempt("ro-1");
    watch.add(attempt);
    Wait wait = nextWait();
    watch.remove(attempt);
    end(wait.cancelled());
    watch.stop();
  }

  @Test
  void streamEndsWithTheRunner() throws Exception {
    Finishes watch = watch(SOON, NEVER);
    watch.add(attempt("ro-1"));
    Wait wait = nextWait();
    watch.stop();
    end(wait.cancelled());
  }

  @Test
  void brokenStreamIsRenewed() throws Exception {
    Finishes watch = watch(SOON, Duration.ofSeconds(1));
    watch.add(attempt("ro-1"));
    Wait broken = nextWait();
    broken.stream().onNext(WaitForRolloutsResponse.getDefaultInstance());
    broken.stream().onError(Status.UNAVAILABLE.asRuntimeException());
    nextWait().stream().onCompleted(); // without the summary, which comes last
    nextWait().stream().onNext(Answers.finished("ro-1"));
    next(finishes, "the finish");
    watch.stop();
  }

  @Test
  void serverWithoutTheCallIsAskedAgainAfterThePauseWithoutWarnings() throws Exception {
    Duration pause = Duration.ofMillis(200);
    try (Warnings warnings = new Warnings(Finishes.class)) {
      Finishes watch = watch(SOON, pause);
      watch.add(attempt("ro-1"));
      Wait wait = nextWait();
      for (int i = 0; i < 2; i++) {
        long failed = System.nanoTime();
        wait.stream().onError(Status.UNIMPLEMENTED.asRuntimeException());
        wait = nextWait();
        assertTrue(System.nanoTime() - failed >= pause.toNanos(), "the pause is kept");
      }
      watch.stop();
      assertEquals(List.of(), warnings.with("watched"));
    }
  }

  @Test
  void attemptsYoungerThanTheDelayOpenNoStream() throws Exception {
    Finishes watch = watch(NEVER, NEVER);
    watch.add(attempt("ro-1"));
    Finishes other = watch(SOON, NEVER);
    other.add(attempt("ro-2"));
    assertEquals(Set.of("ro-2"), nextWait().rolloutIds());
    watch.stop();
    other.stop();
  }

  @Test
  void finishByTheRunnersOwnReportIsIgnored() throws Exception {
    Finishes watch = watch(SOON, NEVER);
    AttemptContext reported = attempt("ro-1");
    watch.add(reported);
    nextWait();
    watch.add(attempt("ro-2"));
    Wait both = nextWait();
    watch.remove(reported);
    both.stream().onNext(Answers.finished("ro-1"));
    both.stream().onNext(Answers.finished("ro-2"));
    next(finishes, "the finish of the other");
    assertTrue(finishes.isEmpty());
    watch.stop();
  }
}
