/** What a function that works on a rollout knows of it, and how it learns that it should stop. */

import { AsyncLocalStorage } from "node:async_hooks";

import type { Tracer } from "@opentelemetry/api";

import { StopReason, type Attempt } from "./gen/lightningstore/v1/attempt_pb.js";
import type { Rollout } from "./gen/lightningstore/v1/rollout_pb.js";

/** The attempt is to stop: the reason of `context.signal`, thrown by `context.throwIfCancelled()`. */
export class AttemptCancelled extends Error {
  override readonly name = "AttemptCancelled";
  /** Why, if the server said so; undefined if it is the runner that stops. */
  readonly stopReason: StopReason | undefined;

  constructor(stopReason: StopReason | undefined) {
    super(stopReason === undefined ? "the runner stops" : nameOf(stopReason));
    this.stopReason = stopReason;
  }
}

function nameOf(reason: StopReason): string {
  // More values may come than this client knows.
  const names: Readonly<Record<number, string | undefined>> = StopReason;
  return names[reason]?.toLowerCase() ?? `stop reason ${reason}`;
}

/**
 * Thrown by a function for what another attempt would not do better: the rollout then fails at once,
 * whatever its retry condition. With a `cause` the failure bears the type of that.
 */
export class NonRetryable extends Error {
  override readonly name = "NonRetryable";
}

/** What a function that works on a rollout knows of it. */
export class RunContext {
  /** The rollout, as it was claimed. */
  readonly rollout: Rollout;
  /** The claim that is being worked on. */
  readonly attempt: Attempt;
  /** The worker that claimed it. */
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

  /** Counts the attempts at the rollout, from 1. */
  get sequenceNumber(): number {
    return this.attempt.sequenceNumber;
  }

  /**
   * Aborted, with an AttemptCancelled as reason, when the attempt is to stop: it was cancelled, finished or
   * superseded, or the runner is stopped for the second time. Hand it to whatever takes a signal.
   */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Throws AttemptCancelled if the attempt is to stop. */
  throwIfCancelled(): void {
    this.signal.throwIfAborted();
  }

  /** Why the attempt is to stop; undefined while it goes on. */
  get cancellation(): AttemptCancelled | undefined {
    return this.signal.aborted ? (this.signal.reason as AttemptCancelled) : undefined;
  }

  /** @internal Tells the function to stop; the first word counts. */
  cancel(reason: StopReason | undefined): void {
    if (!this.signal.aborted) this.#controller.abort(new AttemptCancelled(reason));
  }
}

/** The attempt that the running code works on. */
export const currentAttempt = new AsyncLocalStorage<{
  readonly context: RunContext;
  readonly tracer: Tracer;
}>();
