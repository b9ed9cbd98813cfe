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
 * <p>Heartbeats go out from a thread of their own, and spans are stored before an outcome is
 * reported. While the server is away the runner goes on, keeps its spans, and reports when it is
 * back; a claim whose answer was lost is asked for again and found.
 *
 * <p>A runner runs once.
 */
public final class Runner {
  private static final Logger logger = Logger.getLogger(Runner.class.getName());
  private static final int BUFFER_BYTES = 64 << 20;

  /** What cancelled agents get to end in. */
  private static final Duration GRACE = Duration.ofSeconds(5);

  private final String workerId;
  private final int concurrency;
  private final Claims claims;
  private final Heartbeats heartbeats;
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
    claims = new Claims(options.store, workerId, options.modes);
    heartbeats =
        new Heartbeats(
            options.store, workerId, options.heartbeatPeriod, this::pass, this::statistics);
    work =
        new AttemptWork<>(
            options.store, options.inputType, options.agent, exporter, options.outage);
    threads =
        Executors.newCachedThreadPool(
            task -> {
              Thread thread = new Thread(task, "lightningstore-attempt");
              thread.setDaemon(true);
              return thread;
            });
  }

  /**
   * Returns what sets the options of a runner.
   *
   * @param store where the rollouts come from; it stays the caller's to close, after the runner has
   *     ended
   * @param inputType what the rollouts' inputs are read as: a record for instance, or {@code
   *     com.google.gson.JsonElement}
   * @param agent what is done with each
   */
  public static <I> RunnerBuilder<I> builder(
      LightningStore store, Class<I> inputType, Agent<I> agent) {
    return new RunnerBuilder<>(store, inputType, agent);
  }

  /** Returns what the runner is called. */
  public String workerId() {
    return workerId;
  }

  /**
   * Works until {@link #stop} is called, or as many rollouts as were asked for are done. An
   * interrupt cancels what runs; it is set again when the method returns.
   *
   * @throws LightningStoreException for an error that waiting does not mend; what runs is finished
   *     before
   * @throws IllegalStateException if it has run before
   */
  public void run() {
    synchronized (changed) {
      if (begun) {
        throw new IllegalStateException("a runner runs once");
      }
      begun = true;
    }
    heartbeats.start();
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
   * Does what {@link #run} does, in a thread of its own. The future ends with it; cancelling the
   * future cancels what runs.
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
   * Does what {@link #run} does, and ends well when the program is told to end, by SIGTERM or
   * Ctrl-C: what runs may finish, and is cancelled only when the patience is over.
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
        logger.log(Level.FINE, "ended because the program does", exiting);
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

  /**
   * Lets what runs finish, and claims no more; called again: cancels what runs. From any thread.
   */
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
    try {
      threads.execute(() -> work(execution, null));
    } catch (RuntimeException | Error error) { // no thread can be had: reported from this one
      work(execution, error);
    }
  }

  /** Works on a claim, or reports why that cannot be begun. */
  private void work(Execution execution, Throwable obstacle) {
    try {
      if (obstacle == null) {
        work.work(execution);
      } else {
        work.fail(execution, obstacle);
      }
    } catch (RuntimeException | Error | InterruptedException defect) {
      logger.log(Level.SEVERE, execution.context() + " is lost by a defect", defect);
    } finally {
      heartbeats.remove(execution.context());
      synchronized (changed) {
        running.remove(execution.context().ref());
        finished++;
        changed.notifyAll();
      }
    }
  }

  /**
   * Waits for what runs; once cancelled, an agent gets no more than the grace. True if interrupted.
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
        Level.WARNING, "{0} does not end though cancelled: left behind", execution.context());
    execution.abandon();
  }

  /** Passes on what the server said, from any thread. */
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
