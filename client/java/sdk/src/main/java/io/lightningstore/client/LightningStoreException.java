package io.lightningstore.client;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/** The failure of a call, with the details from the server. */
public final class LightningStoreException extends RuntimeException {
  private static final long serialVersionUID = 1L;

  /**
   * A field of the request with an invalid value.
   *
   * @param field path of the field, for example {@code rollouts[0].input_json}
   * @param description description for people
   */
  public record FieldViolation(String field, String description) {}

  private final Status.Code code;
  private final transient ErrorInfo info;
  private final transient List<FieldViolation> fieldViolations;
  private final Duration retryDelay;

  private LightningStoreException(Status status, com.google.rpc.Status details, Throwable cause) {
    super(describe(status), cause);
    code = status.getCode();
    ErrorInfo foundInfo = ErrorInfo.getDefaultInstance();
    List<FieldViolation> foundFields = List.of();
    Duration foundDelay = null;
    for (Any detail : details.getDetailsList()) {
      try {
        if (detail.is(ErrorInfo.class)) {
          foundInfo = detail.unpack(ErrorInfo.class);
        } else if (detail.is(BadRequest.class)) {
          foundFields = violations(detail.unpack(BadRequest.class));
        } else if (detail.is(RetryInfo.class)) {
          foundDelay = Protos.toJava(detail.unpack(RetryInfo.class).getRetryDelay());
        }
      } catch (InvalidProtocolBufferException malformed) {
        addSuppressed(malformed); // the status itself still holds
      }
    }
    info = foundInfo;
    fieldViolations = foundFields;
    retryDelay = foundDelay;
  }

  /**
   * Returns the exception for a failed call of a generated stub.
   *
   * @param error what the stub threw, or what its future or observer received; any other throwable
   *     becomes an error with code UNKNOWN
   */
  public static LightningStoreException from(Throwable error) {
    if (error instanceof LightningStoreException known) {
      return known;
    }
    com.google.rpc.Status details = StatusProto.fromThrowable(error);
    return new LightningStoreException(
        Status.fromThrowable(error),
        details == null ? com.google.rpc.Status.getDefaultInstance() : details,
        error);
  }

  static LightningStoreException of(Status.Code code, String message) {
    return from(new StatusRuntimeException(code.toStatus().withDescription(message)));
  }

  private static String describe(Status status) {
    String text = status.getDescription() == null ? "" : ": " + status.getDescription();
    return status.getCode() + text;
  }

  private static List<FieldViolation> violations(BadRequest request) {
    return request.getFieldViolationsList().stream()
        .map(one -> new FieldViolation(one.getField(), one.getDescription()))
        .toList();
  }

  /** Returns gRPC's status code. */
  public Status.Code code() {
    return code;
  }

  /**
   * Returns the name of an {@link io.lightningstore.v1.ErrorReason}. Empty if the server did not
   * send one or never received the call.
   */
  public String reason() {
    return info == null ? "" : info.getReason();
  }

  /** Returns the domain of the reason: {@code lightningstore}, or empty. */
  public String domain() {
    return info == null ? "" : info.getDomain();
  }

  /** Returns the values that the message names, by the keys that ErrorReason documents. */
  public Map<String, String> metadata() {
    return info == null ? Map.of() : info.getMetadataMap();
  }

  /** Returns the invalid fields of the request. */
  public List<FieldViolation> fieldViolations() {
    return fieldViolations == null ? List.of() : fieldViolations;
  }

  /** Returns the minimum delay before a retry, if the server requested one. */
  public Optional<Duration> retryDelay() {
    return Optional.ofNullable(retryDelay);
  }

  /**
   * Returns whether a retry may succeed: the server is down or too slow, or has requested a delay.
   */
  boolean isRetryable() {
    return code == Status.Code.UNAVAILABLE
        || code == Status.Code.DEADLINE_EXCEEDED
        || retryDelay != null;
  }
}
