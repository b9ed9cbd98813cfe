/** Waiting between two tries, and what to say meanwhile. */

import { setTimeout as sleep } from "node:timers/promises";

/** Growing, varied delays, in milliseconds. */
export class Backoff {
  readonly #first: number;
  readonly #longest: number;
  #next: number;

  constructor(firstMs: number, longestMs: number) {
    this.#first = firstMs;
    this.#longest = longestMs;
    this.#next = firstMs;
  }

  /** Returns the next delay, at least `leastMs`: between a half and the whole, so that clients spread. */
  next(leastMs = 0): number {
    const delay = this.#next * (0.5 + 0.5 * Math.random());
    this.#next = Math.min(this.#next * 2, this.#longest);
    return Math.max(delay, leastMs);
  }

  /** Begins anew: all is well. */
  reset(): void {
    this.#next = this.#first;
  }
}

/** Waits, at most until the signal is aborted; never fails. `ref`: keep the program running meanwhile. */
export async function pause(ms: number, signal?: AbortSignal, ref = true): Promise<void> {
  await sleep(ms, undefined, signal ? { signal, ref } : { ref }).catch(() => undefined);
}

/** Warns the way Node.js does: on stderr, or to who listens to the process' "warning" events. */
export function warn(message: string, cause?: unknown): void {
  const detail = cause instanceof Error ? (cause.stack ?? cause.message) : undefined;
  process.emitWarning(message, {
    type: "LightningStoreWarning",
    ...(detail === undefined ? {} : { detail }),
  });
}
