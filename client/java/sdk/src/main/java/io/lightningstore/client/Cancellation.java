package io.lightningstore.client;

import io.lightningstore.v1.StopReason;
import java.time.Duration;
import java.util.Optional;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/** The cancellation of an attempt. Thread-safe. */
public final class Cancellation {
  /** Unspecified if the runner itself is stopping. */
  private final CompletableFuture<StopReason> told = new CompletableFuture<>();

  Cancellation() {}

  /** Returns whether the attempt must stop. */
  public boolean isCancelled() {
    return told.isDone();
  }

  /**
   * Returns the server's reason. Empty while the attempt continues, and if the runner itself is
   * stopping.
   */
  public Optional<StopReason> reason() {
    return Optional.of(told.getNow(StopReason.STOP_REASON_UNSPECIFIED))
        .filter(reason -> reason != StopReason.STOP_REASON_UNSPECIFIED);
  }

  /**
   * Throws an exception if the attempt must stop. Agents with long computations should call it
   * often.
   *
   * @throws CancellationException if the attempt must stop
   */
  public void throwIfCancelled() {
    if (isCancelled()) {
      throw new CancellationException(why());
    }
  }

  /**
   * Waits until the attempt must stop.
   *
   * @return false if the time was over first
   * @throws InterruptedException if the thread was interrupted for another reason
   */
  public boolean await(Duration timeout) throws InterruptedException {
    try {
      told.get(timeout.toNanos(), TimeUnit.NANOSECONDS);
      return true;
    } catch (TimeoutException over) {
      return false;
    } catch (ExecutionException impossible) {
      throw new IllegalStateException(impossible);
    } catch (InterruptedException interrupted) {
      if (!isCancelled()) {
        throw interrupted;
      }
      Thread.currentThread().interrupt(); // the runner's interrupt says the same
      return true;
    }
  }

  /**
   * Returns a future that completes when the attempt must stop, with the reason, which is
   * unspecified if the runner itself is stopping. Dependent actions run in the thread that requests
   * the stop and should be short.
   */
  public CompletableFuture<StopReason> toFuture() {
    return told.copy();
  }

  /** Returns the reason for people. */
  String why() {
    StopReason reason = told.getNow(StopReason.STOP_REASON_UNSPECIFIED);
    return switch (reason) {
      case STOP_REASON_UNSPECIFIED -> "the runner is stopping";
      case STOP_REASON_ROLLOUT_CANCELLED -> "the rollout was cancelled";
      case STOP_REASON_ROLLOUT_FINISHED -> "the rollout has finished";
      case STOP_REASON_SUPERSEDED -> "a newer attempt has replaced this one";
      case STOP_REASON_UNKNOWN_ATTEMPT -> "the server has no such attempt";
      default -> "stopped by the server: " + reason;
    };
  }

  /** Requests the stop. Only the first reason is kept. */
  void cancel(StopReason reason) {
    told.complete(reason);
  }
}
