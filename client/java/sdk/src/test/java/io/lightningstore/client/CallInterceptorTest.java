package io.lightningstore.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptors;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.lightningstore.v1.GetRolloutRequest;
import io.lightningstore.v1.LightningStoreServiceGrpc;
import java.nio.channels.ClosedChannelException;
import java.util.List;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;

class CallInterceptorTest {
  private final ManagedChannel connection =
      ManagedChannelBuilder.forTarget("localhost:1").usePlaintext().build();

  @AfterEach
  void close() {
    connection.shutdownNow();
  }

  /** Returns the status that the caller of a call with this end gets. */
  private Status.Code codeOf(Status status, Metadata trailers) {
    Channel ending =
        new Channel() {
          @Override
          public <Q, A> ClientCall<Q, A> newCall(
              MethodDescriptor<Q, A> method, CallOptions options) {
            return new EndedCall<>(status, trailers);
          }

          @Override
          public String authority() {
            return "nobody";
          }
        };
    Contact contact = new Contact("localhost:1", () -> true);
    Channel channel =
        ClientInterceptors.intercept(ending, new CallInterceptor(connection, null, null, contact));
    return assertThrows(
            StatusRuntimeException.class,
            () ->
                LightningStoreServiceGrpc.newBlockingStub(channel)
                    .getRollout(GetRolloutRequest.getDefaultInstance()))
        .getStatus()
        .getCode();
  }

  private static final class EndedCall<Q, A> extends ClientCall<Q, A> {
    private final Status status;
    private final Metadata trailers;

    EndedCall(Status status, Metadata trailers) {
      this.status = status;
      this.trailers = trailers;
    }

    @Override
    public void start(Listener<A> listener, Metadata headers) {
      listener.onClose(status, trailers);
    }

    @Override
    public void request(int messages) {}

    @Override
    public void cancel(String message, Throwable cause) {}

    @Override
    public void halfClose() {}

    @Override
    public void sendMessage(Q message) {}
  }

  private static final List<Status> BROKEN =
      List.of(
          Status.UNAVAILABLE.withDescription("io exception"),
          Status.CANCELLED.withDescription("the server is shutting down"),
          Status.INTERNAL.withDescription("RST_STREAM closed stream. HTTP/2 error code: CANCEL"),
          Status.INTERNAL.withDescription(
              "Connection closed after GOAWAY. HTTP/2 error code: INTERNAL_ERROR"),
          Status.RESOURCE_EXHAUSTED.withDescription(
              "Connection closed after GOAWAY. HTTP/2 error code: ENHANCE_YOUR_CALM"),
          Status.INTERNAL.withDescription("Received unexpected EOS on empty DATA frame"),
          Status.UNKNOWN.withDescription("missing GRPC status in response"),
          Status.INTERNAL.withDescription("http2 exception"),
          // As Netty words it for a message that was on its way when the connection broke.
          Status.UNKNOWN.withDescription("channel closed").withCause(new ClosedChannelException()));

  @Test
  void whatABrokenConnectionMakesOfCallsIsUnavailable() {
    for (Status status : BROKEN) {
      assertEquals(Status.Code.UNAVAILABLE, codeOf(status, new Metadata()), status.toString());
    }
  }

  @Test
  void whatTheServerSaysItselfIsLeftAlone() {
    List<Status> said =
        List.of(
            Status.INTERNAL.withDescription("a defect"),
            Status.UNKNOWN.withDescription("channel closed"),
            Status.RESOURCE_EXHAUSTED.withDescription("gRPC message exceeds maximum size"),
            Status.NOT_FOUND.withDescription("nobody"));
    for (Status status : said) {
      assertEquals(status.getCode(), codeOf(status, new Metadata()), status.toString());
    }
    Metadata details = new Metadata();
    details.put(
        Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER), new byte[0]);
    for (Status status : BROKEN) {
      assertEquals(status.getCode(), codeOf(status, details), status.toString());
    }
  }
}
