package io.lightningstore.client;

import com.google.common.util.concurrent.ListenableFuture;
import io.grpc.Status;
import io.lightningstore.v1.DequeueRolloutsRequest;
import io.lightningstore.v1.DequeueRolloutsResponse;
import io.lightningstore.v1.Rollout;
import io.lightningstore.v1.RolloutMode;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.CancellationException;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.logging.Level;
import java.util.logging.Logger;

/**
 * Claims rollouts for a worker without losing claims: a claim whose response was lost is recovered
 * by its request id, so the same request is repeated unchanged until it is answered.
 */
final class Claims {
  private static final Logger logger = Logger.getLogger(Runner.class.getName());

  /** Maximum number of rollouts that one call claims. */
  private static final int MAX_CLAIMS = 1_000;

  private static final Duration WAIT = Duration.ofSeconds(20);
  private static final Duration LONGEST_PAUSE = Duration.ofSeconds(5);

  /** Additional time after which a long poll is cancelled and repeated. */
  private static final Duration MARGIN = Duration.ofSeconds(10);

  /** Time limit for asking what a poll had claimed when it was interrupted. */
  private static final Duration LAST_ANSWER = Duration.ofMillis(600);

  private static final int LAST_TRIES = 3;

  private final LightningStore store;
  private final DequeueRolloutsRequest template;
  private final Object changed = new Object();
  private ListenableFuture<DequeueRolloutsResponse> poll;

  /** Request of a poll that has not been answered. Used only by the thread that claims. */
  private DequeueRolloutsRequest unanswered;

  private boolean stopped;

  Claims(LightningStore store, String workerId, List<RolloutMode> modes, List<String> queues) {
    this.store = store;
    template =
        DequeueRolloutsRequest.newBuilder()
            .setWorkerId(workerId)
            .addAllModes(modes)
            .addAllQueues(queues)
            .setWait(Protos.fromJava(WAIT))
            .build();
  }

  /** Interrupts the current poll and claims no more. Thread-safe. */
  void stop() {
    synchronized (changed) {
      stopped = true;
      if (poll != null) {
        poll.cancel(true);
      }
      changed.notifyAll();
    }
  }

  /**
   * Returns up to {@code limit} claims, or none when the wait is over or after {@link #stop}.
   *
   * @throws LightningStoreException for errors that are not retryable
   */
  List<Rollout> claim(int limit) throws InterruptedException {
    DequeueRolloutsRequest request =
        template.toBuilder()
            .setLimit(Math.min(limit, MAX_CLAIMS))
            .setRequestId(CallInterceptor.newRequestId())
            .build();
    Backoff backoff = new Backoff(LONGEST_PAUSE);
    while (!isStopped()) {
      try {
        return ask(request, WAIT.plus(MARGIN), false);
      } catch (LightningStoreException error) {
        if (isStopped()) {
          break;
        }
        if (!error.isRetryable()) {
          throw error;
        }
        if (backoff.isFresh()) {
          logger.log(Level.WARNING, "claim failed, retrying: {0}", error.getMessage());
        }
        pause(backoff.after(error));
      }
    }
    return rescue();
  }

  /** Returns what an interrupted poll had claimed. */
  List<Rollout> rescue() {
    LightningStoreException failure = null;
    for (int i = 0; i < LAST_TRIES && unanswered != null; i++) {
      try {
        return ask(unanswered, LAST_ANSWER, true);
      } catch (LightningStoreException error) {
        failure = error;
      } catch (InterruptedException interrupted) {
        Thread.currentThread().interrupt();
        break;
      }
    }
    if (unanswered != null) {
      logger.log(Level.WARNING, "stopping; the result of the last poll is not known", failure);
    }
    return List.of();
  }

  private List<Rollout> ask(DequeueRolloutsRequest request, Duration deadline, boolean last)
      throws InterruptedException {
    ListenableFuture<DequeueRolloutsResponse> asked;
    synchronized (changed) {
      if (stopped && !last) {
        throw LightningStoreException.of(Status.Code.CANCELLED, "stopped");
      }
      unanswered = request;
      asked =
          store
              .futureStub()
              .withDeadlineAfter(deadline.toNanos(), TimeUnit.NANOSECONDS)
              .dequeueRollouts(request);
      poll = asked;
    }
    try {
      List<Rollout> claimed = asked.get().getRolloutsList();
      unanswered = null;
      return claimed;
    } catch (CancellationException cancelled) {
      throw LightningStoreException.of(Status.Code.CANCELLED, "stopped");
    } catch (ExecutionException error) {
      throw LightningStoreException.from(error.getCause());
    } catch (InterruptedException interrupted) {
      asked.cancel(true);
      throw interrupted;
    } finally {
      synchronized (changed) {
        poll = null;
      }
    }
  }

  private boolean isStopped() {
    synchronized (changed) {
      return stopped;
    }
  }

  private void pause(Duration length) throws InterruptedException {
    long until = System.nanoTime() + length.toNanos();
    synchronized (changed) {
      while (!stopped && until - System.nanoTime() > 0) {
        TimeUnit.NANOSECONDS.timedWait(changed, until - System.nanoTime());
      }
    }
  }
}
