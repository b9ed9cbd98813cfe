package io.lightningstore.client;

import io.grpc.Status;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.StreamObserver;
import io.lightningstore.client.Outbox.Item;
import io.lightningstore.v1.BatchRejection;
import io.lightningstore.v1.IngestResult;
import io.lightningstore.v1.IngestSpansRequest;
import io.lightningstore.v1.IngestSpansResponse;
import io.lightningstore.v1.Stop;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import java.util.logging.Level;
import java.util.logging.Logger;

/**
 * Sends spans with IngestSpans until each is stored or rejected. Used by one thread; only {@link
 * #finishBy} and {@link #cancel} may be called by others.
 */
final class SpanSender {
  private static final Logger logger = Logger.getLogger(SpanSender.class.getName());
  private static final Duration LONGEST_PAUSE = Duration.ofSeconds(2);
  private static final Duration STREAM_TIMEOUT = Duration.ofSeconds(60);

  /** Number of internal errors after which spans are dropped: the server cannot process them. */
  private static final int MAX_DEFECTS = 5;

  private final LightningStore store;
  private final Drops drops;
  private final Consumer<Stop> onStop;
  private final Object changed = new Object();
  private ClientCallStreamObserver<IngestSpansRequest> call;
  private boolean finishing;
  private boolean cancelled;
  private long deadline;

  SpanSender(LightningStore store, Drops drops, Consumer<Stop> onStop) {
    this.store = store;
    this.drops = drops;
    this.onStop = onStop;
  }

  /** Allows tries only until the given System.nanoTime. */
  void finishBy(long nanoTime) {
    synchronized (changed) {
      finishing = true;
      deadline = nanoTime;
      changed.notifyAll();
    }
  }

  /** Ends the current try and allows no other. */
  void cancel() {
    ClientCallStreamObserver<IngestSpansRequest> running;
    synchronized (changed) {
      cancelled = true;
      running = call;
      changed.notifyAll();
    }
    if (running != null) {
      running.cancel("the exporter was shut down", null);
    }
  }

  /**
   * Sends spans; returns false if the time of a shutdown was over first. Lost spans are reported to
   * their tickets.
   */
  boolean deliver(List<Item> items) {
    List<List<Item>> messages = Outbox.intoMessages(items);
    while (!messages.isEmpty()) {
      IngestResult result;
      try {
        result = send(messages);
      } catch (LightningStoreException error) {
        messages.forEach(
            members -> refuse(members, members.size(), error.reason(), error.getMessage()));
        return true;
      }
      if (result == null) {
        return false;
      }
      result.getStopsList().forEach(onStop);
      messages = sortOut(messages, result);
    }
    return true;
  }

  /**
   * Returns the spans to send again: an invalid span fails its whole message, although the others
   * are valid.
   */
  private List<List<Item>> sortOut(List<List<Item>> messages, IngestResult result) {
    List<List<Item>> again = new ArrayList<>();
    long told = 0;
    int last = 0;
    for (BatchRejection rejection : result.getRejectionsList()) {
      last = Math.toIntExact(rejection.getMessageIndex());
      List<Item> members = messages.get(last);
      boolean isPartial = rejection.getSpanCount() > 0 && rejection.getSpanCount() < members.size();
      long refused = isPartial ? rejection.getSpanCount() : members.size();
      told += refused;
      // An unknown attempt applies to all spans of a message. If only some spans are rejected,
      // because their ids exist, the others are stored.
      if (members.size() == 1 || isPartial || rejection.getReason().name().endsWith("_NOT_FOUND")) {
        refuse(members, refused, rejection.getReason().name(), rejection.getMessage());
      } else {
        members.forEach(item -> again.add(List.of(item)));
      }
    }
    if (told > 0 && told < result.getRejectedCount()) {
      // The server lists only the first rejections. The messages after them are sent again; stored
      // spans are skipped.
      again.addAll(messages.subList(last + 1, messages.size()));
    } else if (told < result.getRejectedCount()) {
      messages.forEach(members -> members.forEach(item -> item.ticket().lose()));
      drops.add(
          result.getRejectedCount(), "unexplained", "rejected by the server without a reason");
    }
    return again;
  }

  /**
   * Counts spans of a message as lost. The server does not say which, so each of their exports is
   * incomplete.
   */
  private void refuse(List<Item> items, long count, String kind, String why) {
    items.forEach(item -> item.ticket().lose());
    drops.add(count, kind, "rejected by the server: " + why);
  }

  /** Sends messages over one stream until it is answered; null if a shutdown ended the tries. */
  private IngestResult send(List<List<Item>> messages) {
    Backoff backoff = new Backoff(LONGEST_PAUSE);
    int defects = 0;
    while (true) {
      LightningStoreException failure;
      try {
        return attempt(messages);
      } catch (LightningStoreException error) {
        failure = error;
      }
      boolean perhaps = failure.code() == Status.Code.INTERNAL && ++defects < MAX_DEFECTS;
      synchronized (changed) {
        if (cancelled) {
          return null;
        }
        if (!failure.isRetryable() && !perhaps) {
          throw failure;
        }
        logger.log(Level.FINE, "spans not stored yet: {0}", failure.getMessage());
        if (!pause(backoff.after(failure))) {
          return null;
        }
      }
    }
  }

  /** Waits before a retry; returns false if there is no time for one. The caller holds the lock. */
  private boolean pause(Duration length) {
    boolean hurried = finishing;
    long until = System.nanoTime() + length.toNanos();
    if (hurried && until - deadline >= 0) {
      return false;
    }
    while (!cancelled && until - System.nanoTime() > 0) {
      if (finishing && !hurried) {
        return true; // a shutdown gets one more try
      }
      try {
        TimeUnit.NANOSECONDS.timedWait(changed, until - System.nanoTime());
      } catch (InterruptedException interrupted) {
        return false; // only the end of the program interrupts this thread
      }
    }
    return !cancelled;
  }

  private IngestResult attempt(List<List<Item>> messages) {
    CompletableFuture<IngestResult> answer = new CompletableFuture<>();
    long nanos = STREAM_TIMEOUT.toNanos();
    ClientCallStreamObserver<IngestSpansRequest> requests;
    synchronized (changed) {
      if (cancelled) {
        throw LightningStoreException.of(Status.Code.CANCELLED, "shut down");
      }
      if (finishing) {
        nanos = Math.min(nanos, Math.max(deadline - System.nanoTime(), 1));
      }
      requests =
          (ClientCallStreamObserver<IngestSpansRequest>)
              store
                  .asyncStub()
                  .withDeadlineAfter(nanos, TimeUnit.NANOSECONDS)
                  .ingestSpans(new Answer(answer));
      call = requests;
    }
    try {
      for (List<Item> members : messages) { // bounded, so that none need wait for room
        requests.onNext(Outbox.toRequest(members));
      }
      requests.onCompleted();
      return answer.join();
    } catch (IllegalStateException ended) { // cancelled before all was said
      throw LightningStoreException.of(Status.Code.CANCELLED, ended.getMessage());
    } catch (CompletionException error) {
      throw LightningStoreException.from(error.getCause());
    } finally {
      synchronized (changed) {
        call = null;
      }
    }
  }

  /** Receives the one answer of a stream. */
  private record Answer(CompletableFuture<IngestResult> to)
      implements StreamObserver<IngestSpansResponse> {
    @Override
    public void onNext(IngestSpansResponse response) {
      to.complete(response.getResult());
    }

    @Override
    public void onError(Throwable error) {
      to.completeExceptionally(error);
    }

    @Override
    public void onCompleted() {
      to.completeExceptionally(Status.INTERNAL.withDescription("no answer").asRuntimeException());
    }
  }
}
