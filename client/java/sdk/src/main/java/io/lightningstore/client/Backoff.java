package io.lightningstore.client;

import java.time.Duration;
import java.util.concurrent.ThreadLocalRandom;

/** Growing, varied pauses between the tries of one thing. For one thread. */
final class Backoff {
  private static final Duration FIRST = Duration.ofMillis(100);

  private final Duration longest;
  private Duration next = FIRST;

  Backoff(Duration longest) {
    this.longest = longest;
  }

  /** Returns the pause after a failure; at least as long as the server asked for. */
  Duration after(LightningStoreException error) {
    // Between a half and the whole: enough to spread many clients, and never near to zero.
    double share = 0.5 + ThreadLocalRandom.current().nextDouble() / 2;
    Duration pause = Duration.ofNanos((long) (next.toNanos() * share));
    Duration doubled = next.multipliedBy(2);
    next = doubled.compareTo(longest) < 0 ? doubled : longest;
    Duration asked = error.retryDelay().orElse(Duration.ZERO);
    return asked.compareTo(pause) > 0 ? asked : pause;
  }

  /** Begins anew: all is well again. */
  void reset() {
    next = FIRST;
  }

  /** Tells whether nothing has failed since the beginning. */
  boolean isFresh() {
    return next.equals(FIRST);
  }
}
