package io.lightningstore.client;

import io.lightningstore.v1.LLM;
import io.lightningstore.v1.ProxyLLM;
import java.net.URLEncoder;
import java.nio.charset.StandardCharsets;

/** Base URLs of language models behind a proxy that assigns each call to its attempt. */
public final class Endpoints {
  private static final String VERSION_PATH = "/v1";

  private Endpoints() {}

  /**
   * Returns the base URL for the calls of one attempt: the proxy's URL with {@code
   * /rollout/{rolloutId}/attempt/{attemptId}} before a trailing {@code /v1}, or at its end if there
   * is none. Without ids (null or empty) it returns the proxy's own URL.
   *
   * @throws IllegalArgumentException for one id without the other
   */
  public static String baseUrl(ProxyLLM proxy, String rolloutId, String attemptId) {
    boolean noRollout = rolloutId == null || rolloutId.isEmpty();
    boolean noAttempt = attemptId == null || attemptId.isEmpty();
    String endpoint = proxy.getLlm().getEndpoint();
    if (noRollout && noAttempt) {
      return endpoint;
    }
    if (noRollout || noAttempt) {
      throw new IllegalArgumentException("set both the rollout id and the attempt id, or neither");
    }
    String base = endpoint.replaceAll("/+$", "");
    String tail = base.endsWith(VERSION_PATH) ? VERSION_PATH : "";
    String head = base.substring(0, base.length() - tail.length());
    return head + "/rollout/" + quoted(rolloutId) + "/attempt/" + quoted(attemptId) + tail;
  }

  /** Returns a proxy as the language model of one attempt. */
  static LLM routed(ProxyLLM proxy, String rolloutId, String attemptId) {
    return proxy.getLlm().toBuilder().setEndpoint(baseUrl(proxy, rolloutId, attemptId)).build();
  }

  /**
   * Percent-encodes every character that is not unreserved in a URL; Java's URLEncoder is for
   * forms.
   */
  private static String quoted(String id) {
    return URLEncoder.encode(id, StandardCharsets.UTF_8)
        .replace("+", "%20")
        .replace("*", "%2A")
        .replace("%7E", "~");
  }
}
