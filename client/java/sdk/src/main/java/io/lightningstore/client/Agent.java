package io.lightningstore.client;

import io.opentelemetry.api.trace.Tracer;

/**
 * What a {@link Runner} does with each rollout.
 *
 * @param <I> the input, as {@link Json#decode} makes it
 */
@FunctionalInterface
public interface Agent<I> {
  /**
   * Works on a rollout. Returning is success. An exception is a failure with its type and message,
   * retried as the rollout's config says; {@link NonRetryableException} is not. When the attempt is
   * cancelled, or superseded by a newer one, the thread is interrupted and {@link
   * AttemptContext#cancellation} says so; whatever such an attempt returns, it is never reported as
   * succeeded.
   *
   * @param input what is to be done
   * @param resources what the rollout points to
   * @param tracer its spans are filed under this attempt, in any thread
   * @param context the rollout, the attempt, and whether to stop
   * @return the reward, or null for none
   * @throws Exception for whatever went wrong
   */
  Number run(I input, AttemptResources resources, Tracer tracer, AttemptContext context)
      throws Exception;
}
