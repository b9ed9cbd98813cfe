package io.lightningstore.client;

import io.lightningstore.v1.Attempt;
import io.lightningstore.v1.AttemptRef;
import io.lightningstore.v1.Rollout;

/** What an agent knows of the attempt that it works on. */
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

  /** Returns which attempt at the rollout this is, from 1. */
  public int sequenceNumber() {
    return attempt().getSequenceNumber();
  }

  /** Returns the rollout as it was claimed. */
  public Rollout rollout() {
    return rollout;
  }

  /** Returns the claim that is being worked on. */
  public Attempt attempt() {
    return rollout.getLatestAttempt();
  }

  /** Returns the worker that claimed it. */
  public String workerId() {
    return workerId;
  }

  /** Returns what tells that the attempt is to stop. */
  public Cancellation cancellation() {
    return cancellation;
  }

  /** Takes the payloads out of the whole rollout; the attempt stays the one that was claimed. */
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
