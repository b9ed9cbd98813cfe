package io.lightningstore.client;

import io.lightningstore.v1.StopReason;
import java.time.Duration;
import java.util.Optional;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/** Tells an agent that its attempt is to stop. For any number of threads. */
public final class Cancellation {
  /** Unspecified where it is the runner that stops. */
  private final CompletableFuture<StopReason> told = new CompletableFuture<>();

  Cancellation() {}

  /** Tells whether the attempt is to stop. */
  public boolean isCancelled() {
    return told.isDone();
  }

  /**
   * Returns why, if the server said so. Empty while it goes on, and when it is the runner that
   * stops.
   */
  public Optional<StopReason> reason() {
    return Optional.of(told.getNow(StopReason.STOP_REASON_UNSPECIFIED))
        .filter(reason -> reason != StopReason.STOP_REASON_UNSPECIFIED);
  }

  /**
   * Ends the work of an attempt that is to stop. To be called often by agents that compute for
   * long.
   *
   * @throws CancellationException if it is to stop
   */
  public void throwIfCancelled() {
    if (isCancelled()) {
      throw new CancellationException(why());
    }
  }

  /**
   * Waits until the attempt is to stop.
   *
   * @return false if the time was over first
   * @throws InterruptedException if the thread was interrupted for another reason
   */
  public boolean await(Duration longest) throws InterruptedException {
    try {
      told.get(longest.toNanos(), TimeUnit.NANOSECONDS);
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
   * Returns a future that is completed when the attempt is to stop: with the reason, unspecified
   * when it is the runner that stops. What depends on it runs in the thread that says so, and
   * should be short.
   */
  public CompletableFuture<StopReason> toFuture() {
    return told.copy();
  }

  /** Why it is to stop, for people. */
  String why() {
    StopReason reason = told.getNow(StopReason.STOP_REASON_UNSPECIFIED);
    return switch (reason) {
      case STOP_REASON_UNSPECIFIED -> "the runner stops";
      case STOP_REASON_ROLLOUT_CANCELLED -> "the rollout was cancelled";
      case STOP_REASON_ROLLOUT_FINISHED -> "the rollout has finished";
      case STOP_REASON_SUPERSEDED -> "a newer attempt has taken over";
      case STOP_REASON_UNKNOWN_ATTEMPT -> "the server knows no such attempt";
      default -> "the server stops it: " + reason;
    };
  }

  /** Says it. What was said first holds. */
  void cancel(StopReason reason) {
    told.complete(reason);
  }
}
