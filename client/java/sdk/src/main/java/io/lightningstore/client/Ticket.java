package io.lightningstore.client;

import io.opentelemetry.sdk.common.CompletableResultCode;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * One call of export: it is done when each of its spans is stored, and failed if one of them is
 * lost.
 */
final class Ticket {
  private final CompletableResultCode code = new CompletableResultCode();
  private final AtomicInteger open;
  private final AtomicBoolean lost = new AtomicBoolean();

  /**
   * Takes the number of spans, and one more, which is settled when all of them have been taken in.
   */
  Ticket(int spans) {
    open = new AtomicInteger(spans + 1);
  }

  CompletableResultCode code() {
    return code;
  }

  /** Says that some of its spans will not be stored. */
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
