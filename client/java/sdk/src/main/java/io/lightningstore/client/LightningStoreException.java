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

/** A call that failed, with all that the server said about it. */
public final class LightningStoreException extends RuntimeException {
  private static final long serialVersionUID = 1L;

  /**
   * A field of the request that is wrong.
   *
   * @param field path of the field, {@code rollouts[0].input_json} for instance
   * @param description what is wrong with it, for people
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
   * Returns what a failed call of a generated stub says.
   *
   * @param error what the stub threw, or what its future or observer was given; any other throwable
   *     becomes an error of code UNKNOWN
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
   * Returns why the call failed, as the name of an {@link io.lightningstore.v1.ErrorReason}. Empty
   * where the server never saw the call, or did not say.
   */
  public String reason() {
    return info == null ? "" : info.getReason();
  }

  /** Returns who gave the reason: {@code lightningstore}, or empty. */
  public String domain() {
    return info == null ? "" : info.getDomain();
  }

  /** Returns what the message names, by the keys that ErrorReason documents. */
  public Map<String, String> metadata() {
    return info == null ? Map.of() : info.getMetadataMap();
  }

  /** Returns the fields of the request that are wrong. */
  public List<FieldViolation> fieldViolations() {
    return fieldViolations == null ? List.of() : fieldViolations;
  }

  /**
   * Returns how long the server wants to be left alone before the call is repeated, if it said so.
   */
  public Optional<Duration> retryDelay() {
    return Optional.ofNullable(retryDelay);
  }

  /**
   * Tells whether waiting may mend it: the server is away, too slow, or told when to come again.
   */
  boolean mends() {
    return code == Status.Code.UNAVAILABLE
        || code == Status.Code.DEADLINE_EXCEEDED
        || retryDelay != null;
  }
}
