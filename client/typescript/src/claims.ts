/** Claims of a runner: long polls that lose no claim when the server, the network or the runner fails. */

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

/** Maximum number of rollouts that one call claims. */
const MAX_CLAIMS = 1_000;
/** Additional milliseconds after which a long poll is cancelled and repeated. */
const MARGIN_MS = 10_000;
/** Milliseconds for asking what a poll had claimed when it was interrupted by a stop. */
const LAST_ANSWER_MS = 600;
const LAST_TRIES = 3;
const FIRST_DELAY_MS = 100;

/** What is claimed. */
export interface ClaimsFrom {
  /** Modes of the rollouts. Empty: any. */
  readonly modes: readonly RolloutMode[];
  /** Task queues. Empty: the default queue. */
  readonly queues: readonly string[];
}

/**
 * Claims rollouts for a worker. A claim whose response was lost is recovered by its request id, so the same
 * request is repeated unchanged until it is answered.
 */
export class Claims {
  readonly #store: LightningStore;
  readonly #workerId: string;
  readonly #waitMs: number;
  readonly #from: ClaimsFrom;
  readonly #stopped = new AbortController();

  /** `waitMs` is the duration of a long poll in milliseconds. */
  constructor(store: LightningStore, workerId: string, waitMs: number, from: ClaimsFrom) {
    this.#store = store;
    this.#workerId = workerId;
    this.#waitMs = waitMs;
    this.#from = from;
  }

  /** Interrupts the current poll. */
  stop(): void {
    this.#stopped.abort();
  }

  /**
   * Returns up to `limit` claims, or none when the wait is over. After `stop` it returns what the interrupted
   * poll had claimed. Rejects with LightningStoreError for errors that are not retryable.
   */
  async claim(limit: number): Promise<Rollout[]> {
    const request = create(DequeueRolloutsRequestSchema, {
      limit: Math.min(limit, MAX_CLAIMS),
      modes: [...this.#from.modes],
      queues: [...this.#from.queues],
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
        if (isFirst) warn("claim failed, retrying", failure);
        await pause(backoff.next(failure.retryDelayMs), signal);
      }
    }
    return this.#rescue(request);
  }

  /** A getter, because the compiler assumes that a field does not change during an await. */
  get #isStopped(): boolean {
    return this.#stopped.signal.aborted;
  }

  /** Returns what an interrupted poll had claimed. */
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
    warn("stopping; the result of the last poll is not known", failure);
    return [];
  }
}
