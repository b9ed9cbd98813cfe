package io.lightningstore.client;

import io.grpc.Channel;
import io.grpc.ClientInterceptors;
import io.grpc.ManagedChannel;
import io.grpc.StatusRuntimeException;
import io.lightningstore.v1.AddResourcesRequest;
import io.lightningstore.v1.CancelRolloutsRequest;
import io.lightningstore.v1.EnqueueRolloutsRequest;
import io.lightningstore.v1.GetResourcesRequest;
import io.lightningstore.v1.GetRolloutRequest;
import io.lightningstore.v1.LightningStoreServiceGrpc;
import io.lightningstore.v1.LightningStoreServiceGrpc.LightningStoreServiceBlockingStub;
import io.lightningstore.v1.LightningStoreServiceGrpc.LightningStoreServiceFutureStub;
import io.lightningstore.v1.LightningStoreServiceGrpc.LightningStoreServiceStub;
import io.lightningstore.v1.ListTripletsRequest;
import io.lightningstore.v1.QuerySpansRequest;
import io.lightningstore.v1.Resource;
import io.lightningstore.v1.Resources;
import io.lightningstore.v1.Rollout;
import io.lightningstore.v1.RolloutSpec;
import io.lightningstore.v1.StartRolloutRequest;
import io.lightningstore.v1.UpdateAttemptRequest;
import io.lightningstore.v1.UpdateAttemptResponse;
import io.lightningstore.v1.UpdateResourcesRequest;
import io.lightningstore.v1.UpdateRolloutRequest;
import io.lightningstore.v1.WaitForRolloutsRequest;
import java.time.Duration;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.function.Function;

/**
 * A connection to a store. Thread-safe.
 *
 * <p>The methods of this class are the common calls of algorithms. They throw {@link
 * LightningStoreException}. The generated stubs ({@link #blockingStub}, {@link #futureStub}, {@link
 * #asyncStub}) offer all calls on the same connection. In both cases each write gets a request id,
 * unless the caller set one, and is retried while the server is unreachable, at most five times.
 */
public final class LightningStore implements AutoCloseable {
  private final ManagedChannel connection;
  private final Channel channel;
  private final Contact contact;
  private final Duration timeout;

  LightningStore(
      ManagedChannel connection,
      String token,
      String namespace,
      Contact contact,
      Duration timeout) {
    this.connection = connection;
    this.contact = contact;
    this.timeout = timeout;
    channel =
        ClientInterceptors.intercept(
            connection, new CallInterceptor(connection, token, namespace, contact));
  }

  /** Connects to LIGHTNINGSTORE_ADDRESS, else to 127.0.0.1:4747. */
  public static LightningStore connect() {
    return builder().build();
  }

  /**
   * Connects to a server, {@code host:port} or {@code https://host:port}.
   *
   * @throws IllegalArgumentException for an invalid address
   */
  public static LightningStore connect(String address) {
    return builder().address(address).build();
  }

  /** Returns a builder with options for address, TLS, token, namespace and timeout. */
  public static LightningStoreBuilder builder() {
    return new LightningStoreBuilder();
  }

  /**
   * Returns the builder of a rollout, for further fields of the contract.
   *
   * @param input input of the agent, encoded by {@link Json#encode}
   */
  public static RolloutSpec.Builder rollout(Object input) {
    return RolloutSpec.newBuilder().setInputJson(Json.encode("input", input));
  }

  /** Adds rollouts to the tail of the queue, all of them or, on an error, none. */
  public List<Rollout> enqueue(Collection<RolloutSpec> rollouts) {
    EnqueueRolloutsRequest request =
        EnqueueRolloutsRequest.newBuilder().addAllRollouts(rollouts).build();
    return call(stub -> stub.enqueueRollouts(request)).getRolloutsList();
  }

  /**
   * Creates a rollout and claims it at once, for a worker or, if {@code workerId} is empty, without
   * one.
   */
  public Rollout start(RolloutSpec rollout, String workerId) {
    StartRolloutRequest request =
        StartRolloutRequest.newBuilder().setRollout(rollout).setWorkerId(workerId).build();
    return call(stub -> stub.startRollout(request)).getRollout();
  }

  /** Returns a rollout with its latest attempt. */
  public Rollout getRollout(String rolloutId) {
    GetRolloutRequest request = GetRolloutRequest.newBuilder().setRolloutId(rolloutId).build();
    return call(stub -> stub.getRollout(request)).getRollout();
  }

  /** Waits for rollouts and returns each one as it finishes. The caller closes the stream. */
  public WaitStream waitFor(Collection<String> rolloutIds) {
    return waitFor(WaitForRolloutsRequest.newBuilder().addAllRolloutIds(rolloutIds).build());
  }

  /**
   * Waits for rollouts or groups, optionally with a minimum count or a timeout. The caller closes
   * the stream.
   */
  public WaitStream waitFor(WaitForRolloutsRequest request) {
    return new WaitStream(this, request);
  }

  /**
   * Returns the spans of an attempt: its id, {@code latest}, or empty for all attempts. The caller
   * closes the stream.
   */
  public SpanStream querySpans(String rolloutId, String attemptId) {
    return querySpans(
        QuerySpansRequest.newBuilder().setRolloutId(rolloutId).setAttemptId(attemptId).build());
  }

  /** Returns the spans that a query matches, in its order. The caller closes the stream. */
  public SpanStream querySpans(QuerySpansRequest request) {
    return new SpanStream(this, request);
  }

  /**
   * Returns the triplets of the rollouts' latest attempts, with default options. The caller closes
   * the stream.
   */
  public TripletStream listTriplets(Collection<String> rolloutIds) {
    return listTriplets(
        ListTripletsRequest.newBuilder()
            .addAllRolloutIds(rolloutIds)
            .setAttemptId("latest")
            .build());
  }

  /** Returns the triplets that a request selects. The caller closes the stream. */
  public TripletStream listTriplets(ListTripletsRequest request) {
    return new TripletStream(this, request);
  }

  /**
   * Stores new resources, created with {@link NewResource}, under a generated id and makes them the
   * latest.
   */
  public Resources addResources(Map<String, Resource> resources) {
    AddResourcesRequest request =
        AddResourcesRequest.newBuilder().putAllResources(resources).build();
    return call(stub -> stub.addResources(request)).getResources();
  }

  /** Replaces the resources of an id, or creates it, and makes them the latest. */
  public Resources updateResources(String resourcesId, Map<String, Resource> resources) {
    UpdateResourcesRequest request =
        UpdateResourcesRequest.newBuilder()
            .setResourcesId(resourcesId)
            .putAllResources(resources)
            .build();
    return call(stub -> stub.updateResources(request)).getResources();
  }

  /** Returns resources in their current version, or the latest resources if the id is empty. */
  public Resources getResources(String resourcesId) {
    GetResourcesRequest request =
        GetResourcesRequest.newBuilder().setResourcesId(resourcesId).build();
    return call(stub -> stub.getResources(request)).getResources();
  }

  /** Changes the fields of a rollout that the request's update mask names. */
  public Rollout updateRollout(UpdateRolloutRequest request) {
    return call(stub -> stub.updateRollout(request)).getRollout();
  }

  /** Reports the outcome of an attempt, or changes its record. */
  public UpdateAttemptResponse updateAttempt(UpdateAttemptRequest request) {
    return call(stub -> stub.updateAttempt(request));
  }

  /** Cancels rollouts and returns them. Rollouts that have already finished do not change. */
  public List<Rollout> cancel(Collection<String> rolloutIds) {
    CancelRolloutsRequest request =
        CancelRolloutsRequest.newBuilder().addAllRolloutIds(rolloutIds).build();
    return call(stub -> stub.cancelRollouts(request)).getRolloutsList();
  }

  /** Returns the connection, for other stubs. */
  public Channel channel() {
    return channel;
  }

  /** Returns the generated blocking stub. It has no default deadline. */
  public LightningStoreServiceBlockingStub blockingStub() {
    return LightningStoreServiceGrpc.newBlockingStub(channel);
  }

  /** Returns the generated stub with futures. It has no default deadline. */
  public LightningStoreServiceFutureStub futureStub() {
    return LightningStoreServiceGrpc.newFutureStub(channel);
  }

  /** Returns the generated stub with observers. It has no default deadline. */
  public LightningStoreServiceStub asyncStub() {
    return LightningStoreServiceGrpc.newStub(channel);
  }

  /** Closes the connection. Calls in progress fail. */
  @Override
  public void close() {
    contact.end();
    connection.shutdownNow();
    try {
      connection.awaitTermination(1, TimeUnit.SECONDS);
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
    }
  }

  /** Returns the maximum duration of a call, and of retries of a broken stream. */
  Duration timeout() {
    return timeout;
  }

  <T> T call(Function<LightningStoreServiceBlockingStub, T> function) {
    return call(timeout, function);
  }

  <T> T call(Duration deadline, Function<LightningStoreServiceBlockingStub, T> function) {
    try {
      return function.apply(
          blockingStub().withDeadlineAfter(deadline.toNanos(), TimeUnit.NANOSECONDS));
    } catch (StatusRuntimeException error) {
      throw LightningStoreException.from(error);
    }
  }
}
