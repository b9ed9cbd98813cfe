package io.lightningstore.conformance;

import com.google.gson.annotations.SerializedName;
import io.lightningstore.client.AttemptContext;
import io.lightningstore.client.AttemptResources;
import io.lightningstore.client.NonRetryableException;
import io.lightningstore.v1.Resource;
import io.opentelemetry.api.trace.Tracer;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.CancellationException;

/** The input of a rollout: the actions of the scripted agent. Every part may be missing. */
record Script(
    List<String> spans,
    String resource,
    @SerializedName("wait") boolean waits,
    Fail fail,
    Double reward) {

  /** When and how it fails. */
  record Fail(String message, Boolean retryable, List<Integer> attempts) {}

  static Number run(
      Script script, AttemptResources resources, Tracer tracer, AttemptContext context)
      throws NonRetryableException, InterruptedException {
    if (script == null) {
      return null;
    }
    if (script.spans() != null) {
      script.spans().forEach(name -> tracer.spanBuilder(name).startSpan().end());
    }
    if (script.resource() != null) {
      String value = text(resources.get(script.resource()));
      tracer.spanBuilder("resource").setAttribute("value", value).startSpan().end();
    }
    if (script.waits()) {
      context.cancellation().await(Duration.ofMinutes(1));
      tracer.spanBuilder("cancelled").startSpan().end();
      throw new CancellationException("cancelled");
    }
    script.failIfAsked(context.sequenceNumber());
    return script.reward();
  }

  private void failIfAsked(int attempt) throws NonRetryableException {
    if (fail == null || (fail.attempts() != null && !fail.attempts().contains(attempt))) {
      return;
    }
    if (Boolean.FALSE.equals(fail.retryable())) {
      throw new NonRetryableException(fail.message());
    }
    throw new IllegalStateException(fail.message());
  }

  /** Returns the value that identifies a resource. */
  private static String text(Resource resource) {
    return switch (resource.getKindCase()) {
      case LLM -> resource.getLlm().getEndpoint();
      case PROMPT_TEMPLATE -> resource.getPromptTemplate().getTemplate();
      default -> resource.getCustom().getValueJson().toStringUtf8();
    };
  }
}
