package io.lightningstore.client;

import io.lightningstore.v1.RolloutMode;
import java.net.InetAddress;
import java.net.UnknownHostException;
import java.time.Duration;
import java.util.List;
import java.util.Objects;
import java.util.function.LongSupplier;

/**
 * Options of a {@link Runner}; {@link #build} creates it.
 *
 * @param <I> type of the agent's input
 */
public final class RunnerBuilder<I> {
  final LightningStore store;
  final Class<I> inputType;
  final Agent<I> agent;
  String workerId = newWorkerId();
  int concurrency = 1;
  List<RolloutMode> modes = List.of();
  List<String> queues = List.of();
  LongSupplier publishNumber;
  long maxRollouts = Long.MAX_VALUE;
  Duration heartbeatPeriod = Duration.ofSeconds(10);
  Duration outage = Duration.ofMinutes(10);

  RunnerBuilder(LightningStore store, Class<I> inputType, Agent<I> agent) {
    this.store = Objects.requireNonNull(store, "store");
    this.inputType = Objects.requireNonNull(inputType, "inputType");
    this.agent = Objects.requireNonNull(agent, "agent");
  }

  private static String newWorkerId() {
    String host;
    try {
      host = InetAddress.getLocalHost().getHostName();
    } catch (UnknownHostException nameless) {
      host = "java";
    }
    String id =
        String.format(
            "%s-%d-%s",
            host, ProcessHandle.current().pid(), CallInterceptor.newRequestId().substring(0, 6));
    return id.substring(Math.max(0, id.length() - 256)); // what the contract allows
  }

  /** Sets the id of the worker. Default: generated from host name, process id and random digits. */
  public RunnerBuilder<I> workerId(String value) {
    workerId = Objects.requireNonNull(value, "workerId");
    return this;
  }

  /** Sets the maximum number of rollouts at a time. Default: 1. */
  public RunnerBuilder<I> concurrency(int value) {
    if (value < 1) {
      throw new IllegalArgumentException("concurrency must be at least 1, not " + value);
    }
    concurrency = value;
    return this;
  }

  /**
   * Claims only rollouts with these modes; ROLLOUT_MODE_UNSPECIFIED matches those without a mode.
   * Default: all.
   */
  public RunnerBuilder<I> modes(RolloutMode... values) {
    modes = List.of(values);
    return this;
  }

  /**
   * Sets the task queues to claim from; "" is the default queue. Default: the default queue only.
   */
  public RunnerBuilder<I> queues(String... values) {
    queues = List.of(values);
    return this;
  }

  /** Sets the number of rollouts after which the runner ends. Default: no limit. */
  public RunnerBuilder<I> maxRollouts(long value) {
    if (value < 0) {
      throw new IllegalArgumentException("maxRollouts must not be negative: " + value);
    }
    maxRollouts = value;
    return this;
  }

  /**
   * Sets the maximum time between heartbeats, which is reduced to a third of the shortest
   * unresponsive timeout of the running attempts. Default: 10 seconds.
   */
  public RunnerBuilder<I> heartbeatPeriod(Duration value) {
    if (value.isNegative() || value.isZero()) {
      throw new IllegalArgumentException("a heartbeat period must be positive, not " + value);
    }
    heartbeatPeriod = value;
    return this;
  }

  /**
   * Sets what returns the publish number that heartbeats report, such as that of the weights which
   * the worker's model has loaded; 0: unchanged. It is called by the thread of the heartbeats.
   * Default: that of the resources which the agent was called with last.
   */
  public RunnerBuilder<I> publishNumber(LongSupplier value) {
    publishNumber = Objects.requireNonNull(value, "publishNumber");
    return this;
  }

  /** Sets the maximum time to retry a report while the server is down. Default: 10 minutes. */
  public RunnerBuilder<I> outage(Duration value) {
    outage = Objects.requireNonNull(value, "outage");
    return this;
  }

  /** Creates the runner. */
  public Runner build() {
    return new Runner(this);
  }
}
