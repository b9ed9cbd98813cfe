package io.lightningstore.client;

/**
 * Thrown by an {@link Agent} for a failure that another attempt cannot avoid: the rollout fails at
 * once, regardless of its retry condition. With a cause, the failure has the type of the cause.
 */
public class NonRetryableException extends Exception {
  private static final long serialVersionUID = 1L;

  /** Creates an exception with a description for people. */
  public NonRetryableException(String message) {
    super(message);
  }

  /** Creates an exception with a description for people and a cause. */
  public NonRetryableException(String message, Throwable cause) {
    super(message, cause);
  }
}
