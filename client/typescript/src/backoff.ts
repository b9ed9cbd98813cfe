/** Waiting between two tries, and what to say meanwhile. */

import { randomInt } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

import { stackOf } from "./failures.js";

/** Steps of a varied delay. */
const STEPS = 1 << 20;

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
    // Not Math.random: clients whose programs seed it alike would not spread.
    const delay = this.#next * (0.5 + (0.5 * randomInt(STEPS)) / STEPS);
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
  const detail = stackOf(cause);
  process.emitWarning(message, {
    type: "LightningStoreWarning",
    ...(detail === undefined ? {} : { detail }),
  });
}
