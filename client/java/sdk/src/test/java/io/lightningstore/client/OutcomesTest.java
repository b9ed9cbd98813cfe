package io.lightningstore.client;

import static io.lightningstore.client.Events.next;
import static io.lightningstore.client.ScriptedServer.claimOf;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.gson.JsonElement;
import io.grpc.Status;
import io.lightningstore.v1.Attempt;
import io.lightningstore.v1.AttemptStatus;
import io.lightningstore.v1.Failure;
import java.io.IOException;
import java.math.BigDecimal;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.Callable;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletionException;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeoutException;
import java.util.logging.LogRecord;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;

/** However an agent ends, its attempt is reported. */
class OutcomesTest {
  private final ScriptedServer server = new ScriptedServer();
  private final LightningStore store = server.connect();

  @AfterEach
  void close() {
    store.close();
    server.close();
  }

  private Attempt outcomeOf(Agent<JsonElement> agent) throws InterruptedException {
    Runner.builder(store, JsonElement.class, agent).maxRollouts(1).build().start();
    server.queue.add(claimOf("ro-1", "1"));
    return next(server.updates, "an outcome").getAttempt();
  }

  private Failure failureOf(Agent<JsonElement> agent) throws InterruptedException {
    Attempt attempt = outcomeOf(agent);
    assertEquals(AttemptStatus.ATTEMPT_STATUS_FAILED, attempt.getStatus());
    return attempt.getFailure();
  }

  private Failure failureOfThrown(Throwable error) throws InterruptedException {
    return failureOf(
        (input, resources, tracer, context) -> {
          throw OutcomesTest.<RuntimeException>unchecked(error);
        });
  }

  @SuppressWarnings("unchecked") // what throws it need not declare it
  private static <E extends Throwable> E unchecked(Throwable error) throws E {
    throw (E) error;
  }

  /** An exception that cannot even be asked what it is. */
  private static final class Unreadable extends RuntimeException {
    private static final long serialVersionUID = 1L;

    @Override
    public String getMessage() {
      throw new IllegalStateException("no message");
    }

    @Override
    public String toString() {
      throw new StackOverflowError();
    }

    @Override
    public synchronized Throwable getCause() {
      throw new IllegalStateException("no cause");
    }
  }

  private static int recurse(int depth) {
    return recurse(depth + 1) + 1;
  }

  @Test
  void exceptionThatCannotBeReadIsReported() throws Exception {
    Failure failure = failureOfThrown(new Unreadable());
    assertEquals("Unreadable", failure.getType());
    assertTrue(failure.getMessage().contains("whose message cannot be read"), failure.getMessage());
  }

  @Test
  void causeThatCannotBeReadCostsOnlyItself() throws Exception {
    Failure failure = failureOfThrown(new IllegalStateException("while", new Unreadable()));
    assertEquals("IllegalStateException", failure.getType());
    assertEquals("while", failure.getMessage());
  }

  @Test
  @SuppressWarnings("removal") // some agents still meet it
  void everyThrowableIsReportedByItsType() throws Exception {
    List<Throwable> errors = new ArrayList<>();
    errors.add(new OutOfMemoryError("Java heap space"));
    errors.add(new ThreadDeath());
    errors.add(new InterruptedException("stopped"));
    errors.add(new CancellationException("cancelled"));
    errors.add(new TimeoutException("late"));
    errors.add(new Throwable("bare"));
    for (Throwable error : errors) {
      assertEquals(error.getClass().getSimpleName(), failureOfThrown(error).getType());
    }
    assertEquals("IOException", failureOfThrown(wrapped()).getType());
    Failure overflow =
        failureOf((input, resources, tracer, context) -> recurse(context.sequenceNumber()));
    assertEquals("StackOverflowError", overflow.getType());
  }

  private static Throwable wrapped() {
    return new CompletionException(new IOException("disk"));
  }

  @Test
  void agentThatLeavesItsThreadInterruptedIsReported() throws Exception {
    Attempt attempt =
        outcomeOf(
            (input, resources, tracer, context) -> {
              Thread.currentThread().interrupt();
              return 1.0;
            });
    assertEquals(AttemptStatus.ATTEMPT_STATUS_SUCCEEDED, attempt.getStatus());
  }

  private static final class BrokenNumber extends Number {
    private static final long serialVersionUID = 1L;

    @Override
    public double doubleValue() {
      throw new UnsupportedOperationException("no double");
    }

    @Override
    public float floatValue() {
      throw new UnsupportedOperationException();
    }

    @Override
    public long longValue() {
      throw new UnsupportedOperationException();
    }

    @Override
    public int intValue() {
      throw new UnsupportedOperationException();
    }
  }

  @Test
  void rewardThatIsNoFiniteNumberIsAFailure() throws Exception {
    Map<Number, String> rewards =
        Map.of(
            Double.NaN,
            "IllegalArgumentException",
            Double.NEGATIVE_INFINITY,
            "IllegalArgumentException",
            Float.POSITIVE_INFINITY,
            "IllegalArgumentException",
            new BigDecimal("1e400"),
            "IllegalArgumentException",
            new BrokenNumber(),
            "UnsupportedOperationException");
    for (Map.Entry<Number, String> one : rewards.entrySet()) {
      Failure failure = failureOf((input, resources, tracer, context) -> one.getKey());
      assertEquals(one.getValue(), failure.getType(), failure.getMessage());
    }
    assertEquals(List.of(), server.storedSpans());
  }

  @Test
  @SuppressWarnings({"unchecked", "rawtypes"}) // as other languages of the JVM call it
  void rewardOfAnotherTypeIsAFailure() throws Exception {
    Callable answer = () -> "one";
    Callable<Number> untyped = answer;
    assertEquals(
        "ClassCastException",
        failureOf((input, resources, tracer, context) -> untyped.call()).getType());
  }

  @Test
  void loggingThatThrowsCostsNoReport() throws Exception {
    try (Warnings warnings = new Warnings(Runner.class, OutcomesTest::breakOverUnloggable)) {
      assertEquals("unloggable", failureOfThrown(new Exception("unloggable")).getMessage());
      assertEquals(1, warnings.with("cannot be printed").size());
    }
  }

  private static void breakOverUnloggable(LogRecord record) {
    Throwable thrown = record.getThrown();
    if (thrown != null && "unloggable".equals(thrown.getMessage())) {
      throw new IllegalStateException("the log is broken");
    }
  }

  @Test
  void reportThatIsRefusedIsRepeatedAsAPlainFailure() throws Exception {
    BlockingQueue<Attempt> reports = new LinkedBlockingQueue<>();
    server.onUpdate =
        request -> {
          reports.add(request.getAttempt());
          if (reports.size() == 1) {
            throw Status.INVALID_ARGUMENT
                .withDescription("attempt.failure.message: täglich")
                .asRuntimeException();
          }
        };
    Failure failure = failureOfThrown(new NonRetryableException("täglich"));
    assertEquals("NonRetryableException", next(reports, "a report").getFailure().getType());
    assertEquals("ReportRefused", failure.getType());
    assertTrue(failure.getMessage().endsWith("attempt.failure.message: t?glich"));
    assertTrue(failure.hasRetryable() && !failure.getRetryable(), "as it was");
  }

  @Test
  void reportOfSuccessThatIsRefusedIsAFailure() throws Exception {
    server.onUpdate =
        request -> {
          if (request.getAttempt().getStatus() == AttemptStatus.ATTEMPT_STATUS_SUCCEEDED) {
            throw Status.INVALID_ARGUMENT.asRuntimeException();
          }
        };
    Failure failure = failureOf((input, resources, tracer, context) -> null);
    assertEquals("ReportRefused", failure.getType());
  }
}
