package io.lightningstore.client;

import io.grpc.Status;
import io.lightningstore.v1.Failure;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletionException;
import java.util.concurrent.ExecutionException;

/**
 * Failures of the contract for exceptions of an agent. Never throws, whatever the methods of the
 * agent's exceptions do, because without a report an attempt would stay live.
 */
final class Failures {
  private static final int MAXIMUM_MESSAGE_BYTES = 16_384;
  private static final int MAXIMUM_TYPE_BYTES = 256;

  /** Maximum number of causes that are examined, because a chain may be cyclic. */
  private static final int MAX_CAUSES = 100;

  private Failures() {}

  static Failure of(Throwable error) {
    List<Throwable> causes = causes(error);
    Failure.Builder failure = Failure.newBuilder();
    if (causes.stream().anyMatch(NonRetryableException.class::isInstance)) {
      failure.setRetryable(false);
    }
    return failure
        .setType(Texts.shorten(typeOf(causes), MAXIMUM_TYPE_BYTES))
        .setMessage(Texts.shorten(messageOf(error), MAXIMUM_MESSAGE_BYTES))
        .build();
  }

  /**
   * Returns the failure that replaces an outcome that the server rejected. It contains nothing that
   * can be rejected.
   */
  static Failure ofRefusedReport(Failure refused, LightningStoreException error) {
    Failure.Builder failure = Failure.newBuilder();
    if (refused != null && refused.hasRetryable()) {
      failure.setRetryable(refused.getRetryable());
    }
    String why = error.getMessage().replaceAll("[^ -~]", "?");
    return failure
        .setType("ReportRefused")
        .setMessage(
            "the server rejected the report: " + why.substring(0, Math.min(500, why.length())))
        .build();
  }

  /** Returns whether the server does not know a field of an update. */
  static boolean isUnknownPath(LightningStoreException error) {
    return error.code() == Status.Code.INVALID_ARGUMENT
        && error.fieldViolations().stream()
            .anyMatch(violation -> violation.field().startsWith("update_mask"));
  }

  private static List<Throwable> causes(Throwable error) {
    List<Throwable> found = new ArrayList<>();
    for (Throwable one = error; one != null && found.size() < MAX_CAUSES; one = causeOf(one)) {
      found.add(one);
    }
    return found;
  }

  private static Throwable causeOf(Throwable error) {
    try {
      return error.getCause();
    } catch (Throwable thrown) { // the chain ends here
      return null;
    }
  }

  private static String messageOf(Throwable error) {
    try {
      String message = error.getMessage() == null ? error.toString() : error.getMessage();
      return message == null ? "" : message;
    } catch (Throwable thrown) {
      return error.getClass().getName()
          + ", whose message cannot be read, because reading it throws "
          + thrown.getClass().getName();
    }
  }

  /** Returns the most specific type, ignoring exceptions that only wrap another one. */
  private static String typeOf(List<Throwable> causes) {
    int telling = 0;
    while (isWrapper(causes.get(telling)) && telling + 1 < causes.size()) {
      telling++;
    }
    Class<?> type = causes.get(telling).getClass();
    return type.isAnonymousClass() ? type.getName() : type.getSimpleName();
  }

  private static boolean isWrapper(Throwable error) {
    return error instanceof NonRetryableException
        || error instanceof ExecutionException
        || error instanceof CompletionException;
  }
}
