/** The context of a function that works on a rollout, and its cancellation. */

import { AsyncLocalStorage } from "node:async_hooks";

import type { Tracer } from "@opentelemetry/api";

import { StopReason, type Attempt } from "./gen/lightningstore/v1/attempt_pb.js";
import type { Rollout } from "./gen/lightningstore/v1/rollout_pb.js";

/** The attempt must stop: the reason of `context.signal`, thrown by `context.throwIfCancelled()`. */
export class AttemptCancelled extends Error {
  override readonly name = "AttemptCancelled";
  /** The server's reason; undefined if the runner itself is stopping. */
  readonly stopReason: StopReason | undefined;

  constructor(stopReason: StopReason | undefined) {
    super(stopReason === undefined ? "the runner is stopping" : nameOf(stopReason));
    this.stopReason = stopReason;
  }
}

function nameOf(reason: StopReason): string {
  // The server may send values that this client does not know.
  const names: Readonly<Record<number, string | undefined>> = StopReason;
  return names[reason]?.toLowerCase() ?? `stop reason ${reason}`;
}

/**
 * Thrown by a function for a failure that another attempt cannot avoid: the rollout fails at once, regardless
 * of its retry condition. With a `cause`, the failure has the type of the cause.
 */
export class NonRetryable extends Error {
  override readonly name = "NonRetryable";
}

/** The attempt that a function works on. */
export class RunContext {
  /** The rollout, as claimed. */
  readonly rollout: Rollout;
  /** The claimed attempt. */
  readonly attempt: Attempt;
  /** The worker that claimed the attempt. */
  readonly workerId: string;
  readonly #controller = new AbortController();

  /** @internal */
  constructor(rollout: Rollout, attempt: Attempt, workerId: string) {
    this.rollout = rollout;
    this.attempt = attempt;
    this.workerId = workerId;
  }

  get rolloutId(): string {
    return this.attempt.rolloutId;
  }

  get attemptId(): string {
    return this.attempt.attemptId;
  }

  /** Position of the attempt among those of the rollout, counted from 1. */
  get sequenceNumber(): number {
    return this.attempt.sequenceNumber;
  }

  /**
   * Aborted, with an AttemptCancelled as reason, when the attempt must stop: it was cancelled, finished or
   * superseded, or the runner is stopped for the second time. Pass it to functions that take a signal.
   */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Throws AttemptCancelled if the attempt must stop. */
  throwIfCancelled(): void {
    this.signal.throwIfAborted();
  }

  /** The reason why the attempt must stop; undefined while it continues. */
  get cancellation(): AttemptCancelled | undefined {
    return this.signal.aborted ? (this.signal.reason as AttemptCancelled) : undefined;
  }

  /** @internal Requests the function to stop. Only the first reason is kept. */
  cancel(reason: StopReason | undefined): void {
    if (!this.signal.aborted) this.#controller.abort(new AttemptCancelled(reason));
  }
}

/** The attempt that the running code belongs to. */
export const currentAttempt = new AsyncLocalStorage<{
  readonly context: RunContext;
  readonly tracer: Tracer;
}>();
