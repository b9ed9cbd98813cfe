package io.lightningstore.client;

import java.time.Duration;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executor;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.function.BooleanSupplier;
import java.util.logging.Level;
import java.util.logging.Logger;

/**
 * Warns once if the first call of a client does not reach a server for 2 seconds.
 *
 * <p>Calls and runners retry while the server is away, so that programs can start in any order. A
 * wrong address would therefore look like a call that hangs.
 */
final class Contact {
  private static final Logger logger = Logger.getLogger(LightningStore.class.getName());
  private static final Duration FIRST_ANSWER = Duration.ofSeconds(2);

  private final String address;
  private final BooleanSupplier isConnected;
  private final Executor later;
  private final AtomicBoolean timed = new AtomicBoolean();
  private volatile boolean over;

  Contact(String address, BooleanSupplier isConnected) {
    this(
        address,
        isConnected,
        CompletableFuture.delayedExecutor(FIRST_ANSWER.toNanos(), TimeUnit.NANOSECONDS));
  }

  /**
   * @param isConnected whether the connection is up; a first call may take long on a server that is
   *     there
   * @param later runs a task after FIRST_ANSWER
   */
  Contact(String address, BooleanSupplier isConnected, Executor later) {
    this.address = address;
    this.isConnected = isConnected;
    this.later = later;
  }

  /** Starts the time with the first call. */
  void called() {
    if (!over && timed.compareAndSet(false, true)) {
      later.execute(this::report);
    }
  }

  /** Notes that the server has answered, or that the client was closed. */
  void end() {
    if (!over) { // written once, because every answer comes here
      over = true;
    }
  }

  private void report() {
    if (!over && !isConnected.getAsBoolean()) {
      logger.log(
          Level.WARNING,
          "no server has answered at {0} for {1} s: is `lightningstore serve` running there?",
          new Object[] {address, FIRST_ANSWER.toSeconds()});
    }
  }
}
