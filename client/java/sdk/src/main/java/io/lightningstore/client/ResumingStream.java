package io.lightningstore.client;

import io.grpc.Context;
import io.grpc.Context.CancellableContext;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.lightningstore.v1.LightningStoreServiceGrpc.LightningStoreServiceBlockingStub;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.Iterator;
import java.util.NoSuchElementException;
import java.util.Queue;
import java.util.Spliterator;
import java.util.Spliterators;
import java.util.stream.Stream;
import java.util.stream.StreamSupport;

/**
 * Items that a server streams, each read once. A broken connection is resumed, for as long as the
 * client's timeout; after that, and for any other failure, reading throws {@link
 * LightningStoreException}.
 *
 * <p>One thread reads it in one pass: as an Iterator, in a for loop, or with {@link #stream}.
 * Another thread may close it, which ends the reading.
 *
 * @param <A> type of the messages of the stream
 * @param <T> type of the items
 */
abstract class ResumingStream<A, T> implements Iterator<T>, Iterable<T>, AutoCloseable {
  private static final Duration LONGEST_PAUSE = Duration.ofSeconds(2);

  private final LightningStore store;
  private final Backoff backoff = new Backoff(LONGEST_PAUSE);
  private final Queue<T> ready = new ArrayDeque<>();
  private final CancellableContext context = Context.ROOT.withCancellation();
  private Iterator<A> answers;
  private long failingSince;
  private volatile boolean closed;

  ResumingStream(LightningStore store) {
    this.store = store;
  }

  /** Starts a call for the items that have not arrived; returns null if none are missing. */
  abstract Iterator<A> ask(LightningStoreServiceBlockingStub stub);

  /** Processes a message and passes on its new items. */
  abstract void take(A answer, Queue<T> to);

  /** Returns whether all items have arrived, so that only the end of the stream is missing. */
  abstract boolean isComplete();

  /** Returns whether a stream may end although items are missing. */
  abstract boolean mayEndAnywhere();

  @Override
  public boolean hasNext() {
    while (ready.isEmpty() && !closed) {
      try {
        if (!advance()) {
          close();
        }
      } catch (StatusRuntimeException error) {
        waitAfter(LightningStoreException.from(error));
      }
    }
    return !ready.isEmpty();
  }

  @Override
  public T next() {
    if (!hasNext()) {
      throw new NoSuchElementException();
    }
    return ready.remove();
  }

  /** Returns this stream, which can be read once. */
  @Override
  public Iterator<T> iterator() {
    return this;
  }

  /**
   * Returns the remaining items as a java.util.stream.Stream, which closes this stream when it is
   * closed.
   */
  public Stream<T> stream() {
    int traits = Spliterator.ORDERED | Spliterator.NONNULL;
    return StreamSupport.stream(Spliterators.spliteratorUnknownSize(this, traits), false)
        .onClose(this::close);
  }

  /** Ends the call if it is still running. No-op if closed already. */
  @Override
  public void close() {
    closed = true;
    context.cancel(null);
  }

  /** Reads one message; returns false at the end. */
  private boolean advance() {
    if (isComplete()) {
      return false;
    }
    if (answers == null) {
      answers = inContext();
      if (answers == null) {
        return false;
      }
    }
    if (!answers.hasNext()) {
      if (mayEndAnywhere() || isComplete()) {
        return false;
      }
      throw Status.UNAVAILABLE.withDescription("the stream ended early").asRuntimeException();
    }
    take(answers.next(), ready);
    backoff.reset();
    return true;
  }

  private Iterator<A> inContext() {
    Context before = context.attach();
    try {
      return ask(store.blockingStub());
    } finally {
      context.detach(before);
    }
  }

  private void waitAfter(LightningStoreException error) {
    answers = null;
    if (closed) {
      return;
    }
    if (backoff.isFresh()) {
      failingSince = System.nanoTime();
    }
    Duration failing = Duration.ofNanos(System.nanoTime() - failingSince);
    if (!error.isRetryable() || failing.compareTo(store.timeout()) > 0) {
      close();
      throw error;
    }
    try {
      Thread.sleep(backoff.after(error).toMillis());
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
      close();
      throw error;
    }
  }
}
