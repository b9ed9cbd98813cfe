/** Heartbeats of a runner: one call for all its attempts. */

import { pause, warn } from "./backoff.js";
import type { LightningStore } from "./client.js";
import type { RunContext } from "./context.js";
import type { Stop } from "./gen/lightningstore/v1/attempt_pb.js";
import { encodeJson } from "./json.js";
import { fromDuration } from "./rollouts.js";

/** Heartbeats per unresponsive timeout, so that one or two may get lost. */
const BEATS_PER_TIMEOUT = 3;
const SHORTEST_PERIOD_MS = 50;
/** Attempts per call. A server may limit them to 10,000 or fewer. */
const ATTEMPTS_PER_BEAT = 1_000;
/** Milliseconds between two tries while the server does not answer. */
const RETRY_MS = 1_000;

/** Options of heartbeats. */
export interface HeartbeatOptions {
  readonly store: LightningStore;
  readonly workerId: string;
  /** Maximum milliseconds between heartbeats, reduced by a short unresponsive timeout. */
  readonly periodMs: number;
  readonly onStop: (stop: Stop) => void;
  /** The worker's statistics. */
  readonly stats: () => object;
  /** The publish number to report; undefined: none. */
  readonly publishNumber: () => bigint | number | undefined;
}

/** Sends the heartbeats of a worker and of its attempts. */
export class Heartbeats {
  readonly #options: HeartbeatOptions;
  readonly #attempts = new Map<RunContext, number>();
  readonly #ended = new AbortController();
  #changed = new AbortController();
  #isFailing = false;
  #isHurried = false;

  constructor(options: HeartbeatOptions) {
    this.#options = options;
  }

  /** Sends heartbeats until `stop`. */
  async run(): Promise<void> {
    let last = -Infinity;
    while (!this.#ended.signal.aborted) {
      const left = last + this.#period() - performance.now();
      if (left > 0 && !this.#isHurried) {
        this.#changed = new AbortController();
        await pause(left, this.#changed.signal);
        continue;
      }
      this.#isHurried = false;
      last = performance.now();
      const period = this.#period();
      // After a failure the next heartbeat is due earlier.
      if (!(await this.#beat(period)))
        last = performance.now() - period + Math.min(period, RETRY_MS);
    }
  }

  /** Stops the heartbeats. */
  stop(): void {
    this.#ended.abort();
    this.#changed.abort();
  }

  /** Sends the next heartbeat now, because its response explains what has happened. */
  hurry(): void {
    this.#isHurried = true;
    this.#changed.abort();
  }

  /** Includes an attempt in the heartbeats. */
  add(context: RunContext): void {
    const silence = context.rollout.config?.unresponsiveTimeout;
    const third = silence ? fromDuration(silence) / BEATS_PER_TIMEOUT : Infinity;
    this.#attempts.set(
      context,
      Math.max(Math.min(this.#options.periodMs, third), SHORTEST_PERIOD_MS),
    );
    this.#changed.abort();
  }

  /** Excludes an attempt from the heartbeats. */
  remove(context: RunContext): void {
    this.#attempts.delete(context);
  }

  #period(): number {
    return Math.min(this.#options.periodMs, ...this.#attempts.values());
  }

  /** Sends one heartbeat. The loop continues after a failure, because the server may come back. */
  async #beat(periodMs: number): Promise<boolean> {
    const { store, workerId, onStop, stats, publishNumber: loaded } = this.#options;
    const attempts = Array.from(this.#attempts.keys(), ({ rolloutId, attemptId }) => ({
      rolloutId,
      attemptId,
    }));
    const call = { timeoutMs: Math.max(periodMs, RETRY_MS), signal: this.#ended.signal };
    try {
      const statsJson = encodeJson(stats(), "stats");
      const publishNumber = BigInt(loaded() ?? 0);
      do {
        const part = attempts.splice(0, ATTEMPTS_PER_BEAT);
        const request = { workerId, statsJson, publishNumber, attempts: part };
        const answer = await store.rpc.heartbeat(request, call);
        answer.stops.forEach(onStop);
      } while (attempts.length > 0);
    } catch (error) {
      if (!this.#isFailing && !this.#ended.signal.aborted) {
        warn("heartbeat failed, retrying", error);
      }
      this.#isFailing = true;
      return false;
    }
    this.#isFailing = false;
    return true;
  }
}
