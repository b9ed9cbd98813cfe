package io.lightningstore.client;

/**
 * Thrown by an {@link Agent} for what another attempt would not do better: the rollout then fails
 * at once, whatever its retry condition. With a cause, the failure bears the cause's type.
 */
public class NonRetryableException extends Exception {
  private static final long serialVersionUID = 1L;

  /** Takes what a person should read. */
  public NonRetryableException(String message) {
    super(message);
  }

  /** Takes what a person should read, and what went wrong. */
  public NonRetryableException(String message, Throwable cause) {
    super(message, cause);
  }
}
