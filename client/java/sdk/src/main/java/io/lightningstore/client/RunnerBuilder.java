package io.lightningstore.client;

import io.lightningstore.v1.RolloutMode;
import java.net.InetAddress;
import java.net.UnknownHostException;
import java.time.Duration;
import java.util.List;
import java.util.Objects;

/**
 * Says how a {@link Runner} works; {@link #build} makes it.
 *
 * @param <I> the input of the agent
 */
public final class RunnerBuilder<I> {
  final LightningStore store;
  final Class<I> inputType;
  final Agent<I> agent;
  String workerId = newWorkerId();
  int concurrency = 1;
  List<RolloutMode> modes = List.of();
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

  /** Sets what the runner is called. Default: made of host name, process id and chance. */
  public RunnerBuilder<I> workerId(String value) {
    workerId = Objects.requireNonNull(value, "workerId");
    return this;
  }

  /** Sets how many rollouts are worked on at a time. Default: 1. */
  public RunnerBuilder<I> concurrency(int value) {
    if (value < 1) {
      throw new IllegalArgumentException("concurrency must be at least 1, not " + value);
    }
    concurrency = value;
    return this;
  }

  /**
   * Claims only rollouts of these modes; ROLLOUT_MODE_UNSPECIFIED for those without one. Default:
   * all.
   */
  public RunnerBuilder<I> modes(RolloutMode... values) {
    modes = List.of(values);
    return this;
  }

  /** Ends the runner after so many rollouts. Default: never. */
  public RunnerBuilder<I> maxRollouts(long value) {
    if (value < 0) {
      throw new IllegalArgumentException("maxRollouts must not be negative: " + value);
    }
    maxRollouts = value;
    return this;
  }

  /**
   * Sets the time between two heartbeats; a third of the shortest unresponsive timeout of what
   * runs, if that is less. Default: 10 seconds.
   */
  public RunnerBuilder<I> heartbeatPeriod(Duration value) {
    if (value.isNegative() || value.isZero()) {
      throw new IllegalArgumentException("a heartbeat period must be positive, not " + value);
    }
    heartbeatPeriod = value;
    return this;
  }

  /** Sets for how long a result waits for a server that is away. Default: 10 minutes. */
  public RunnerBuilder<I> outage(Duration value) {
    outage = Objects.requireNonNull(value, "outage");
    return this;
  }

  /** Makes the runner. */
  public Runner build() {
    return new Runner(this);
  }
}
