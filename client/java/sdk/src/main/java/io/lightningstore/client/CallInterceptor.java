package io.lightningstore.client;

import com.google.protobuf.DescriptorProtos.MethodOptions.IdempotencyLevel;
import com.google.protobuf.Descriptors.FieldDescriptor;
import com.google.protobuf.Message;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.ConnectivityState;
import io.grpc.Context;
import io.grpc.ForwardingClientCall.SimpleForwardingClientCall;
import io.grpc.ForwardingClientCallListener.SimpleForwardingClientCallListener;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.protobuf.ProtoMethodDescriptorSupplier;
import java.nio.channels.ClosedChannelException;
import java.util.List;
import java.util.UUID;

/**
 * Intercepts every call: adds a request id to writes that need one, so that gRPC may retry them;
 * adds the token and the namespace; reconnects without delay after a lost connection; and
 * distinguishes a server that is shutting down from other failures.
 */
final class CallInterceptor implements ClientInterceptor {
  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

  private static final Metadata.Key<String> NAMESPACE =
      Metadata.Key.of("x-lightning-namespace", Metadata.ASCII_STRING_MARSHALLER);

  /** Present in every error of the server, and in no status that gRPC itself created. */
  private static final Metadata.Key<byte[]> DETAILS =
      Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);

  /** Texts of gRPC for a broken connection, if the code is not UNAVAILABLE. */
  private static final List<String> BROKEN =
      List.of("HTTP/2 error code", "http2 exception", "unexpected EOS", "missing GRPC status");

  private final ManagedChannel connection;
  private final String token;
  private final String namespace;
  private final Contact contact;

  /**
   * Creates an interceptor with the underlying connection, and a token and a namespace, or null for
   * none.
   */
  CallInterceptor(ManagedChannel connection, String token, String namespace, Contact contact) {
    this.connection = connection;
    this.token = token;
    this.namespace = namespace;
    this.contact = contact;
  }

  /** Returns an id of 122 bits from SecureRandom, which a seed cannot make repeat. */
  static String newRequestId() {
    return UUID.randomUUID().toString();
  }

  @Override
  public <Q, A> ClientCall<Q, A> interceptCall(
      MethodDescriptor<Q, A> method, CallOptions options, Channel next) {
    Context context = Context.current();
    return new SimpleForwardingClientCall<>(next.newCall(method, options)) {
      private volatile boolean cancelled;

      @Override
      public void cancel(String message, Throwable cause) {
        cancelled = true;
        super.cancel(message, cause);
      }

      @Override
      public void start(Listener<A> listener, Metadata headers) {
        if (token != null) {
          headers.put(AUTHORIZATION, "Bearer " + token);
        }
        if (namespace != null && !headers.containsKey(NAMESPACE)) { // unless the call names its own
          headers.put(NAMESPACE, namespace);
        }
        // gRPC alone waits up to two minutes before it reconnects to a server.
        if (connection.getState(false) == ConnectivityState.TRANSIENT_FAILURE) {
          connection.resetConnectBackoff();
        }
        contact.called();
        super.start(
            new SimpleForwardingClientCallListener<>(listener) {
              @Override
              public void onHeaders(Metadata answered) {
                contact.end();
                super.onHeaders(answered);
              }

              @Override
              public void onClose(Status status, Metadata trailers) {
                boolean cancelledHere = cancelled || context.isCancelled();
                super.onClose(
                    trailers.containsKey(DETAILS) ? status : meant(status, cancelledHere),
                    trailers);
              }
            },
            headers);
      }

      @Override
      public void sendMessage(Q message) {
        if (message instanceof Message request) {
          Texts.checkIds(request);
        }
        super.sendMessage(isRepeatable(method) ? message : withRequestId(message));
      }
    };
  }

  /**
   * Returns a status without details, converted to UNAVAILABLE if it is caused by a server that is
   * shutting down or a broken connection: CANCELLED of calls that reach the server at that moment,
   * HTTP/2 errors of a stream or connection that ends early, or Netty's error for data that was
   * about to be written. Returns CANCELLED if the client was closed, which is not retryable.
   */
  private Status meant(Status status, boolean cancelledHere) {
    String description = status.getDescription() == null ? "" : status.getDescription();
    return switch (status.getCode()) {
      case UNAVAILABLE ->
          connection.isShutdown()
              ? Status.CANCELLED
                  .withDescription("the client was closed")
                  .withCause(status.getCause())
              : status;
      case CANCELLED ->
          cancelledHere || connection.isShutdown()
              ? status
              : Status.UNAVAILABLE.withDescription(description).withCause(status.getCause());
      case INTERNAL, UNKNOWN, RESOURCE_EXHAUSTED ->
          BROKEN.stream().anyMatch(description::contains)
                  || status.getCause() instanceof ClosedChannelException
              ? Status.UNAVAILABLE.withDescription(description).withCause(status.getCause())
              : status;
      default -> status;
    };
  }

  /** Returns whether the contract declares that the call is safe to repeat. */
  private static boolean isRepeatable(MethodDescriptor<?, ?> method) {
    return method.getSchemaDescriptor() instanceof ProtoMethodDescriptorSupplier schema
        && schema.getMethodDescriptor().getOptions().getIdempotencyLevel()
            != IdempotencyLevel.IDEMPOTENCY_UNKNOWN;
  }

  @SuppressWarnings("unchecked") // a builder builds what it was made of
  private static <Q> Q withRequestId(Q request) {
    if (!(request instanceof Message message)) {
      return request;
    }
    FieldDescriptor field = message.getDescriptorForType().findFieldByName("request_id");
    if (field == null || !message.getField(field).equals("")) {
      return request;
    }
    return (Q) message.toBuilder().setField(field, newRequestId()).build();
  }
}
