package io.lightningstore.client;

import com.google.protobuf.ByteString;
import io.lightningstore.v1.AttemptRef;
import io.lightningstore.v1.AttemptTriplets;
import io.lightningstore.v1.ListTripletsResponse;
import io.lightningstore.v1.QuerySpansResponse;
import io.lightningstore.v1.Rollout;
import io.lightningstore.v1.SpanBatch;
import io.lightningstore.v1.Stop;
import io.lightningstore.v1.StopReason;
import io.lightningstore.v1.Triplet;
import io.lightningstore.v1.WaitForRolloutsResponse;
import io.lightningstore.v1.WaitSummary;
import io.opentelemetry.proto.trace.v1.Span;
import java.util.Collections;
import java.util.List;

/** What scripted servers answer. */
final class Answers {
  private Answers() {}

  static WaitForRolloutsResponse finished(String rolloutId) {
    return WaitForRolloutsResponse.newBuilder()
        .addRollouts(Rollout.newBuilder().setRolloutId(rolloutId))
        .build();
  }

  static WaitForRolloutsResponse waitEnded(List<String> open) {
    return WaitForRolloutsResponse.newBuilder()
        .setSummary(WaitSummary.newBuilder().addAllOpenRolloutIds(open))
        .build();
  }

  static QuerySpansResponse spanOf(String attemptId, int id) {
    ByteString spanId = ByteString.copyFrom(new byte[] {1, 1, 1, 1, 1, 1, 1, (byte) id});
    return QuerySpansResponse.newBuilder()
        .addBatches(
            SpanBatch.newBuilder()
                .setAttemptId(attemptId)
                .addSpans(Span.newBuilder().setSpanId(spanId))
                .addSequenceIds(id))
        .build();
  }

  static ListTripletsResponse tripletsOf(String attemptId, int count, boolean complete) {
    return ListTripletsResponse.newBuilder()
        .addAttempts(
            AttemptTriplets.newBuilder()
                .setAttempt(AttemptRef.newBuilder().setRolloutId("ro-1").setAttemptId(attemptId))
                .addAllTriplets(Collections.nCopies(count, Triplet.getDefaultInstance()))
                .setComplete(complete))
        .build();
  }

  static Stop superseded(String rolloutId) {
    return Stop.newBuilder()
        .setAttempt(AttemptRef.newBuilder().setRolloutId(rolloutId).setAttemptId("at-1"))
        .setReason(StopReason.STOP_REASON_SUPERSEDED)
        .build();
  }
}
