package io.lightningstore.client;

import io.lightningstore.v1.AttemptRef;
import io.lightningstore.v1.IngestSpansRequest;
import io.lightningstore.v1.SpanBatch;
import io.opentelemetry.api.common.AttributeKey;
import io.opentelemetry.api.common.Attributes;
import io.opentelemetry.proto.trace.v1.Span;
import io.opentelemetry.sdk.common.InstrumentationScopeInfo;
import io.opentelemetry.sdk.resources.Resource;
import io.opentelemetry.sdk.trace.data.SpanData;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Prepares spans for sending, without I/O: encodes them, assigns them to attempts, and groups them
 * into messages.
 */
final class Outbox {
  static final AttributeKey<String> ROLLOUT_ID =
      AttributeKey.stringKey("agentlightning.rollout_id");
  static final AttributeKey<String> ATTEMPT_ID =
      AttributeKey.stringKey("agentlightning.attempt_id");
  private static final AttributeKey<Long> SEQUENCE_ID =
      AttributeKey.longKey("agentlightning.span_sequence_id");

  /**
   * A message is closed before it exceeds this size: small enough for every limit, and still
   * efficient.
   */
  static final int MESSAGE_BYTES = 1 << 20;

  /** Maximum framing of a span within a message, in bytes. */
  private static final int FRAME_BYTES = 12;

  /** What the spans of one message have in common. */
  record Origin(AttemptRef attempt, Resource resource, InstrumentationScopeInfo scope) {}

  /** One encoded span, and the export call that it belongs to. */
  record Item(Origin origin, Span span, long sequenceId, Ticket ticket) {
    int size() {
      return span.getSerializedSize() + FRAME_BYTES;
    }
  }

  private Outbox() {}

  /**
   * Encodes a span for the attempt that its attributes name, else its resource's, else the one
   * given. Returns null if there is none.
   *
   * @throws IllegalArgumentException for an id that is not valid Unicode
   */
  static Item encode(SpanData data, AttemptRef otherwise, Ticket ticket) {
    Attributes own = data.getAttributes();
    AttemptRef attempt =
        AttemptRef.newBuilder()
            .setRolloutId(id(ROLLOUT_ID, data, otherwise.getRolloutId()))
            .setAttemptId(id(ATTEMPT_ID, data, otherwise.getAttemptId()))
            .build();
    if (attempt.getRolloutId().isEmpty() || attempt.getAttemptId().isEmpty()) {
      return null;
    }
    Long number = own.get(SEQUENCE_ID);
    return new Item(
        new Origin(attempt, data.getResource(), data.getInstrumentationScopeInfo()),
        OtlpEncoding.span(data),
        number == null || number < 0 ? 0 : number,
        ticket);
  }

  private static String id(AttributeKey<String> key, SpanData data, String otherwise) {
    String id = data.getAttributes().get(key);
    if (id == null) {
      id = data.getResource().getAttribute(key);
    }
    return id == null ? otherwise : Texts.checkId("attribute " + key.getKey(), id);
  }

  /**
   * Groups spans into messages of about 1 MiB, each with one origin, in order within each attempt.
   */
  static List<List<Item>> intoMessages(List<Item> items) {
    List<List<Item>> messages = new ArrayList<>();
    Map<AttemptRef, List<Item>> current = new HashMap<>();
    Map<AttemptRef, Integer> sizes = new HashMap<>();
    for (Item item : items) {
      AttemptRef attempt = item.origin().attempt();
      List<Item> members = current.get(attempt);
      int size = sizes.getOrDefault(attempt, 0) + item.size();
      if (members == null
          || size > MESSAGE_BYTES
          || !members.get(0).origin().equals(item.origin())) {
        members = new ArrayList<>();
        size = item.size();
        current.put(attempt, members);
        messages.add(members);
      }
      members.add(item);
      sizes.put(attempt, size);
    }
    return messages;
  }

  /** Returns a message of the contract for spans of one origin. */
  static IngestSpansRequest toRequest(List<Item> items) {
    Origin origin = items.get(0).origin();
    SpanBatch.Builder batch =
        SpanBatch.newBuilder()
            .setRolloutId(origin.attempt().getRolloutId())
            .setAttemptId(origin.attempt().getAttemptId())
            .setResource(OtlpEncoding.resource(origin.resource()))
            .setResourceSchemaUrl(OtlpEncoding.orEmpty(origin.resource().getSchemaUrl()))
            .setScope(OtlpEncoding.scope(origin.scope()))
            .setSchemaUrl(OtlpEncoding.orEmpty(origin.scope().getSchemaUrl()));
    boolean numbered = items.stream().anyMatch(item -> item.sequenceId() > 0);
    for (Item item : items) {
      batch.addSpans(item.span());
      if (numbered) {
        batch.addSequenceIds(item.sequenceId());
      }
    }
    return IngestSpansRequest.newBuilder().setBatch(batch).build();
  }
}
