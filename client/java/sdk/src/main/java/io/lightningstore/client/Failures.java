package io.lightningstore.client;

import io.lightningstore.v1.Failure;
import java.util.Objects;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutionException;
import java.util.stream.Stream;

/** What an agent throws as the contract's words. */
final class Failures {
  /** Characters of a message that are kept. */
  private static final int LONGEST_MESSAGE = 16_384;

  /** Causes looked at: a chain may be a ring. */
  private static final int MOST_CAUSES = 100;

  private Failures() {}

  static Failure of(Throwable error) {
    Failure.Builder failure = Failure.newBuilder();
    if (causes(error).anyMatch(NonRetryableException.class::isInstance)) {
      failure.setRetryable(false);
    }
    String message = error.getMessage() == null ? error.toString() : error.getMessage();
    return failure.setType(typeOf(error)).setMessage(shorten(message)).build();
  }

  private static Stream<Throwable> causes(Throwable error) {
    return Stream.iterate(error, Objects::nonNull, Throwable::getCause).limit(MOST_CAUSES);
  }

  /** Returns the type that says most: not what only wraps another exception. */
  private static String typeOf(Throwable error) {
    Throwable telling =
        causes(error)
            .filter(one -> !isWrapper(one) || one.getCause() == null)
            .findFirst()
            .orElse(error);
    Class<?> type = telling.getClass();
    return type.isAnonymousClass() ? type.getName() : type.getSimpleName();
  }

  private static boolean isWrapper(Throwable error) {
    return error instanceof NonRetryableException
        || error instanceof ExecutionException
        || error instanceof CompletionException;
  }

  private static String shorten(String message) {
    if (message.length() <= LONGEST_MESSAGE) {
      return message;
    }
    boolean splits = Character.isHighSurrogate(message.charAt(LONGEST_MESSAGE - 1));
    return message.substring(0, splits ? LONGEST_MESSAGE - 1 : LONGEST_MESSAGE);
  }
}
