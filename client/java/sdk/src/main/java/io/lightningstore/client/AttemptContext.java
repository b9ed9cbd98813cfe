package io.lightningstore.client;

import io.lightningstore.v1.Attempt;
import io.lightningstore.v1.AttemptRef;
import io.lightningstore.v1.Rollout;

/** The attempt that an agent works on. */
public final class AttemptContext {
  private volatile Rollout rollout;
  private final String workerId;
  private final Cancellation cancellation = new Cancellation();

  AttemptContext(Rollout rollout, String workerId) {
    this.rollout = rollout;
    this.workerId = workerId;
  }

  /** Returns the id of the rollout. */
  public String rolloutId() {
    return rollout.getRolloutId();
  }

  /** Returns the id of the attempt. */
  public String attemptId() {
    return attempt().getAttemptId();
  }

  /** Returns the position of the attempt among those of the rollout, counted from 1. */
  public int sequenceNumber() {
    return attempt().getSequenceNumber();
  }

  /** Returns the rollout as claimed. */
  public Rollout rollout() {
    return rollout;
  }

  /** Returns the claimed attempt. */
  public Attempt attempt() {
    return rollout.getLatestAttempt();
  }

  /** Returns the worker that claimed the attempt. */
  public String workerId() {
    return workerId;
  }

  /** Returns the cancellation of the attempt. */
  public Cancellation cancellation() {
    return cancellation;
  }

  /** Copies the payloads from the whole rollout; the attempt remains the claimed one. */
  void addPayloads(Rollout whole) {
    rollout =
        rollout.toBuilder()
            .setInputJson(whole.getInputJson())
            .setMetadataJson(whole.getMetadataJson())
            .clearPayloadsOmitted()
            .build();
  }

  AttemptRef ref() {
    return AttemptRef.newBuilder().setRolloutId(rolloutId()).setAttemptId(attemptId()).build();
  }

  @Override
  public String toString() {
    return "attempt " + attemptId() + " of rollout " + rolloutId();
  }
}
