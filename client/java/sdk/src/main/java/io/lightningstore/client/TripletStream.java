package io.lightningstore.client;

import io.lightningstore.v1.AttemptRef;
import io.lightningstore.v1.AttemptTriplets;
import io.lightningstore.v1.LightningStoreServiceGrpc.LightningStoreServiceBlockingStub;
import io.lightningstore.v1.ListTripletsRequest;
import io.lightningstore.v1.ListTripletsResponse;
import java.util.HashSet;
import java.util.Iterator;
import java.util.Queue;
import java.util.Set;

/**
 * The triplets of attempts, one complete message per attempt, in the order of the requested
 * rollouts.
 */
public final class TripletStream extends ResumingStream<ListTripletsResponse, AttemptTriplets> {
  private final ListTripletsRequest wanted;
  private final Set<AttemptRef> seen = new HashSet<>();

  /** The parts of the current attempt so far; they follow each other directly. */
  private AttemptTriplets.Builder parts = AttemptTriplets.newBuilder();

  TripletStream(LightningStore store, ListTripletsRequest wanted) {
    super(store);
    this.wanted = wanted;
  }

  @Override
  Iterator<ListTripletsResponse> ask(LightningStoreServiceBlockingStub stub) {
    parts = AttemptTriplets.newBuilder();
    return stub.listTriplets(
        wanted); // after a break again from the start: what was seen is passed over
  }

  @Override
  void take(ListTripletsResponse answer, Queue<AttemptTriplets> to) {
    for (AttemptTriplets part : answer.getAttemptsList()) {
      parts.mergeFrom(part);
      if (part.getComplete()) {
        AttemptTriplets whole = parts.build();
        parts = AttemptTriplets.newBuilder();
        if (seen.add(whole.getAttempt())) {
          to.add(whole);
        }
      }
    }
  }

  @Override
  boolean isComplete() {
    return false; // only the end of the stream says so
  }

  @Override
  boolean mayEndAnywhere() {
    return true;
  }
}
