package io.lightningstore.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertSame;
import static org.junit.jupiter.api.Assertions.assertThrows;

import com.google.protobuf.ByteString;
import io.grpc.Status;
import io.lightningstore.v1.Attempt;
import io.lightningstore.v1.AttemptRef;
import io.lightningstore.v1.CancelRolloutsRequest;
import io.lightningstore.v1.EnqueueRolloutsRequest;
import io.lightningstore.v1.Failure;
import io.lightningstore.v1.HeartbeatRequest;
import io.lightningstore.v1.RolloutSpec;
import io.lightningstore.v1.UpdateAttemptRequest;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;

class TextsTest {
  private static final String HALF = "\ud83d";

  @Test
  void halvesOfSurrogatePairsAreReplaced() {
    assertEquals("a\ufffd", Texts.valid("a" + HALF));
    assertEquals("\ufffda\ufffd🙂", Texts.valid("\ude42a" + HALF + "🙂"));
    String whole = "é🙂";
    assertSame(whole, Texts.valid(whole));
  }

  @Test
  void textsAreCutToBytesBetweenCharacters() {
    assertEquals("aé", Texts.shorten("aé🙂", 6));
    assertEquals("aé🙂", Texts.shorten("aé🙂", 7));
    String cut = Texts.shorten("é".repeat(100_000) + HALF, 1001);
    assertEquals(1000, cut.getBytes(StandardCharsets.UTF_8).length);
  }

  private void checkRefused(String field, Runnable call) {
    LightningStoreException error = assertThrows(LightningStoreException.class, call::run);
    assertEquals(Status.Code.INVALID_ARGUMENT, error.code());
    assertEquals(
        List.of(field),
        error.fieldViolations().stream()
            .map(LightningStoreException.FieldViolation::field)
            .toList());
  }

  @Test
  void idsThatAreNotValidAreRefusedBeforeTheyAreSent() {
    try (ScriptedServer server = new ScriptedServer();
        LightningStore store = server.connect()) {
      RolloutSpec good = RolloutSpec.newBuilder().setRolloutId("ro-1").build();
      RolloutSpec bad = good.toBuilder().setGroupId("g" + HALF).build();
      checkRefused("rollouts[1].group_id", () -> store.enqueue(List.of(good, bad)));
      checkRefused("rollout_ids[0]", () -> store.cancel(List.of(HALF)));
      checkRefused("resources_id", () -> store.updateResources(HALF, Map.of()));
      checkRefused(
          "resources[0].key",
          () -> store.addResources(Map.of(HALF, NewResource.llm("http://h", "m"))));
      HeartbeatRequest beat =
          HeartbeatRequest.newBuilder()
              .addAttempts(AttemptRef.newBuilder().setAttemptId(HALF))
              .build();
      checkRefused("attempts[0].attempt_id", () -> store.call(stub -> stub.heartbeat(beat)));
      assertEquals(List.of(), server.notes);
    }
  }

  @Test
  void textThatIsNoIdIsLetThrough() {
    Attempt failed =
        Attempt.newBuilder()
            .setRolloutId("ro-1")
            .setFailure(Failure.newBuilder().setMessage(HALF))
            .build();
    Texts.checkIds(UpdateAttemptRequest.newBuilder().setAttempt(failed).build());
    Texts.checkIds(
        EnqueueRolloutsRequest.newBuilder()
            .addRollouts(RolloutSpec.newBuilder().setInputJson(ByteString.copyFromUtf8("1")))
            .build());
    Texts.checkIds(CancelRolloutsRequest.getDefaultInstance());
  }
}
