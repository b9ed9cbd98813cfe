package io.lightningstore.client;

import io.lightningstore.v1.AttemptRef;
import io.lightningstore.v1.Rollout;
import io.lightningstore.v1.Stop;
import io.lightningstore.v1.StopReason;
import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.logging.Level;
import java.util.logging.Logger;

/**
 * Claims rollouts and runs an {@link Agent} on each, several at a time.
 *
 * <p>A separate thread sends heartbeats, and spans are stored before an outcome is reported. While
 * the server is down, the runner continues, keeps its spans, and reports when the server is back. A
 * claim whose response was lost is requested again and returned.
 *
 * <p>A runner runs once.
 */
public final class Runner {
  private static final Logger logger = Logger.getLogger(Runner.class.getName());
  private static final int BUFFER_BYTES = 64 << 20;

  /** Time for cancelled agents to return. */
  private static final Duration GRACE = Duration.ofSeconds(5);

  private final String workerId;
  private final int concurrency;
  private final Claims claims;
  private final Heartbeats heartbeats;
  private final Finishes finishes;
  private final LightningStoreSpanExporter exporter;
  private final AttemptWork<?> work;
  private final ExecutorService threads;

  private final Object changed = new Object();
  private final Map<AttemptRef, Execution> running = new LinkedHashMap<>();
  private long left;
  private long finished;
  private int stops;
  private boolean begun;
  private long cancelledAt;

  <I> Runner(RunnerBuilder<I> options) {
    workerId = options.workerId;
    concurrency = options.concurrency;
    left = options.maxRollouts;
    exporter = LightningStoreSpanExporter.create(options.store, BUFFER_BYTES, this::pass);
    claims = new Claims(options.store, workerId, options.modes, options.queues);
    work =
        new AttemptWork<>(
            options.store, options.inputType, options.agent, exporter, options.outage);
    heartbeats =
        new Heartbeats(
            options.store,
            workerId,
            options.heartbeatPeriod,
            this::pass,
            this::statistics,
            options.publishNumber == null ? work::publishNumber : options.publishNumber);
    finishes = new Finishes(options.store, heartbeats::hurry);
    threads =
        Executors.newCachedThreadPool(
            task -> {
              Thread thread = new Thread(task, "lightningstore-attempt");
              thread.setDaemon(true);
              return thread;
            });
  }

  /**
   * Returns a builder with the options of a runner.
   *
   * @param store store of the rollouts; the caller closes it, after the runner has ended
   * @param inputType type that inputs are decoded to, for example a record or {@code
   *     com.google.gson.JsonElement}
   * @param agent agent that works on each rollout
   */
  public static <I> RunnerBuilder<I> builder(
      LightningStore store, Class<I> inputType, Agent<I> agent) {
    return new RunnerBuilder<>(store, inputType, agent);
  }

  /** Returns the id of the worker. */
  public String workerId() {
    return workerId;
  }

  /**
   * Works until {@link #stop} is called, or the maximum number of rollouts is done. An interrupt
   * cancels the running agents; the interrupt status is set again when the method returns.
   *
   * @throws LightningStoreException for an error that is not retryable, after the running agents
   *     have finished
   * @throws IllegalStateException if it has run before
   */
  public void run() {
    synchronized (changed) {
      if (begun) {
        throw new IllegalStateException("a runner can run only once");
      }
      begun = true;
    }
    heartbeats.start();
    finishes.start();
    boolean interrupted = false;
    try {
      claimAndStart();
    } catch (InterruptedException cancelled) {
      interrupted = true;
      stop();
      stop();
      claims.rescue().forEach(this::start);
    } finally {
      interrupted |= finish();
      finishes.stop();
      heartbeats.stop();
      claims.stop();
      exporter.close();
      threads.shutdown();
      if (interrupted) {
        Thread.currentThread().interrupt();
      }
    }
  }

  /**
   * Runs like {@link #run}, in a separate thread. The future completes with it; cancelling the
   * future cancels the running agents.
   */
  public CompletableFuture<Void> start() {
    CompletableFuture<Void> ended =
        CompletableFuture.runAsync(
            this::run, task -> new Thread(task, "lightningstore-runner").start());
    ended.whenComplete(
        (nothing, error) -> {
          if (ended.isCancelled()) {
            stop();
            stop();
          }
        });
    return ended;
  }

  /**
   * Runs like {@link #run}, and shuts down cleanly on SIGTERM or Ctrl-C: running agents may finish,
   * and are cancelled when {@code patience} is over.
   */
  public void runUntilShutdown(Duration patience) {
    CountDownLatch over = new CountDownLatch(1);
    Thread hook = new Thread(() -> stopAtExit(over, patience), "lightningstore-exit");
    Runtime.getRuntime().addShutdownHook(hook);
    try {
      run();
    } finally {
      over.countDown();
      try {
        Runtime.getRuntime().removeShutdownHook(hook);
      } catch (IllegalStateException exiting) {
        logger.log(Level.FINE, "ended because the program exits", exiting);
      }
    }
  }

  private void stopAtExit(CountDownLatch over, Duration patience) {
    try {
      stop();
      if (!over.await(patience.toNanos(), TimeUnit.NANOSECONDS)) {
        stop();
        over.await(2 * GRACE.toNanos(), TimeUnit.NANOSECONDS);
      }
    } catch (InterruptedException interrupted) {
      logger.log(Level.FINE, "not awaited", interrupted);
    }
  }

  /** Lets the running agents finish and claims no more. A second call cancels them. Thread-safe. */
  public void stop() {
    List<Execution> cancelled = List.of();
    boolean forced;
    synchronized (changed) {
      stops++;
      forced = stops > 1;
      if (forced) {
        cancelled = List.copyOf(running.values());
      }
      if (stops == 2) {
        cancelledAt = System.nanoTime();
      }
      changed.notifyAll();
    }
    claims.stop();
    if (forced) {
      work.hurry();
    }
    cancelled.forEach(execution -> execution.cancel(StopReason.STOP_REASON_UNSPECIFIED));
  }

  private void claimAndStart() throws InterruptedException {
    while (true) {
      int free;
      synchronized (changed) {
        while (stops == 0 && left > 0 && running.size() >= concurrency) {
          changed.wait();
        }
        if (stops > 0 || left == 0) {
          return;
        }
        free = (int) Math.min(concurrency - running.size(), left);
      }
      claims.claim(free).forEach(this::start);
    }
  }

  private void start(Rollout rollout) {
    Execution execution = new Execution(new AttemptContext(rollout, workerId));
    boolean cancelled;
    synchronized (changed) {
      left--;
      running.put(execution.context().ref(), execution);
      cancelled = stops > 1;
    }
    if (cancelled) {
      execution.cancel(StopReason.STOP_REASON_UNSPECIFIED);
    }
    heartbeats.add(execution.context());
    finishes.add(execution.context());
    try {
      threads.execute(() -> work(execution, null));
    } catch (RuntimeException | Error error) { // no thread can be had: reported from this one
      work(execution, error);
    }
  }

  /** Works on a claim, or reports why the work cannot start. */
  private void work(Execution execution, Throwable obstacle) {
    try {
      if (obstacle == null) {
        work.work(execution, () -> finishes.remove(execution.context()));
      } else {
        work.fail(execution, obstacle);
      }
    } catch (RuntimeException | Error | InterruptedException defect) {
      logger.log(Level.SEVERE, execution.context() + " was lost by an internal error", defect);
    } finally {
      heartbeats.remove(execution.context());
      finishes.remove(execution.context());
      synchronized (changed) {
        running.remove(execution.context().ref());
        finished++;
        changed.notifyAll();
      }
    }
  }

  /**
   * Waits for the running agents; after they are cancelled, for at most the grace period. Returns
   * true if interrupted.
   */
  private boolean finish() {
    boolean interrupted = false;
    boolean abandoned = false;
    while (true) {
      try {
        synchronized (changed) {
          if (running.isEmpty()) {
            return interrupted;
          }
          long wait = cancelledAt + GRACE.toNanos() - System.nanoTime();
          if (stops < 2 || abandoned) {
            changed.wait();
          } else if (wait > 0) {
            TimeUnit.NANOSECONDS.timedWait(changed, wait);
          } else {
            abandoned = true;
            running.values().forEach(this::abandon);
          }
        }
      } catch (InterruptedException again) {
        interrupted = true;
        stop();
        stop();
      }
    }
  }

  private void abandon(Execution execution) {
    logger.log(
        Level.WARNING, "{0} did not return after its cancellation; abandoned", execution.context());
    execution.abandon();
  }

  /** Forwards a stop request of the server. Thread-safe. */
  private void pass(Stop stop) {
    Execution execution;
    synchronized (changed) {
      execution = running.get(stop.getAttempt());
    }
    if (execution != null) {
      execution.cancel(stop.getReason());
    }
  }

  private Map<String, ?> statistics() {
    synchronized (changed) {
      return Map.of(
          "running",
          running.size(),
          "finished",
          finished,
          "concurrency",
          concurrency,
          "dropped_spans",
          exporter.droppedCount());
    }
  }
}
