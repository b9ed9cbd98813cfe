package io.lightningstore.client;

import io.lightningstore.v1.AttemptRef;
import io.lightningstore.v1.HeartbeatRequest;
import io.lightningstore.v1.RolloutConfig;
import io.lightningstore.v1.Stop;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import java.util.function.LongSupplier;
import java.util.function.Supplier;
import java.util.logging.Level;
import java.util.logging.Logger;

/**
 * Sends the heartbeats of a worker and its attempts from a separate thread, which agents cannot
 * block.
 */
final class Heartbeats {
  private static final Logger logger = Logger.getLogger(Runner.class.getName());

  /** Heartbeats per unresponsive timeout, so that one or two may get lost. */
  private static final int BEATS_PER_TIMEOUT = 3;

  private static final Duration SHORTEST = Duration.ofMillis(50);

  /** Attempts per call. A server may limit them to 10,000 or fewer. */
  private static final int ATTEMPTS_PER_CALL = 1_000;

  /** Time between two tries while the server does not answer. */
  private static final Duration RETRY = Duration.ofSeconds(1);

  private final LightningStore store;
  private final String workerId;
  private final Duration period;
  private final Consumer<Stop> onStop;
  private final Supplier<Map<String, ?>> stats;
  private final LongSupplier publishNumber;
  private final Thread thread = new Thread(this::run, "lightningstore-heartbeats");

  private final Object changed = new Object();
  private final Map<AttemptRef, Duration> attempts = new LinkedHashMap<>();
  private boolean hurried;
  private boolean ended;
  private boolean failing;

  /**
   * Creates heartbeats with the maximum time between them; a short unresponsive timeout reduces it.
   *
   * @param publishNumber the number to report, 0 for none; it may be code of the user
   */
  Heartbeats(
      LightningStore store,
      String workerId,
      Duration period,
      Consumer<Stop> onStop,
      Supplier<Map<String, ?>> stats,
      LongSupplier publishNumber) {
    this.store = store;
    this.workerId = workerId;
    this.period = period;
    this.onStop = onStop;
    this.stats = stats;
    this.publishNumber = publishNumber;
    thread.setDaemon(true);
  }

  void start() {
    thread.start();
  }

  /** Stops the heartbeats and cancels one that is in progress. */
  void stop() {
    synchronized (changed) {
      ended = true;
    }
    thread.interrupt();
  }

  void add(AttemptContext context) {
    RolloutConfig config = context.rollout().getConfig();
    Duration own = period;
    if (config.hasUnresponsiveTimeout()) {
      own =
          shorter(own, Protos.toJava(config.getUnresponsiveTimeout()).dividedBy(BEATS_PER_TIMEOUT));
      own = own.compareTo(SHORTEST) < 0 ? SHORTEST : own;
    }
    synchronized (changed) {
      attempts.put(context.ref(), own);
      changed.notifyAll();
    }
  }

  /** Sends the next heartbeat now, because its response explains what has happened. */
  void hurry() {
    synchronized (changed) {
      hurried = true;
      changed.notifyAll();
    }
  }

  void remove(AttemptContext context) {
    synchronized (changed) {
      attempts.remove(context.ref());
    }
  }

  private static Duration shorter(Duration one, Duration other) {
    return one.compareTo(other) < 0 ? one : other;
  }

  private Duration interval() {
    return attempts.isEmpty() ? period : Collections.min(attempts.values());
  }

  private void run() {
    long last = System.nanoTime() - period.toNanos(); // the first beat at once
    try {
      while (true) {
        List<AttemptRef> due;
        Duration interval;
        synchronized (changed) {
          for (long left;
              !hurried && (left = last + interval().toNanos() - System.nanoTime()) > 0; ) {
            TimeUnit.NANOSECONDS.timedWait(changed, left);
          }
          hurried = false;
          due = List.copyOf(attempts.keySet());
          interval = interval();
        }
        last = System.nanoTime();
        if (!beat(due, interval)) {
          // After a failure the next heartbeat is due earlier.
          last = System.nanoTime() - interval.minus(shorter(interval, RETRY)).toNanos();
        }
        if (isEnded()) {
          return;
        }
      }
    } catch (InterruptedException interrupted) {
      logger.log(Level.FINE, "heartbeats ended");
    }
  }

  private boolean isEnded() {
    synchronized (changed) {
      return ended;
    }
  }

  /** Returns the publish number to report. What it throws must not end the heartbeats. */
  private long loaded() {
    try {
      return publishNumber.getAsLong();
    } catch (Throwable error) {
      throw LightningStoreException.from(error);
    }
  }

  /** Sends one heartbeat. The loop continues after a failure, because the server may come back. */
  private boolean beat(List<AttemptRef> due, Duration interval) {
    List<Stop> stops = new ArrayList<>();
    try {
      Duration deadline = interval.compareTo(RETRY) < 0 ? RETRY : interval;
      long number = loaded();
      int sent = 0;
      do { // once where there are none
        List<AttemptRef> part = due.subList(sent, Math.min(sent + ATTEMPTS_PER_CALL, due.size()));
        HeartbeatRequest request =
            HeartbeatRequest.newBuilder()
                .setWorkerId(workerId)
                .setStatsJson(Json.encode(stats.get()))
                .setPublishNumber(number)
                .addAllAttempts(part)
                .build();
        stops.addAll(store.call(deadline, stub -> stub.heartbeat(request)).getStopsList());
        sent += part.size();
      } while (sent < due.size());
    } catch (LightningStoreException error) {
      if (!failing && !isEnded()) {
        logger.log(Level.WARNING, "heartbeat failed, retrying: {0}", error.getMessage());
      }
      failing = true;
      return false;
    }
    if (failing) {
      logger.log(Level.WARNING, "heartbeats succeed again");
      failing = false;
    }
    stops.forEach(onStop);
    return true;
  }
}
