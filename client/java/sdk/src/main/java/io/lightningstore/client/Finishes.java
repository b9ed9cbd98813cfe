package io.lightningstore.client;

import io.grpc.Context;
import io.grpc.Context.CancellableContext;
import io.grpc.Status;
import io.grpc.stub.StreamObserver;
import io.lightningstore.v1.AttemptRef;
import io.lightningstore.v1.Rollout;
import io.lightningstore.v1.WaitForRolloutsRequest;
import io.lightningstore.v1.WaitForRolloutsResponse;
import java.time.Duration;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import java.util.logging.Level;
import java.util.logging.Logger;

/**
 * Notices within a second that a rollout a runner works on has finished: cancelled, for instance.
 *
 * <p>Heartbeats say which attempts to stop, but are sent every 10 seconds. More of them would cost
 * the server a call per second for each worker. So one WaitForRollouts stream, on which nothing is
 * sent until something happens, covers the rollouts that the runner works on. Rollouts shorter than
 * the delay never cause a call. A stream is replaced when a rollout that it does not cover gets
 * older than the delay, and then covers all of them.
 */
final class Finishes {
  private static final Logger logger = Logger.getLogger(Finishes.class.getName());

  /** Time after a claim until its rollout is watched. A finish before that is noticed then. */
  static final Duration DELAY = Duration.ofMillis(500);

  /**
   * Time without a stream after a failure that is not retryable, and maximum time after others.
   * Heartbeats still say what to stop.
   */
  static final Duration PAUSE = Duration.ofSeconds(10);

  private final LightningStore store;
  private final Runnable onFinish;
  private final Duration delay;
  private final Duration pause;
  private final Thread thread = new Thread(this::run, "lightningstore-finishes");

  private final Object changed = new Object();

  /** When each attempt is old enough to be watched, as System.nanoTime says. */
  private final Map<AttemptRef, Long> due = new HashMap<>();

  private final Set<AttemptRef> covered = new HashSet<>();
  private final Backoff backoff;
  private long pausedUntil = System.nanoTime();
  private Stream stream;
  private boolean stopped;

  /**
   * Creates a watch of nothing.
   *
   * @param onFinish called in another thread when a rollout has finished that is still worked on
   */
  Finishes(LightningStore store, Runnable onFinish) {
    this(store, onFinish, DELAY, PAUSE);
  }

  Finishes(LightningStore store, Runnable onFinish, Duration delay, Duration pause) {
    this.store = store;
    this.onFinish = onFinish;
    this.delay = delay;
    this.pause = pause;
    backoff = new Backoff(pause);
    thread.setDaemon(true);
  }

  void start() {
    thread.start();
  }

  /** Ends the stream and the thread. */
  void stop() {
    synchronized (changed) {
      stopped = true;
      end();
      changed.notifyAll();
    }
  }

  /** Watches a claim after the delay. */
  void add(AttemptContext context) {
    synchronized (changed) {
      boolean isWaiting = due.size() > covered.size();
      due.put(context.ref(), System.nanoTime() + delay.toNanos());
      if (!isWaiting) { // otherwise the thread waits for an attempt that is due earlier
        changed.notifyAll();
      }
    }
  }

  /** Watches an attempt no longer. The stream stays open while it covers others. */
  void remove(AttemptContext context) {
    synchronized (changed) {
      due.remove(context.ref());
      if (covered.remove(context.ref()) && covered.isEmpty()) {
        end();
      }
    }
  }

  private void run() {
    try {
      synchronized (changed) {
        while (!stopped) {
          long wait = untilNext();
          if (wait > 0) {
            TimeUnit.NANOSECONDS.timedWait(changed, wait);
          } else {
            open();
          }
        }
      }
    } catch (InterruptedException interrupted) {
      logger.log(Level.FINE, "finishes are no longer watched");
    }
  }

  /** Returns the nanoseconds until another stream is needed; the maximum if none is. */
  private long untilNext() {
    long now = System.nanoTime();
    return due.entrySet().stream()
        .filter(entry -> !covered.contains(entry.getKey()))
        .mapToLong(entry -> Math.max(entry.getValue() - now, pausedUntil - now))
        .min()
        .orElse(Long.MAX_VALUE);
  }

  /** Opens a stream that covers all attempts, instead of the current one. */
  private void open() {
    end();
    covered.addAll(due.keySet());
    Set<String> rolloutIds = new HashSet<>();
    due.keySet().forEach(ref -> rolloutIds.add(ref.getRolloutId()));
    WaitForRolloutsRequest request =
        WaitForRolloutsRequest.newBuilder().addAllRolloutIds(rolloutIds).build();
    Stream opened = new Stream();
    stream = opened;
    opened.call.run(() -> store.asyncStub().waitForRollouts(request, opened));
  }

  private void end() {
    if (stream != null) {
      stream.call.cancel(null);
      stream = null;
    }
  }

  /** Reports a finish, unless the agent has returned: then the runner itself has ended it. */
  private void finished(Rollout rollout) {
    synchronized (changed) {
      String rolloutId = rollout.getRolloutId();
      if (stopped || due.keySet().stream().noneMatch(ref -> ref.getRolloutId().equals(rolloutId))) {
        return;
      }
    }
    onFinish.run();
  }

  /** Opens another stream after a pause, unless the failed one has been replaced. */
  private void failed(Stream failed, LightningStoreException error) {
    synchronized (changed) {
      if (stream != failed) {
        return;
      }
      end();
      if (System.nanoTime() - failed.began > pause.toNanos()) {
        backoff.reset(); // the stream was up in between
      }
      Duration length = error.isRetryable() ? backoff.after(error) : pause;
      logger.log(
          Level.FINE,
          "finishes are not watched for {0}: {1}",
          new Object[] {length, error.getMessage()});
      covered.clear();
      pausedUntil = System.nanoTime() + length.toNanos();
      changed.notifyAll();
    }
  }

  /** One call. Its end is a failure unless the summary has arrived. */
  private final class Stream implements StreamObserver<WaitForRolloutsResponse> {
    private final CancellableContext call = Context.ROOT.withCancellation();
    private final long began = System.nanoTime();
    private boolean complete;

    @Override
    public void onNext(WaitForRolloutsResponse answer) {
      answer.getRolloutsList().forEach(Finishes.this::finished);
      complete |= answer.hasSummary();
    }

    @Override
    public void onError(Throwable error) {
      failed(this, LightningStoreException.from(error));
    }

    @Override
    public void onCompleted() {
      if (!complete) {
        failed(this, LightningStoreException.of(Status.Code.UNAVAILABLE, "the stream ended early"));
      }
    }
  }
}
