/** Delays between retries, and warnings. */

import { randomInt } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

import { stackOf } from "./failures.js";

/** Resolution of the jitter. */
const STEPS = 1 << 20;

/** Growing delays with jitter, in milliseconds. */
export class Backoff {
  readonly #first: number;
  readonly #longest: number;
  #next: number;

  constructor(firstMs: number, longestMs: number) {
    this.#first = firstMs;
    this.#longest = longestMs;
    this.#next = firstMs;
  }

  /**
   * Returns the next delay, at least `leastMs`. The jitter between half and the full delay spreads clients.
   */
  next(leastMs = 0): number {
    // Math.random would give the same delays to all clients whose programs seed it alike.
    const delay = this.#next * (0.5 + (0.5 * randomInt(STEPS)) / STEPS);
    this.#next = Math.min(this.#next * 2, this.#longest);
    return Math.max(delay, leastMs);
  }

  /** Starts again with the first delay. */
  reset(): void {
    this.#next = this.#first;
  }
}

/**
 * Waits until the time is over or the signal is aborted; never rejects. `ref`: keeps the program running
 * meanwhile.
 */
export async function pause(ms: number, signal?: AbortSignal, ref = true): Promise<void> {
  await sleep(ms, undefined, signal ? { signal, ref } : { ref }).catch(() => undefined);
}

/** Emits a Node.js warning: to stderr, or to listeners of the process's "warning" event. */
export function warn(message: string, cause?: unknown): void {
  const detail = stackOf(cause);
  process.emitWarning(message, {
    type: "LightningStoreWarning",
    ...(detail === undefined ? {} : { detail }),
  });
}
