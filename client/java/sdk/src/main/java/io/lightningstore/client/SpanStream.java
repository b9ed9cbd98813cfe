package io.lightningstore.client;

import com.google.protobuf.ByteString;
import io.lightningstore.v1.LightningStoreServiceGrpc.LightningStoreServiceBlockingStub;
import io.lightningstore.v1.QuerySpansRequest;
import io.lightningstore.v1.QuerySpansResponse;
import io.lightningstore.v1.SpanBatch;
import io.opentelemetry.proto.trace.v1.Span;
import java.util.HashSet;
import java.util.Iterator;
import java.util.Queue;
import java.util.Set;

/** The spans that a query matches, each once, in its order. */
public final class SpanStream extends ResumingStream<QuerySpansResponse, StoredSpan> {
  private record Key(String attemptId, ByteString spanId) {}

  private final QuerySpansRequest wanted;
  private final Set<Key> seen = new HashSet<>();

  SpanStream(LightningStore store, QuerySpansRequest wanted) {
    super(store);
    this.wanted = wanted;
  }

  @Override
  Iterator<QuerySpansResponse> ask(LightningStoreServiceBlockingStub stub) {
    return stub.querySpans(
        wanted); // after a break again from the start: what was seen is passed over
  }

  @Override
  void take(QuerySpansResponse answer, Queue<StoredSpan> to) {
    for (SpanBatch batch : answer.getBatchesList()) {
      for (int i = 0; i < batch.getSpansCount(); i++) {
        Span span = batch.getSpans(i);
        if (seen.add(new Key(batch.getAttemptId(), span.getSpanId()))) {
          to.add(stored(batch, span, batch.getSequenceIds(i)));
        }
      }
    }
  }

  private static StoredSpan stored(SpanBatch batch, Span span, long sequenceId) {
    return new StoredSpan(
        span,
        batch.getRolloutId(),
        batch.getAttemptId(),
        sequenceId,
        batch.getResource(),
        batch.getScope());
  }

  @Override
  boolean isComplete() {
    return false; // only the end of the stream says so
  }

  @Override
  boolean mayEndAnywhere() {
    return true;
  }
}
