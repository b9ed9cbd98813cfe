package io.lightningstore.client;

import com.google.protobuf.FieldMask;
import io.grpc.Status;
import io.lightningstore.v1.Attempt;
import io.lightningstore.v1.AttemptStatus;
import io.lightningstore.v1.Failure;
import io.lightningstore.v1.GetAttemptRequest;
import io.lightningstore.v1.GetResourcesRequest;
import io.lightningstore.v1.GetRolloutRequest;
import io.lightningstore.v1.Resources;
import io.lightningstore.v1.StopReason;
import io.lightningstore.v1.UpdateAttemptRequest;
import io.lightningstore.v1.UpdateAttemptResponse;
import io.opentelemetry.api.trace.Tracer;
import io.opentelemetry.context.Context;
import io.opentelemetry.sdk.common.CompletableResultCode;
import java.time.Duration;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.function.Supplier;
import java.util.logging.Level;
import java.util.logging.Logger;

/** The work of a runner on its claims, from resources to report. */
final class AttemptWork<I> {
  private static final Logger logger = Logger.getLogger(Runner.class.getName());

  /** Timeout of one try of a call that is retried. */
  private static final Duration TRY = Duration.ofSeconds(5);

  private static final Duration LONGEST_PAUSE = Duration.ofSeconds(5);
  private static final Duration LAST_FLUSH = Duration.ofSeconds(1);

  /** Number of cached resources, so that a batch of rollouts loads them once. */
  private static final int KEPT_RESOURCES = 4;

  private record Version(String resourcesId, int version) {}

  /** What an agent returned (no reward: null), or why its attempt failed. */
  private record Outcome(Double reward, Failure failure) {
    boolean isSuccess() {
      return failure == null;
    }

    AttemptStatus status() {
      return isSuccess()
          ? AttemptStatus.ATTEMPT_STATUS_SUCCEEDED
          : AttemptStatus.ATTEMPT_STATUS_FAILED;
    }

    Outcome withoutReward() {
      return new Outcome(null, failure);
    }
  }

  private final LightningStore store;
  private final Class<I> inputType;
  private final Agent<I> agent;
  private final LightningStoreSpanExporter exporter;
  private final Duration outage;
  private final CountDownLatch hurried = new CountDownLatch(1);
  private final Map<Version, Resources> kept = new ConcurrentHashMap<>();
  private volatile long publishNumber;

  /** Set once the server has rejected the field of the reward, as those of earlier versions do. */
  private volatile boolean withoutRewards;

  /** Creates the work with the agent and the maximum time to retry while the server is down. */
  AttemptWork(
      LightningStore store,
      Class<I> inputType,
      Agent<I> agent,
      LightningStoreSpanExporter exporter,
      Duration outage) {
    this.store = store;
    this.inputType = inputType;
    this.agent = agent;
    this.exporter = exporter;
    this.outage = outage;
  }

  /** Returns the publish number of the resources that the agent was called with last; 0: none. */
  long publishNumber() {
    return publishNumber;
  }

  /** Stops waiting for a server that is down. */
  void hurry() {
    hurried.countDown();
  }

  /**
   * Works on a claim. Whatever is thrown before the report is reported.
   *
   * @param onReturn called when the agent has returned, before its outcome is reported
   */
  void work(Execution execution, Runnable onReturn) throws InterruptedException {
    AttemptContext context = execution.context();
    AttemptTracing tracing = null;
    Outcome outcome;
    try {
      tracing = new AttemptTracing(context, exporter);
      fetchPayloads(context);
      outcome = run(execution, resources(context), tracing.tracer());
    } catch (Throwable error) {
      outcome = failed(context, error);
    }
    onReturn.run();
    flush();
    report(context, outcome, tracing == null ? 0 : tracing.endedCount());
  }

  /** Reports a claim that cannot be worked on as failed. */
  void fail(Execution execution, Throwable why) throws InterruptedException {
    report(execution.context(), failed(execution.context(), why), 0);
  }

  /** Loads the input of a claim that was omitted from its response, as in repeated responses. */
  private void fetchPayloads(AttemptContext context) throws InterruptedException {
    if (context.rollout().getPayloadsOmitted()) {
      GetRolloutRequest request =
          GetRolloutRequest.newBuilder().setRolloutId(context.rolloutId()).build();
      context.addPayloads(
          patiently(() -> store.call(TRY, stub -> stub.getRollout(request))).getRollout());
    }
  }

  private AttemptResources resources(AttemptContext context) throws InterruptedException {
    Attempt attempt = context.attempt();
    if (attempt.getResourcesId().isEmpty()) {
      return new AttemptResources(Map.of(), attempt);
    }
    Version version = new Version(attempt.getResourcesId(), attempt.getResourcesVersion());
    Resources found = kept.get(version);
    if (found == null) {
      GetResourcesRequest request =
          GetResourcesRequest.newBuilder()
              .setResourcesId(attempt.getResourcesId())
              .setVersion(attempt.getResourcesVersion())
              .build();
      found = patiently(() -> store.call(TRY, stub -> stub.getResources(request))).getResources();
      if (kept.size() >= KEPT_RESOURCES) {
        kept.clear();
      }
      // Servers without kept versions return the current one.
      kept.put(new Version(found.getResourcesId(), found.getVersion()), found);
    }
    publishNumber = found.getPublishNumber();
    return new AttemptResources(found.getResourcesMap(), attempt);
  }

  private Outcome run(Execution execution, AttemptResources resources, Tracer tracer)
      throws InterruptedException, NonRetryableException {
    AttemptContext context = execution.context();
    if (context.cancellation().isCancelled()) {
      return cancelled(context);
    }
    I input = input(context);
    Execution.Ending ending =
        execution.run(
            () -> agent.run(input, resources, tracer, context),
            Context.root().with(Rewards.TRACER, tracer));
    if (context.cancellation().isCancelled()) {
      return cancelled(context); // whatever it returned: its outcome no longer counts
    }
    if (ending.error() != null) {
      return failed(context, ending.error());
    }
    if (ending.reward() == null) {
      return new Outcome(null, null);
    }
    double reward = ending.reward().doubleValue();
    Rewards.emit(tracer, reward);
    return new Outcome(reward, null);
  }

  private I input(AttemptContext context) throws NonRetryableException {
    try {
      return Json.decode(context.rollout().getInputJson(), inputType);
    } catch (IllegalArgumentException error) { // it will not fit another time
      throw new NonRetryableException("input: " + error.getMessage(), error);
    }
  }

  /**
   * Waits until the spans are stored or dropped, because an outcome must not be stored before them.
   */
  private void flush() throws InterruptedException {
    CompletableResultCode flushed = exporter.flush();
    CountDownLatch over = new CountDownLatch(1);
    flushed.whenComplete(over::countDown);
    long until = System.nanoTime() + outage.toNanos();
    while (!over.await(LAST_FLUSH.toNanos(), TimeUnit.NANOSECONDS)) {
      if (hurried.getCount() == 0 || System.nanoTime() - until >= 0) {
        logger.log(Level.WARNING, "reporting before all spans are stored");
        return;
      }
    }
  }

  private void report(AttemptContext context, Outcome found, long sentCount)
      throws InterruptedException {
    Cancellation cancellation = context.cancellation();
    // The server may have requested the stop during the flush. A success takes precedence over the
    // runner's own stop.
    boolean stopped =
        cancellation.reason().isPresent() || (cancellation.isCancelled() && !found.isSuccess());
    try {
      if (stopped && !isLive(context)) {
        return;
      }
      UpdateAttemptResponse answer =
          update(context, stopped ? cancelled(context) : found, sentCount);
      if (answer.getMissingSpanCount() > 0) {
        logger.log(
            Level.WARNING,
            "{0} has {1} missing span(s)",
            new Object[] {context, answer.getMissingSpanCount()});
      }
      if (answer.getStopReason() != StopReason.STOP_REASON_UNSPECIFIED) {
        context.cancellation().cancel(answer.getStopReason());
        logger.log(
            Level.INFO,
            "{0} did not decide its rollout: {1}",
            new Object[] {context, answer.getStopReason()});
      }
    } catch (LightningStoreException error) {
      logger.log(Level.WARNING, context + " was not reported", error);
    }
  }

  /** Reports an outcome. If the server rejects it, reports a minimal failure once. */
  private UpdateAttemptResponse update(AttemptContext context, Outcome outcome, long sentCount)
      throws InterruptedException {
    try {
      return updateWithReward(context, outcome, sentCount);
    } catch (LightningStoreException error) {
      if (error.code() != Status.Code.INVALID_ARGUMENT) {
        throw error;
      }
      log(context + ": the server rejected the report; reporting a minimal failure", error);
      Failure plain = Failures.ofRefusedReport(outcome.failure(), error);
      return send(context, new Outcome(null, plain), sentCount);
    }
  }

  /** Reports without the reward, which is in a span too, if the server does not know its field. */
  private UpdateAttemptResponse updateWithReward(
      AttemptContext context, Outcome outcome, long sentCount) throws InterruptedException {
    if (outcome.reward() == null || withoutRewards) {
      return send(context, outcome.withoutReward(), sentCount);
    }
    try {
      return send(context, outcome, sentCount);
    } catch (LightningStoreException error) {
      if (!Failures.isUnknownPath(error)) {
        throw error;
      }
      log("the server knows no rewards in reports, so they are in spans only", error);
      withoutRewards = true;
      return send(context, outcome.withoutReward(), sentCount);
    }
  }

  private UpdateAttemptResponse send(AttemptContext context, Outcome outcome, long sentCount)
      throws InterruptedException {
    UpdateAttemptRequest request = request(context, outcome, sentCount);
    return patiently(() -> store.call(TRY, stub -> stub.updateAttempt(request)));
  }

  private static UpdateAttemptRequest request(
      AttemptContext context, Outcome outcome, long sentCount) {
    Attempt.Builder attempt =
        Attempt.newBuilder()
            .setRolloutId(context.rolloutId())
            .setAttemptId(context.attemptId())
            .setStatus(outcome.status());
    FieldMask.Builder mask = FieldMask.newBuilder().addPaths("status");
    if (outcome.failure() != null) {
      attempt.setFailure(outcome.failure());
      mask.addPaths("failure");
    }
    if (outcome.reward() != null) {
      attempt.setReward(outcome.reward());
      mask.addPaths("reward");
    }
    return UpdateAttemptRequest.newBuilder()
        .setAttempt(attempt)
        .setUpdateMask(mask)
        .setSentSpanCount(sentCount)
        .setRequestId(CallInterceptor.newRequestId())
        .build();
  }

  /**
   * Returns whether a cancelled attempt must still be ended. An expiry set by the watchdog is kept.
   */
  private boolean isLive(AttemptContext context) throws InterruptedException {
    if (context.cancellation().reason().orElse(null) == StopReason.STOP_REASON_UNKNOWN_ATTEMPT) {
      return false;
    }
    GetAttemptRequest request =
        GetAttemptRequest.newBuilder()
            .setRolloutId(context.rolloutId())
            .setAttemptId(context.attemptId())
            .build();
    AttemptStatus status =
        patiently(() -> store.call(TRY, stub -> stub.getAttempt(request))).getAttempt().getStatus();
    return status == AttemptStatus.ATTEMPT_STATUS_PREPARING
        || status == AttemptStatus.ATTEMPT_STATUS_RUNNING;
  }

  /** Repeats a call while the server is down. */
  private <T> T patiently(Supplier<T> call) throws InterruptedException {
    long until = System.nanoTime() + outage.toNanos();
    Backoff backoff = new Backoff(LONGEST_PAUSE);
    while (true) {
      try {
        return call.get();
      } catch (LightningStoreException error) {
        if (error.code() == Status.Code.CANCELLED && Thread.interrupted()) {
          throw new InterruptedException();
        }
        if (!error.isRetryable() || System.nanoTime() - until >= 0) {
          throw error;
        }
        if (hurried.await(backoff.after(error).toNanos(), TimeUnit.NANOSECONDS)) {
          throw error;
        }
      }
    }
  }

  private static Outcome cancelled(AttemptContext context) {
    String why = context.cancellation().why();
    return new Outcome(null, Failure.newBuilder().setType("Cancelled").setMessage(why).build());
  }

  /** Logs an exception of the agent, whose own methods may throw. */
  private static void log(String what, Throwable error) {
    try {
      logger.log(Level.WARNING, what, error);
    } catch (Throwable thrown) {
      logger.log(
          Level.WARNING, "{0}: {1} cannot be printed", new Object[] {what, error.getClass()});
    }
  }

  private static Outcome failed(AttemptContext context, Throwable error) {
    if (context.cancellation().isCancelled()) {
      return cancelled(context);
    }
    log(context + " failed", error);
    return new Outcome(null, Failures.of(error));
  }
}
