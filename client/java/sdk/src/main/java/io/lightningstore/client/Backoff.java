package io.lightningstore.client;

import java.time.Duration;
import java.util.concurrent.ThreadLocalRandom;

/** Growing pauses with jitter between tries. Not thread-safe. */
final class Backoff {
  private static final Duration FIRST = Duration.ofMillis(100);

  private final Duration maximum;
  private Duration next = FIRST;

  Backoff(Duration maximum) {
    this.maximum = maximum;
  }

  /** Returns the pause after a failure, at least the delay that the server requested. */
  Duration after(LightningStoreException error) {
    // Jitter between half and the full pause spreads clients, without pauses near zero.
    double share = 0.5 + ThreadLocalRandom.current().nextDouble() / 2;
    Duration pause = Duration.ofNanos((long) (next.toNanos() * share));
    Duration doubled = next.multipliedBy(2);
    next = doubled.compareTo(maximum) < 0 ? doubled : maximum;
    Duration asked = error.retryDelay().orElse(Duration.ZERO);
    return asked.compareTo(pause) > 0 ? asked : pause;
  }

  /** Starts again with the first pause. */
  void reset() {
    next = FIRST;
  }

  /** Returns whether there was no failure since the start. */
  boolean isFresh() {
    return next.equals(FIRST);
  }
}
