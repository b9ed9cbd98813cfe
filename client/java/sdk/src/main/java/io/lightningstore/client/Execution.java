package io.lightningstore.client;

import io.lightningstore.v1.StopReason;
import io.opentelemetry.context.Context;
import java.util.concurrent.Callable;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;

/** The run of an agent for an attempt, in a separate thread. */
final class Execution {
  /**
   * What an agent returned or threw. It is not an exception with the agent's exception as cause,
   * because that constructor calls toString of the cause, which may throw.
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
   * Requests the agent to stop, from any thread. The reason is unspecified if the runner itself is
   * stopping.
   */
  void cancel(StopReason reason) {
    context.cancellation().cancel(reason);
    synchronized (this) {
      if (thread != null) {
        thread.interrupt();
      }
    }
  }

  /** Stops waiting for the agent. */
  void abandon() {
    ended.complete(new Ending(null, new CancellationException("abandoned")));
  }

  /** Runs the agent and returns its result. */
  Ending run(Callable<Number> agent, Context tracing) throws InterruptedException {
    // A daemon, so that an agent that never returns does not keep the program running.
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
