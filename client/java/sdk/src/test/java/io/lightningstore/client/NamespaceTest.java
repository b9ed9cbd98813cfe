package io.lightningstore.client;

import static io.lightningstore.client.Events.next;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.grpc.CallOptions;
import io.grpc.ClientCall;
import io.grpc.Grpc;
import io.grpc.InsecureServerCredentials;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.stub.MetadataUtils;
import io.grpc.stub.StreamObserver;
import io.lightningstore.v1.CreateNamespaceRequest;
import io.lightningstore.v1.CreateNamespaceResponse;
import io.lightningstore.v1.HeartbeatRequest;
import io.lightningstore.v1.LightningStoreServiceGrpc;
import io.lightningstore.v1.NamespaceServiceGrpc;
import io.opentelemetry.sdk.trace.SdkTracerProvider;
import io.opentelemetry.sdk.trace.export.SimpleSpanProcessor;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;

class NamespaceTest {
  private static final Metadata.Key<String> KEY =
      Metadata.Key.of("x-lightning-namespace", Metadata.ASCII_STRING_MARSHALLER);

  /** A call and the namespaces that it named. */
  private record Named(String method, List<String> namespaces) {}

  private final BlockingQueue<Named> calls = new LinkedBlockingQueue<>();
  private final ScriptedServer server = new ScriptedServer(new Recorder(calls));

  @AfterEach
  void close() {
    server.close();
  }

  private record Recorder(BlockingQueue<Named> calls) implements ServerInterceptor {
    @Override
    public <Q, A> ServerCall.Listener<Q> interceptCall(
        ServerCall<Q, A> call, Metadata headers, ServerCallHandler<Q, A> next) {
      List<String> namespaces = new ArrayList<>();
      Iterable<String> values = headers.getAll(KEY);
      if (values != null) {
        values.forEach(namespaces::add);
      }
      calls.add(new Named(call.getMethodDescriptor().getFullMethodName(), namespaces));
      return next.startCall(call, headers);
    }
  }

  private LightningStoreBuilder builder() {
    return LightningStore.builder().address(server.address());
  }

  private static HeartbeatRequest beat() {
    return HeartbeatRequest.newBuilder().setWorkerId("w").build();
  }

  private static <Q, A> void begin(LightningStore store, MethodDescriptor<Q, A> method) {
    ClientCall<Q, A> call = store.channel().newCall(method, CallOptions.DEFAULT);
    call.start(new ClientCall.Listener<>() {}, new Metadata());
    call.request(1);
    call.halfClose();
  }

  @Test
  void everyCallNamesTheNamespace() throws Exception {
    var methods = LightningStoreServiceGrpc.getServiceDescriptor().getMethods();
    try (LightningStore store = builder().namespace("run-1").build()) {
      for (MethodDescriptor<?, ?> method : methods) {
        begin(store, method);
        Named call = next(calls, method.getFullMethodName());
        assertEquals(new Named(method.getFullMethodName(), List.of("run-1")), call);
      }
    }
    assertTrue(methods.size() > 20);
  }

  @Test
  void exportersNameTheNamespace() throws Exception {
    try (LightningStore store = builder().namespace("run-1").build();
        SdkTracerProvider provider =
            SdkTracerProvider.builder()
                .addSpanProcessor(
                    SimpleSpanProcessor.create(
                        LightningStoreSpanExporter.create(store, "ro-1", "at-1")))
                .build()) {
      provider.get("test").spanBuilder("step").startSpan().end();
      provider.forceFlush().join(Events.PATIENCE_SECONDS, TimeUnit.SECONDS);
      assertEquals(
          new Named("lightningstore.v1.LightningStoreService/IngestSpans", List.of("run-1")),
          next(calls, "the spans"));
    }
  }

  @Test
  void environmentNamesTheNamespace() throws Exception {
    Process program =
        JavaProcess.start(
            Map.of("LIGHTNINGSTORE_ADDRESS", server.address(), "LIGHTNINGSTORE_NAMESPACE", "run-3"),
            EndingPrograms.class.getName(),
            "exporter");
    assertTrue(program.waitFor(Events.PATIENCE_SECONDS, TimeUnit.SECONDS));
    assertEquals(List.of("run-3"), next(calls, "the spans").namespaces());
  }

  @Test
  void clientsWithoutANamespaceNameNone() throws Exception {
    for (LightningStoreBuilder builder : List.of(builder(), builder().namespace(""))) {
      try (LightningStore store = builder.build()) {
        store.call(stub -> stub.heartbeat(beat()));
        assertEquals(List.of(), next(calls, "the call").namespaces());
      }
    }
  }

  @Test
  void callThatNamesItsOwnNamespaceNamesOnlyThat() throws Exception {
    Metadata headers = new Metadata();
    headers.put(KEY, "run-2");
    try (LightningStore store = builder().namespace("run-1").build()) {
      store.call(
          stub ->
              stub.withInterceptors(MetadataUtils.newAttachHeadersInterceptor(headers))
                  .heartbeat(beat()));
      assertEquals(List.of("run-2"), next(calls, "the call").namespaces());
    }
  }

  @Test
  void stubOfNamespacesRetriesWithARequestId() throws Exception {
    BlockingQueue<String> ids = new LinkedBlockingQueue<>();
    var service =
        new NamespaceServiceGrpc.NamespaceServiceImplBase() {
          @Override
          public void createNamespace(
              CreateNamespaceRequest request, StreamObserver<CreateNamespaceResponse> to) {
            ids.add(request.getRequestId());
            if (ids.size() == 1) {
              to.onError(ScriptedServer.away());
            } else {
              to.onNext(CreateNamespaceResponse.getDefaultInstance());
              to.onCompleted();
            }
          }
        };
    Server namespaces =
        Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create())
            .addService(service)
            .build()
            .start();
    try (LightningStore store = LightningStore.connect("127.0.0.1:" + namespaces.getPort())) {
      NamespaceServiceGrpc.newBlockingStub(store.channel())
          .createNamespace(CreateNamespaceRequest.getDefaultInstance());
    } finally {
      namespaces.shutdownNow();
    }
    String first = next(ids, "the call");
    assertNotEquals("", first);
    assertEquals(first, next(ids, "its repeat"));
  }

  @Test
  void namesAreChecked() {
    String longest = "x".repeat(63);
    for (String name : List.of("a", "0", "run-1", "a.b_c-d", longest)) {
      builder().namespace(name).build().close();
    }
    for (String name : List.of("-a", "a.", "Run", "a b", "a/b", "\u00e9", "a\n", longest + "x")) {
      LightningStoreBuilder builder = builder().namespace(name);
      String message =
          assertThrows(IllegalArgumentException.class, builder::build, name).getMessage();
      assertTrue(message.startsWith("the namespace must be 1 to 63 of a-z 0-9"), message);
    }
  }
}
