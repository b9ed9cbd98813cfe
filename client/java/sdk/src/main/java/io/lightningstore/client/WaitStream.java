package io.lightningstore.client;

import io.lightningstore.v1.LightningStoreServiceGrpc.LightningStoreServiceBlockingStub;
import io.lightningstore.v1.Rollout;
import io.lightningstore.v1.WaitForRolloutsRequest;
import io.lightningstore.v1.WaitForRolloutsResponse;
import io.lightningstore.v1.WaitSummary;
import java.time.Duration;
import java.util.HashSet;
import java.util.Iterator;
import java.util.List;
import java.util.Queue;
import java.util.Set;

/**
 * Rollouts as they finish, each once, starting with those that have already finished. It ends when
 * all of them, or the request's min_count, have finished, or after its timeout.
 */
public final class WaitStream extends ResumingStream<WaitForRolloutsResponse, Rollout> {
  private final WaitForRolloutsRequest wanted;
  private final Set<String> seen = new HashSet<>();
  private final long began = System.nanoTime();
  private WaitSummary summary;

  WaitStream(LightningStore store, WaitForRolloutsRequest wanted) {
    super(store);
    this.wanted = wanted;
  }

  /** Returns the ids of the rollouts that had not finished when the wait ended; empty before. */
  public List<String> openRolloutIds() {
    return summary == null ? List.of() : summary.getOpenRolloutIdsList();
  }

  @Override
  Iterator<WaitForRolloutsResponse> ask(LightningStoreServiceBlockingStub stub) {
    WaitForRolloutsRequest.Builder request = wanted.toBuilder();
    // Only the server knows which rollouts are in a group, so with groups the request is unchanged.
    if (!seen.isEmpty() && wanted.getGroupIdsCount() == 0) {
      List<String> missing =
          wanted.getRolloutIdsList().stream().filter(id -> !seen.contains(id)).toList();
      int enough = wanted.hasMinCount() ? wanted.getMinCount() : Integer.MAX_VALUE;
      if (missing.isEmpty() || seen.size() >= enough) {
        summary = summaryOf(missing);
        return null;
      }
      request.clearRolloutIds().addAllRolloutIds(missing);
      if (wanted.hasMinCount()) {
        request.setMinCount(enough - seen.size());
      }
    }
    if (wanted.hasTimeout()) {
      Duration left = Protos.toJava(wanted.getTimeout()).minusNanos(System.nanoTime() - began);
      request.setTimeout(Protos.fromJava(left.isNegative() ? Duration.ZERO : left));
    }
    return stub.waitForRollouts(request.build());
  }

  private WaitSummary summaryOf(List<String> missing) {
    return WaitSummary.newBuilder()
        .setFinishedCount(seen.size())
        .setOpenCount(missing.size())
        .addAllOpenRolloutIds(missing)
        .build();
  }

  @Override
  void take(WaitForRolloutsResponse answer, Queue<Rollout> to) {
    for (Rollout rollout : answer.getRolloutsList()) {
      if (seen.add(rollout.getRolloutId())) {
        to.add(rollout);
      }
    }
    if (answer.hasSummary()) {
      summary = answer.getSummary();
    }
  }

  @Override
  boolean isComplete() {
    return summary != null;
  }

  @Override
  boolean mayEndAnywhere() {
    return false; // the summary comes last
  }
}
