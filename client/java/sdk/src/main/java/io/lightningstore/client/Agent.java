package io.lightningstore.client;

import io.opentelemetry.api.trace.Tracer;

/**
 * Works on the rollouts of a {@link Runner}.
 *
 * @param <I> type of the input, decoded by {@link Json#decode}
 */
@FunctionalInterface
public interface Agent<I> {
  /**
   * Works on a rollout. An agent that returns has succeeded. An exception is a failure with its
   * type and message, which is retried according to the rollout's config unless it is a {@link
   * NonRetryableException}. When the attempt is cancelled, or superseded by a newer one, the thread
   * is interrupted and {@link AttemptContext#cancellation} is set; then the attempt is never
   * reported as succeeded.
   *
   * @param input input of the rollout
   * @param resources resources of the rollout
   * @param tracer tracer for spans of this attempt, usable in any thread
   * @param context the rollout, the attempt, and its cancellation
   * @return the reward, or null for none
   * @throws Exception the failure of the attempt
   */
  Number run(I input, AttemptResources resources, Tracer tracer, AttemptContext context)
      throws Exception;
}
