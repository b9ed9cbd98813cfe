package io.lightningstore.client;

import java.util.HashMap;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.logging.Level;
import java.util.logging.Logger;

/** Counts lost spans, and warns about each kind of loss at most every ten seconds. */
final class Drops {
  private static final Logger logger = Logger.getLogger(LightningStoreSpanExporter.class.getName());
  private static final long QUIET_NANOS = TimeUnit.SECONDS.toNanos(10);

  private final Map<String, Long> warned = new HashMap<>();
  private long count;

  synchronized long count() {
    return count;
  }

  synchronized void add(int spans, String kind, String why) {
    count += spans;
    long now = System.nanoTime();
    Long before = warned.get(kind);
    if (before == null || now - before >= QUIET_NANOS) {
      warned.put(kind, now);
      logger.log(
          Level.WARNING, "dropped {0} span(s): {1}; {2} so far", new Object[] {spans, why, count});
    }
  }
}
