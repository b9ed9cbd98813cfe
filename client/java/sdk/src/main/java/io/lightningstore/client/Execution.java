package io.lightningstore.client;

import io.lightningstore.v1.StopReason;
import io.opentelemetry.context.Context;
import java.util.concurrent.Callable;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;

/** An agent at work on an attempt, in a thread of its own. */
final class Execution {
  private final AttemptContext context;
  private final CompletableFuture<Number> ended = new CompletableFuture<>();
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
    ended.completeExceptionally(new CancellationException("left behind"));
  }

  /**
   * Runs the agent and returns what it returns.
   *
   * @throws ExecutionException for what it throws
   */
  Number run(Callable<Number> agent, Context tracing)
      throws ExecutionException, InterruptedException {
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
    } catch (CancellationException left) {
      throw new ExecutionException(left);
    }
  }

  private void work(Callable<Number> agent, Context tracing) {
    try {
      ended.complete(tracing.wrap(agent).call());
    } catch (Throwable error) { // an Error of one agent is no end of the others
      ended.completeExceptionally(error);
    } finally {
      synchronized (this) {
        thread = null;
      }
    }
  }
}
