package io.lightningstore.client;

import io.lightningstore.v1.StopReason;
import io.opentelemetry.context.Context;
import java.util.concurrent.Callable;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;

/** An agent at work on an attempt, in a thread of its own. */
final class Execution {
  /**
   * What an agent returned, or threw. Not an exception around the agent's own: the constructor of
   * that calls toString of its cause, which may throw.
   */
  record Ending(Number reward, Throwable error) {}

  private final AttemptContext context;
  private final CompletableFuture<Ending> ended = new CompletableFuture<>();
  private Thread thread;

  Execution(AttemptContext context) {
    this.context = context;
  }

  AttemptContext context() {
    return context;
  }

  /**
   * Tells the agent to stop, from any thread; the reason is unspecified where it is the runner that
   * stops.
   */
  void cancel(StopReason reason) {
    context.cancellation().cancel(reason);
    synchronized (this) {
      if (thread != null) {
        thread.interrupt();
      }
    }
  }

  /** Waits for the agent no more. */
  void abandon() {
    ended.complete(new Ending(null, new CancellationException("left behind")));
  }

  /** Runs the agent and returns how it ended. */
  Ending run(Callable<Number> agent, Context tracing) throws InterruptedException {
    // A daemon: one that is stuck for good must not keep the program from ending.
    Thread started =
        new Thread(() -> work(agent, tracing), "lightningstore-" + context.attemptId());
    started.setDaemon(true);
    synchronized (this) {
      thread = started;
      started.start();
      if (context.cancellation().isCancelled()) {
        started.interrupt();
      }
    }
    try {
      return ended.get();
    } catch (ExecutionException impossible) {
      throw new IllegalStateException(impossible);
    }
  }

  private void work(Callable<Number> agent, Context tracing) {
    try {
      ended.complete(new Ending(tracing.wrap(agent).call(), null));
    } catch (Throwable error) { // an Error of one agent is no end of the others
      ended.complete(new Ending(null, error));
    } finally {
      synchronized (this) {
        thread = null;
      }
    }
  }
}
