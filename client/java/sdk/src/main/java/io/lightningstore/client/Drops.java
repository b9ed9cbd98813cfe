package io.lightningstore.client;

import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.function.LongSupplier;
import java.util.logging.Level;
import java.util.logging.Logger;

/**
 * Counts lost spans and logs them by kind: the first at once, later ones in a summary, at most one
 * per minute.
 */
final class Drops {
  private static final Logger logger = Logger.getLogger(LightningStoreSpanExporter.class.getName());
  private static final long QUIET_NANOS = TimeUnit.MINUTES.toNanos(1);

  /**
   * A kind of loss, with the number of spans that are not logged yet and the reason of the last
   * one.
   */
  private static final class Kind {
    private long loggedAt;
    private long unlogged;
    private String why;
  }

  private final LongSupplier nanoTime;
  private final Map<String, Kind> kinds = new LinkedHashMap<>();
  private long count;

  Drops() {
    this(System::nanoTime);
  }

  Drops(LongSupplier nanoTime) {
    this.nanoTime = nanoTime;
  }

  synchronized long count() {
    return count;
  }

  synchronized void add(long spans, String name, String why) {
    count += spans;
    Kind kind = kinds.get(name);
    if (kind == null) {
      kind = new Kind();
      kind.loggedAt = nanoTime.getAsLong() - QUIET_NANOS;
      kinds.put(name, kind);
    }
    kind.unlogged += spans;
    kind.why = why;
    log(kind, false);
  }

  /** Logs the summaries that are due, or all of them at the end. */
  synchronized void summarize(boolean atEnd) {
    kinds.values().forEach(kind -> log(kind, atEnd));
  }

  private void log(Kind kind, boolean atOnce) {
    long now = nanoTime.getAsLong();
    if (kind.unlogged == 0 || (!atOnce && now - kind.loggedAt < QUIET_NANOS)) {
      return;
    }
    logger.log(
        Level.WARNING,
        "dropped {0} span(s): {1}; {2} so far",
        new Object[] {kind.unlogged, kind.why, count});
    kind.loggedAt = now;
    kind.unlogged = 0;
  }
}
