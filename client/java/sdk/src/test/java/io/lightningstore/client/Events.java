package io.lightningstore.client;

import static org.junit.jupiter.api.Assertions.fail;

import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/** Waiting for what has to come. */
final class Events {
  static final long PATIENCE_SECONDS = 60;

  private Events() {}

  static <T> T next(BlockingQueue<T> events, String what) throws InterruptedException {
    T event = events.poll(PATIENCE_SECONDS, TimeUnit.SECONDS);
    return event != null ? event : fail("waited in vain for " + what);
  }

  /** Waits for the end of what was begun, and throws what it failed with. */
  static <T> T end(CompletableFuture<T> begun) throws InterruptedException, ExecutionException {
    try {
      return begun.get(PATIENCE_SECONDS, TimeUnit.SECONDS);
    } catch (TimeoutException over) {
      return fail("waited in vain for an end", over);
    }
  }
}
