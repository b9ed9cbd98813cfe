package io.lightningstore.client;

import static io.lightningstore.client.Events.end;
import static io.lightningstore.client.Events.next;
import static io.lightningstore.client.ScriptedServer.claimOf;
import static io.lightningstore.client.ScriptedServer.claims;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.gson.JsonElement;
import com.google.protobuf.Any;
import com.google.rpc.BadRequest;
import com.google.rpc.Code;
import io.grpc.protobuf.StatusProto;
import io.lightningstore.v1.Attempt;
import io.lightningstore.v1.AttemptStatus;
import io.lightningstore.v1.HeartbeatResponse;
import io.lightningstore.v1.Resources;
import io.lightningstore.v1.Rollout;
import io.lightningstore.v1.UpdateAttemptRequest;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;

/** What a runner claims and reports for training control. */
class ControlTest {
  private static final Duration OFTEN = Duration.ofMillis(50);

  private final ScriptedServer server = new ScriptedServer();
  private final LightningStore store = server.connect();

  @AfterEach
  void close() {
    store.close();
    server.close();
  }

  private RunnerBuilder<JsonElement> returning(Number reward) {
    return Runner.builder(store, JsonElement.class, (input, resources, tracer, context) -> reward);
  }

  @Test
  void claimsNameTheQueues() throws Exception {
    BlockingQueue<List<String>> asked = new LinkedBlockingQueue<>();
    server.onDequeue =
        request -> {
          asked.add(List.copyOf(request.getQueuesList()));
          return claims(claimOf("ro-1", "1"));
        };
    end(returning(null).queues("gpu", "").maxRollouts(1).build().start());
    assertEquals(List.of("gpu", ""), next(asked, "a claim"));
  }

  @Test
  void rewardIsInTheReport() throws Exception {
    server.queue.add(claimOf("ro-1", "1"));
    end(returning(0).maxRollouts(1).build().start());
    UpdateAttemptRequest update = next(server.updates, "an outcome");
    assertEquals(List.of("status", "reward"), update.getUpdateMask().getPathsList());
    assertTrue(update.getAttempt().hasReward());
    assertEquals(0, update.getAttempt().getReward());
    assertEquals(List.of("agentlightning.annotation"), server.storedSpans());
  }

  @Test
  void olderServerGetsReportsWithoutRewards() throws Exception {
    BlockingQueue<List<String>> masks = new LinkedBlockingQueue<>();
    server.onUpdate =
        request -> {
          List<String> mask = List.copyOf(request.getUpdateMask().getPathsList());
          masks.add(mask);
          if (mask.contains("reward")) {
            BadRequest.Builder details = BadRequest.newBuilder();
            details.addFieldViolationsBuilder().setField("update_mask.paths[1]");
            throw StatusProto.toStatusRuntimeException(
                com.google.rpc.Status.newBuilder()
                    .setCode(Code.INVALID_ARGUMENT_VALUE)
                    .addDetails(Any.pack(details.build()))
                    .build());
          }
        };
    try (Warnings warnings = new Warnings(Runner.class)) {
      server.queue.add(claimOf("ro-1", "1"));
      server.queue.add(claimOf("ro-2", "1"));
      end(returning(1).maxRollouts(2).build().start());
      assertEquals(1, warnings.with("knows no rewards").size());
    }
    for (int i = 0; i < 2; i++) {
      Attempt attempt = next(server.updates, "an outcome").getAttempt();
      assertEquals(AttemptStatus.ATTEMPT_STATUS_SUCCEEDED, attempt.getStatus());
      assertFalse(attempt.hasReward());
    }
    // Only the first report is repeated.
    assertEquals(
        List.of(List.of("status", "reward"), List.of("status"), List.of("status")),
        List.copyOf(masks));
    assertEquals(2, server.storedSpans().size());
  }

  private static Rollout using(int version) {
    Rollout.Builder rollout = claimOf("ro-1", "1").toBuilder();
    rollout.getLatestAttemptBuilder().setResourcesId("rs").setResourcesVersion(version);
    return rollout.build();
  }

  @Test
  void resourcesHaveTheVersionOfTheAttemptAndHeartbeatsTheirNumber() throws Exception {
    BlockingQueue<String> asked = new LinkedBlockingQueue<>();
    BlockingQueue<Long> numbers = new LinkedBlockingQueue<>();
    server.onGetResources =
        request -> {
          asked.add(request.getResourcesId() + " " + request.getVersion());
          return Resources.newBuilder()
              .setResourcesId("rs")
              .setVersion(request.getVersion())
              .setPublishNumber(40 + request.getVersion())
              .build();
        };
    server.onHeartbeat =
        request -> {
          numbers.add(request.getPublishNumber());
          return HeartbeatResponse.getDefaultInstance();
        };
    Runner runner = returning(null).heartbeatPeriod(OFTEN).build();
    var ended = runner.start();
    assertEquals(0, next(numbers, "a heartbeat"));
    for (int version : List.of(2, 3, 2)) {
      server.queue.add(using(version));
      next(server.updates, "an outcome");
      while (next(numbers, "the number") != 40 + version) { // also where they came from the cache
        continue;
      }
    }
    runner.stop();
    end(ended);
    assertEquals(List.of("rs 2", "rs 3"), List.copyOf(asked));
  }

  @Test
  void heartbeatsReportTheNumberOfTheOption() throws Exception {
    BlockingQueue<Long> numbers = new LinkedBlockingQueue<>();
    server.onHeartbeat =
        request -> {
          numbers.add(request.getPublishNumber());
          return HeartbeatResponse.getDefaultInstance();
        };
    AtomicInteger calls = new AtomicInteger();
    Runner runner =
        returning(null)
            .heartbeatPeriod(OFTEN)
            .publishNumber(
                () -> {
                  if (calls.incrementAndGet() == 2) {
                    throw new AssertionError("not loaded"); // costs this heartbeat only
                  }
                  return 40 + calls.get();
                })
            .build();
    var ended = runner.start();
    assertEquals(41, next(numbers, "a heartbeat"));
    assertEquals(43, next(numbers, "another"));
    runner.stop();
    end(ended);
  }
}
