package io.lightningstore.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.lightningstore.v1.Failure;
import java.nio.charset.StandardCharsets;
import java.util.concurrent.CompletionException;
import org.junit.jupiter.api.Test;

class FailuresTest {
  private static void check(Throwable error, String type, String message, boolean isFinal) {
    Failure failure = Failures.of(error);
    assertEquals(type, failure.getType());
    assertEquals(message, failure.getMessage());
    assertEquals(isFinal, failure.hasRetryable() && !failure.getRetryable());
  }

  @Test
  void exceptionsAndErrorsTellTheirTypeAndMessage() {
    check(new IllegalStateException("why"), "IllegalStateException", "why", false);
    check(new StackOverflowError(), "StackOverflowError", "java.lang.StackOverflowError", false);
  }

  @Test
  void wrappersAreLookedThrough() {
    Throwable cause = new IllegalStateException("why");
    check(
        new CompletionException(cause),
        "IllegalStateException",
        "java.lang.IllegalStateException: why",
        false);
    check(new RuntimeException("while", cause), "RuntimeException", "while", false);
  }

  @Test
  void nonRetryableAnywhereIsNotRetried() {
    check(new NonRetryableException("no"), "NonRetryableException", "no", true);
    check(
        new NonRetryableException("no", new ArithmeticException("x")),
        "ArithmeticException",
        "no",
        true);
    check(
        new CompletionException("while", new NonRetryableException("no")),
        "NonRetryableException",
        "while",
        true);
  }

  @Test
  void ringsOfCausesEnd() {
    Exception first = new Exception("first");
    Exception second = new Exception("second", first);
    first.initCause(second);
    check(first, "Exception", "first", false);
  }

  @Test
  void messagesAreValidUnicode() {
    check(new Exception("half \ud83d"), "Exception", "half \ufffd", false);
  }

  @Test
  void longMessagesAreCutBetweenCharacters() {
    String message = Failures.of(new Exception("x" + "🙂".repeat(10_000))).getMessage();
    assertEquals(16_381, message.getBytes(StandardCharsets.UTF_8).length);
    assertTrue(message.endsWith("🙂"));
  }
}
