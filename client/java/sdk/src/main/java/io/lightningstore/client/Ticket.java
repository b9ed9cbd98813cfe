package io.lightningstore.client;

import io.opentelemetry.sdk.common.CompletableResultCode;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;

/** One export call: done when each of its spans is stored, failed if one of them is lost. */
final class Ticket {
  private final CompletableResultCode code = new CompletableResultCode();
  private final AtomicInteger open;
  private final AtomicBoolean lost = new AtomicBoolean();

  /**
   * Creates a ticket for the number of spans and one more, which is settled when all of them have
   * been queued.
   */
  Ticket(int spans) {
    open = new AtomicInteger(spans + 1);
  }

  CompletableResultCode code() {
    return code;
  }

  /** Records that some of its spans will not be stored. */
  void lose() {
    lost.set(true);
  }

  /** Counts some of its spans as done. */
  void settle(int spans) {
    if (open.addAndGet(-spans) > 0) {
      return;
    }
    if (lost.get()) {
      code.fail();
    } else {
      code.succeed();
    }
  }
}
