package io.lightningstore.client;

import io.lightningstore.client.Outbox.Item;
import io.lightningstore.v1.AttemptRef;
import io.lightningstore.v1.Stop;
import io.opentelemetry.sdk.common.CompletableResultCode;
import io.opentelemetry.sdk.trace.data.SpanData;
import io.opentelemetry.sdk.trace.export.SpanExporter;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.Queue;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import java.util.logging.Level;
import java.util.logging.Logger;

/**
 * An exporter for the OpenTelemetry SDK that streams spans to a store, each to its attempt, without
 * blocking the program.
 *
 * <p>A thread sends the spans, keeps them until the server has stored them, and sends them again
 * after a broken connection; the server counts repeats once. No span is lost while a server
 * restarts. Beyond 64 MiB of spans that are not stored yet, new spans are dropped, counted and
 * logged.
 *
 * <p>The attempt of a span is named by the attributes {@code agentlightning.rollout_id} and {@code
 * agentlightning.attempt_id} of the span, else of its resource, else by the ids given here. Use it
 * with SimpleSpanProcessor: the buffer of a BatchSpanProcessor would drop spans of its own.
 *
 * <p>A program that ends without a {@link #shutdown} waits, for at most 4 seconds, until its spans
 * are stored.
 */
public final class LightningStoreSpanExporter implements SpanExporter {
  private static final Logger logger = Logger.getLogger(LightningStoreSpanExporter.class.getName());
  private static final int MIB = 1 << 20;
  private static final int BUFFER_BYTES = 64 * MIB;

  /** The server's limit. */
  private static final int SPAN_BYTES = 4 * MIB;

  /** A stream is closed, so that the server acknowledges it, after this number of bytes. */
  private static final int STREAM_BYTES = 16 * MIB;

  /** Maximum time that a span waits to be sent together with others. */
  private static final Duration GATHERING = Duration.ofMillis(200);

  private static final Duration LAST_TRIES = Duration.ofSeconds(4);

  private record Flush(long upTo, CompletableResultCode code) {}

  private final AttemptRef attempt;
  private final int bufferBytes;
  private final Drops drops = new Drops();
  private final SpanSender sender;
  private final Thread exitHook;
  private final CompletableResultCode ended = new CompletableResultCode();

  private final Object changed = new Object();
  private final Queue<Item> queue = new ArrayDeque<>();
  private final Queue<Flush> flushes = new ArrayDeque<>();
  private Thread thread;
  private long bytes;
  private long added;
  private long settled;
  private boolean stopped;

  private LightningStoreSpanExporter(
      LightningStore store,
      AttemptRef attempt,
      int bufferBytes,
      Consumer<Stop> onStop,
      boolean waitsAtExit) {
    this.attempt = attempt;
    this.bufferBytes = bufferBytes;
    sender = new SpanSender(store, drops, onStop);
    exitHook = waitsAtExit ? new Thread(() -> close(), "lightningstore-exporter-exit") : null;
    if (exitHook != null) {
      Runtime.getRuntime().addShutdownHook(exitHook);
    }
  }

  /** Creates an exporter for spans that name their attempts, directly or by their resources. */
  public static LightningStoreSpanExporter create(LightningStore store) {
    return create(store, "", "");
  }

  /**
   * Creates an exporter for an attempt.
   *
   * @param store store for the spans; the caller closes it, after the exporter
   * @throws IllegalArgumentException for an id that is not valid Unicode
   */
  public static LightningStoreSpanExporter create(
      LightningStore store, String rolloutId, String attemptId) {
    AttemptRef attempt =
        AttemptRef.newBuilder()
            .setRolloutId(Texts.checkId("rolloutId", rolloutId))
            .setAttemptId(Texts.checkId("attemptId", attemptId))
            .build();
    return new LightningStoreSpanExporter(store, attempt, BUFFER_BYTES, stop -> {}, true);
  }

  /** Creates the exporter of a Runner, which shuts it down itself and is notified of stops. */
  static LightningStoreSpanExporter create(
      LightningStore store, int bufferBytes, Consumer<Stop> onStop) {
    AttemptRef none = AttemptRef.getDefaultInstance();
    return new LightningStoreSpanExporter(store, none, bufferBytes, onStop, false);
  }

  /**
   * Queues spans without waiting for the network.
   *
   * @return success when all of them are stored; failure if some are lost
   */
  @Override
  public CompletableResultCode export(Collection<SpanData> spans) {
    Ticket ticket = new Ticket(spans.size());
    List<Item> items = encode(spans, ticket);
    synchronized (changed) {
      if (stopped) {
        items.forEach(item -> lose(item.ticket(), "shut down", "the exporter is shut down"));
      } else {
        items.forEach(this::add);
      }
      if (thread == null && !queue.isEmpty()) {
        thread = new Thread(this::run, "lightningstore-exporter");
        thread.setDaemon(true);
        thread.start();
      }
      changed.notifyAll();
    }
    ticket.settle(1);
    return ticket.code();
  }

  private List<Item> encode(Collection<SpanData> spans, Ticket ticket) {
    List<Item> items = new ArrayList<>(spans.size());
    for (SpanData span : spans) {
      try {
        Item item = Outbox.encode(span, attempt, ticket);
        if (item == null) {
          lose(ticket, "no attempt", unfiled(span));
        } else if (item.span().getSerializedSize() > SPAN_BYTES) {
          lose(ticket, "too large", span.getName() + " has more than " + SPAN_BYTES + " bytes");
        } else {
          items.add(item);
        }
      } catch (RuntimeException | Error error) { // the agent that ends the span must not get it
        lose(ticket, "not encoded", "a span cannot be encoded: " + Failures.of(error).getMessage());
      }
    }
    return items;
  }

  private static String unfiled(SpanData span) {
    String why = span.getName() + " has no rollout id and attempt id";
    int lost = span.getTotalAttributeCount() - span.getAttributes().size();
    return lost == 0
        ? why
        : why
            + "; its tracer provider dropped "
            + lost
            + " attributes over its limit: set the ids on the resource, or first";
  }

  private void lose(Ticket ticket, String kind, String why) {
    drops.add(1, kind, why);
    ticket.lose();
    ticket.settle(1);
  }

  private void add(Item item) {
    if (bytes + item.size() > bufferBytes) {
      lose(item.ticket(), "buffer full", "the buffer of " + bufferBytes + " bytes is full");
      return;
    }
    queue.add(item);
    bytes += item.size();
    added++;
  }

  /**
   * Returns the number of spans lost so far: beyond the buffer, too large, rejected, or without an
   * attempt.
   */
  public long droppedCount() {
    return drops.count();
  }

  /** Sends the queued spans without delay. The result completes when all are stored or dropped. */
  @Override
  public CompletableResultCode flush() {
    drops.summarize(false);
    synchronized (changed) {
      if (settled >= added) {
        return CompletableResultCode.ofSuccess();
      }
      Flush flush = new Flush(added, new CompletableResultCode());
      flushes.add(flush);
      changed.notifyAll();
      return flush.code();
    }
  }

  /**
   * Sends the remaining spans, for at most 4 seconds, and stops. Spans that could not be stored are
   * lost.
   */
  @Override
  public CompletableResultCode shutdown() {
    synchronized (changed) {
      if (stopped) {
        return ended;
      }
      stopped = true;
      sender.finishBy(System.nanoTime() + LAST_TRIES.toNanos());
      if (thread == null) {
        end();
      }
      changed.notifyAll();
    }
    if (exitHook != null && Thread.currentThread() != exitHook) {
      try {
        Runtime.getRuntime().removeShutdownHook(exitHook);
      } catch (IllegalStateException exiting) {
        logger.log(Level.FINE, "the program is exiting", exiting);
      }
    }
    return ended;
  }

  /** Shuts down, like {@link #shutdown}, and waits for it. */
  @Override
  public void close() {
    if (!shutdown().join(LAST_TRIES.toMillis(), TimeUnit.MILLISECONDS).isDone()) {
      sender.cancel();
      ended.join(1, TimeUnit.SECONDS);
    }
  }

  private void run() {
    List<Item> items;
    while ((items = take()) != null) {
      boolean delivered;
      try {
        delivered = sender.deliver(items);
      } catch (RuntimeException | Error error) {
        logger.log(Level.SEVERE, "spans could not be sent", error);
        drops.add(items.size(), "defect", "see the log");
        items.forEach(item -> item.ticket().lose());
        delivered = true;
      }
      if (!delivered) {
        synchronized (changed) {
          queue.addAll(items); // lost with what else is left
        }
        break;
      }
      settle(items);
    }
    synchronized (changed) {
      end();
    }
  }

  /** Waits for spans and returns those for one stream; null at the end. */
  private List<Item> take() {
    synchronized (changed) {
      try {
        while (queue.isEmpty() && !stopped) {
          changed.wait();
        }
        long until = System.nanoTime() + GATHERING.toNanos();
        while (!isUrgent() && until - System.nanoTime() > 0) {
          TimeUnit.NANOSECONDS.timedWait(changed, until - System.nanoTime());
        }
      } catch (InterruptedException interrupted) {
        return null; // only the end of the program interrupts this thread
      }
      List<Item> items = new ArrayList<>();
      for (long size = 0; !queue.isEmpty() && size < STREAM_BYTES; ) {
        items.add(queue.remove());
        size += items.get(items.size() - 1).size();
      }
      return items.isEmpty() ? null : items;
    }
  }

  private boolean isUrgent() {
    return stopped || !flushes.isEmpty() || bytes >= Outbox.MESSAGE_BYTES;
  }

  private void settle(List<Item> items) {
    List<Flush> done = new ArrayList<>();
    synchronized (changed) {
      settled += items.size();
      for (Item item : items) {
        bytes -= item.size();
      }
      while (!flushes.isEmpty() && flushes.peek().upTo() <= settled) {
        done.add(flushes.remove());
      }
    }
    items.forEach(item -> item.ticket().settle(1));
    done.forEach(flush -> flush.code().succeed());
  }

  private void loseAtEnd(Item item) {
    lose(item.ticket(), "shutdown", "not stored before the exporter was shut down");
  }

  /** Completes the shutdown. The caller holds the lock. */
  private void end() {
    boolean complete = queue.isEmpty();
    while (!queue.isEmpty()) {
      loseAtEnd(queue.remove());
    }
    drops.summarize(true);
    flushes.forEach(flush -> flush.code().fail());
    flushes.clear();
    if (complete) {
      ended.succeed();
    } else {
      ended.fail();
    }
  }
}
