/** Claims of a runner: long polls that lose no claim, whatever becomes of server, network or runner. */

import { randomUUID } from "node:crypto";

import { create } from "@bufbuild/protobuf";

import { Backoff, pause, warn } from "./backoff.js";
import type { LightningStore } from "./client.js";
import { toStoreError } from "./errors.js";
import {
  DequeueRolloutsRequestSchema,
  type DequeueRolloutsRequest,
} from "./gen/lightningstore/v1/claim_pb.js";
import type { Rollout, RolloutMode } from "./gen/lightningstore/v1/rollout_pb.js";
import { toDuration } from "./rollouts.js";

/** Rollouts that one call claims at most. */
const MOST_CLAIMS = 1_000;
/** Milliseconds beyond the wait after which a long poll is given up, and asked again. */
const MARGIN_MS = 10_000;
/** Milliseconds in which a poll that was broken off at a stop is asked what it had claimed. */
const LAST_ANSWER_MS = 600;
const LAST_TRIES = 3;
const FIRST_DELAY_MS = 100;

/**
 * Claims rollouts for a worker. A claim whose answer was lost is found again by its request id, so one call is
 * repeated, word for word, until it is answered.
 */
export class Claims {
  readonly #store: LightningStore;
  readonly #workerId: string;
  readonly #modes: readonly RolloutMode[];
  readonly #waitMs: number;
  readonly #stopped = new AbortController();

  /** Takes who claims what, and how many milliseconds a long poll lasts. */
  constructor(
    store: LightningStore,
    workerId: string,
    modes: readonly RolloutMode[],
    waitMs: number,
  ) {
    this.#store = store;
    this.#workerId = workerId;
    this.#modes = modes;
    this.#waitMs = waitMs;
  }

  /** Ends the poll that runs. */
  stop(): void {
    this.#stopped.abort();
  }

  /**
   * Returns up to `limit` claims; none when the wait is over. After `stop`, what the poll that it broke off
   * had claimed. Rejects with LightningStoreError for what waiting does not mend.
   */
  async claim(limit: number): Promise<Rollout[]> {
    const request = create(DequeueRolloutsRequestSchema, {
      limit: Math.min(limit, MOST_CLAIMS),
      modes: [...this.#modes],
      workerId: this.#workerId,
      wait: toDuration(this.#waitMs),
      requestId: randomUUID(),
    });
    const backoff = new Backoff(FIRST_DELAY_MS, 5_000);
    const { signal } = this.#stopped;
    for (let isFirst = true; !signal.aborted; isFirst = false) {
      try {
        const call = { timeoutMs: this.#waitMs + MARGIN_MS, signal };
        return (await this.#store.rpc.dequeueRollouts(request, call)).rollouts;
      } catch (error) {
        if (this.#isStopped) break;
        const failure = toStoreError(error);
        if (!failure.isTemporary) throw failure;
        if (isFirst) warn("no claims now, trying on", failure);
        await pause(backoff.next(failure.retryDelayMs), signal);
      }
    }
    return this.#rescue(request);
  }

  /** A getter, for the compiler believes that nothing changes across an await. */
  get #isStopped(): boolean {
    return this.#stopped.signal.aborted;
  }

  /** Returns what a poll had claimed that was broken off. */
  async #rescue(request: DequeueRolloutsRequest): Promise<Rollout[]> {
    let failure: unknown;
    for (let tries = 0; tries < LAST_TRIES; tries++) {
      try {
        const call = { timeoutMs: LAST_ANSWER_MS };
        return (await this.#store.rpc.dequeueRollouts(request, call)).rollouts;
      } catch (error) {
        failure = error;
        await pause(FIRST_DELAY_MS);
      }
    }
    warn("stopping without knowing what the last poll claimed", failure);
    return [];
  }
}
