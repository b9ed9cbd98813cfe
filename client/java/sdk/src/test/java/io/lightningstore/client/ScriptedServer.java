package io.lightningstore.client;

import com.google.protobuf.ByteString;
import io.grpc.InsecureServerCredentials;
import io.grpc.Server;
import io.grpc.ServerCredentials;
import io.grpc.ServerInterceptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.StreamObserver;
import io.lightningstore.v1.Attempt;
import io.lightningstore.v1.AttemptStatus;
import io.lightningstore.v1.DequeueRolloutsRequest;
import io.lightningstore.v1.DequeueRolloutsResponse;
import io.lightningstore.v1.EnqueueRolloutsRequest;
import io.lightningstore.v1.EnqueueRolloutsResponse;
import io.lightningstore.v1.GetAttemptRequest;
import io.lightningstore.v1.GetAttemptResponse;
import io.lightningstore.v1.GetResourcesRequest;
import io.lightningstore.v1.GetResourcesResponse;
import io.lightningstore.v1.GetRolloutRequest;
import io.lightningstore.v1.GetRolloutResponse;
import io.lightningstore.v1.HeartbeatRequest;
import io.lightningstore.v1.HeartbeatResponse;
import io.lightningstore.v1.IngestResult;
import io.lightningstore.v1.IngestSpansRequest;
import io.lightningstore.v1.IngestSpansResponse;
import io.lightningstore.v1.LightningStoreServiceGrpc.LightningStoreServiceImplBase;
import io.lightningstore.v1.ListTripletsRequest;
import io.lightningstore.v1.ListTripletsResponse;
import io.lightningstore.v1.QuerySpansRequest;
import io.lightningstore.v1.QuerySpansResponse;
import io.lightningstore.v1.Resources;
import io.lightningstore.v1.Rollout;
import io.lightningstore.v1.RolloutConfig;
import io.lightningstore.v1.SpanBatch;
import io.lightningstore.v1.UpdateAttemptRequest;
import io.lightningstore.v1.UpdateAttemptResponse;
import io.lightningstore.v1.WaitForRolloutsRequest;
import io.lightningstore.v1.WaitForRolloutsResponse;
import io.opentelemetry.proto.trace.v1.Span;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.concurrent.BlockingDeque;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.LinkedBlockingDeque;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.function.BiConsumer;
import java.util.function.Consumer;
import java.util.function.Function;
import java.util.function.Supplier;

/**
 * A server that answers as a test says; what a script throws is the answer too. What is not
 * scripted has a harmless default: one claim of each rollout in the queue, no stops.
 */
final class ScriptedServer extends LightningStoreServiceImplBase implements AutoCloseable {
  volatile Function<DequeueRolloutsRequest, DequeueRolloutsResponse> onDequeue;
  volatile Function<HeartbeatRequest, HeartbeatResponse> onHeartbeat =
      request -> HeartbeatResponse.getDefaultInstance();
  volatile Function<List<SpanBatch>, IngestResult> onIngest = this::keep;
  volatile Consumer<UpdateAttemptRequest> onUpdate = request -> {};
  volatile Function<EnqueueRolloutsRequest, EnqueueRolloutsResponse> onEnqueue;
  volatile Function<GetRolloutRequest, Rollout> onGetRollout;
  volatile Function<GetResourcesRequest, Resources> onGetResources;
  volatile BiConsumer<WaitForRolloutsRequest, StreamObserver<WaitForRolloutsResponse>> onWait;
  volatile BiConsumer<QuerySpansRequest, StreamObserver<QuerySpansResponse>> onQuery;
  volatile BiConsumer<ListTripletsRequest, StreamObserver<ListTripletsResponse>> onTriplets;

  /** Rollouts to be claimed. */
  final BlockingDeque<Rollout> queue = new LinkedBlockingDeque<>();

  /** A wait that the test answers. {@code cancelled} is completed when the client ends it. */
  record Wait(
      Set<String> rolloutIds,
      StreamObserver<WaitForRolloutsResponse> stream,
      CompletableFuture<Void> cancelled) {}

  /** Waits without a script, which stay open. */
  final BlockingQueue<Wait> waits = new LinkedBlockingQueue<>();

  /** Outcomes that were reported. */
  final BlockingQueue<UpdateAttemptRequest> updates = new LinkedBlockingQueue<>();

  /** What happened, in order. */
  final List<String> notes = new CopyOnWriteArrayList<>();

  private final Server server;

  ScriptedServer(ServerInterceptor... interceptors) {
    this(InsecureServerCredentials.create(), interceptors);
  }

  ScriptedServer(ServerCredentials credentials, ServerInterceptor... interceptors) {
    NettyServerBuilder builder =
        NettyServerBuilder.forPort(0, credentials).maxInboundMessageSize(64 << 20).addService(this);
    for (ServerInterceptor interceptor : interceptors) {
      builder.intercept(interceptor);
    }
    try {
      server = builder.build().start();
    } catch (IOException error) {
      throw new UncheckedIOException(error);
    }
  }

  static StatusRuntimeException away() {
    return Status.UNAVAILABLE.withDescription("away").asRuntimeException();
  }

  static Rollout claimOf(String rolloutId, String input) {
    return Rollout.newBuilder()
        .setRolloutId(rolloutId)
        .setInputJson(ByteString.copyFromUtf8(input))
        .setConfig(RolloutConfig.newBuilder().setMaxAttempts(1))
        .setLatestAttempt(
            Attempt.newBuilder().setRolloutId(rolloutId).setAttemptId("at-1").setSequenceNumber(1))
        .build();
  }

  static DequeueRolloutsResponse claims(Rollout... rollouts) {
    return DequeueRolloutsResponse.newBuilder().addAllRollouts(List.of(rollouts)).build();
  }

  String address() {
    return "127.0.0.1:" + server.getPort();
  }

  LightningStore connect() {
    return LightningStore.connect(address());
  }

  /** Returns the names of the stored spans. */
  List<String> storedSpans() {
    return notes.stream()
        .filter(note -> note.startsWith("span "))
        .map(note -> note.substring("span ".length()))
        .toList();
  }

  /** Stores spans as the server does. */
  IngestResult keep(List<SpanBatch> batches) {
    long count = 0;
    for (SpanBatch batch : batches) {
      for (Span span : batch.getSpansList()) {
        notes.add("span " + span.getName());
        count++;
      }
    }
    return IngestResult.newBuilder().setAcceptedCount(count).build();
  }

  /** Ends at once, as a server that crashes. */
  @Override
  public void close() {
    server.shutdownNow();
  }

  private static <A> void answer(StreamObserver<A> to, Supplier<A> script) {
    try {
      to.onNext(script.get());
      to.onCompleted();
    } catch (StatusRuntimeException error) {
      to.onError(error);
    }
  }

  private static <A> void stream(StreamObserver<A> to, Runnable script) {
    try {
      script.run();
      to.onCompleted();
    } catch (StatusRuntimeException error) {
      to.onError(error);
    }
  }

  @Override
  public void dequeueRollouts(
      DequeueRolloutsRequest request, StreamObserver<DequeueRolloutsResponse> to) {
    answer(to, () -> onDequeue != null ? onDequeue.apply(request) : poll(to));
  }

  private DequeueRolloutsResponse poll(StreamObserver<DequeueRolloutsResponse> to) {
    try {
      Rollout found = queue.poll(300, TimeUnit.MILLISECONDS); // a short long poll
      if (found == null) {
        return claims();
      }
      if (((ServerCallStreamObserver<?>) to).isCancelled()) {
        queue.addFirst(found);
        throw Status.CANCELLED.asRuntimeException();
      }
      return claims(found);
    } catch (InterruptedException closed) {
      throw away();
    }
  }

  @Override
  public void heartbeat(HeartbeatRequest request, StreamObserver<HeartbeatResponse> to) {
    answer(to, () -> onHeartbeat.apply(request));
  }

  @Override
  public void getRollout(GetRolloutRequest request, StreamObserver<GetRolloutResponse> to) {
    answer(
        to, () -> GetRolloutResponse.newBuilder().setRollout(onGetRollout.apply(request)).build());
  }

  @Override
  public void getResources(GetResourcesRequest request, StreamObserver<GetResourcesResponse> to) {
    if (onGetResources == null) {
      super.getResources(request, to);
      return;
    }
    answer(
        to,
        () ->
            GetResourcesResponse.newBuilder().setResources(onGetResources.apply(request)).build());
  }

  @Override
  public void getAttempt(GetAttemptRequest request, StreamObserver<GetAttemptResponse> to) {
    Attempt running =
        Attempt.newBuilder()
            .setRolloutId(request.getRolloutId())
            .setAttemptId(request.getAttemptId())
            .setStatus(AttemptStatus.ATTEMPT_STATUS_RUNNING)
            .build();
    answer(to, () -> GetAttemptResponse.newBuilder().setAttempt(running).build());
  }

  @Override
  public StreamObserver<IngestSpansRequest> ingestSpans(StreamObserver<IngestSpansResponse> to) {
    List<SpanBatch> batches = new ArrayList<>();
    return new StreamObserver<>() {
      @Override
      public void onNext(IngestSpansRequest request) {
        batches.add(request.getBatch());
      }

      @Override
      public void onError(Throwable error) {
        notes.add("ingest cut off");
      }

      @Override
      public void onCompleted() {
        answer(
            to, () -> IngestSpansResponse.newBuilder().setResult(onIngest.apply(batches)).build());
      }
    };
  }

  @Override
  public void updateAttempt(
      UpdateAttemptRequest request, StreamObserver<UpdateAttemptResponse> to) {
    answer(
        to,
        () -> {
          onUpdate.accept(request);
          notes.add("update " + request.getAttempt().getStatus());
          updates.add(request);
          return UpdateAttemptResponse.newBuilder().setAttempt(request.getAttempt()).build();
        });
  }

  @Override
  public void enqueueRollouts(
      EnqueueRolloutsRequest request, StreamObserver<EnqueueRolloutsResponse> to) {
    answer(to, () -> onEnqueue.apply(request));
  }

  @Override
  public void waitForRollouts(
      WaitForRolloutsRequest request, StreamObserver<WaitForRolloutsResponse> to) {
    if (onWait != null) {
      stream(to, () -> onWait.accept(request, to));
      return;
    }
    CompletableFuture<Void> cancelled = new CompletableFuture<>();
    ((ServerCallStreamObserver<?>) to).setOnCancelHandler(() -> cancelled.complete(null));
    waits.add(new Wait(Set.copyOf(request.getRolloutIdsList()), to, cancelled));
  }

  @Override
  public void querySpans(QuerySpansRequest request, StreamObserver<QuerySpansResponse> to) {
    stream(to, () -> onQuery.accept(request, to));
  }

  @Override
  public void listTriplets(ListTripletsRequest request, StreamObserver<ListTripletsResponse> to) {
    stream(to, () -> onTriplets.accept(request, to));
  }
}
