/**
 * Tells a runner within a second that a rollout it works on has finished: cancelled, for instance.
 *
 * Heartbeats say which attempts to stop, but are sent every ten seconds. More of them would cost the server a
 * call per second for each worker. So one WaitForRollouts stream, on which nothing is sent until something
 * happens, covers the rollouts that the runner works on. Rollouts shorter than DELAY_MS never cause a call. A
 * stream is replaced when a rollout that it does not cover gets older than that, and then covers all.
 */

import type { LightningStore } from "./client.js";
import type { RunContext } from "./context.js";

/** Milliseconds after a claim until its rollout is watched. A finish before that is noticed then. */
const DELAY_MS = 500;
/** Milliseconds without a stream after one has failed. Heartbeats still say what to stop. */
const PAUSE_MS = 10_000;

/** Watches the rollouts of a runner. */
export class Finishes {
  readonly #store: LightningStore;
  readonly #onFinish: (rolloutId: string) => void;
  readonly #due = new Map<RunContext, number>();
  readonly #covered = new Set<RunContext>();
  #timer: NodeJS.Timeout | undefined;
  #stream = new AbortController();
  #stopped = false;

  /** `onFinish` is called with the id of a finished rollout. */
  constructor(store: LightningStore, onFinish: (rolloutId: string) => void) {
    this.#store = store;
    this.#onFinish = onFinish;
  }

  /** Watches a claim after the delay. */
  add(context: RunContext): void {
    this.#due.set(context, performance.now() + DELAY_MS);
    this.#timer ??= this.#later(DELAY_MS);
  }

  /** Watches an attempt no longer. The stream stays open while it covers others. */
  remove(context: RunContext): void {
    this.#due.delete(context);
    if (this.#covered.delete(context) && this.#covered.size === 0) this.#stream.abort();
  }

  /** Ends the stream. */
  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
    this.#stream.abort();
  }

  #later(ms: number): NodeJS.Timeout {
    return setTimeout(() => {
      this.#look();
    }, ms);
  }

  /** Opens a stream if a rollout without one is old enough; otherwise looks again when that is so. */
  #look(): void {
    this.#timer = undefined;
    const uncovered = [...this.#due].filter(([context]) => !this.#covered.has(context));
    if (this.#stopped || uncovered.length === 0) return;
    const wait = Math.min(...uncovered.map(([, due]) => due)) - performance.now();
    if (wait > 0) {
      this.#timer = this.#later(wait);
      return;
    }
    this.#stream.abort();
    this.#stream = new AbortController();
    for (const context of this.#due.keys()) this.#covered.add(context);
    const ids = new Set(Array.from(this.#due.keys(), ({ rolloutId }) => rolloutId));
    void this.#watch([...ids], this.#stream.signal);
  }

  /** Reports the finishes of one stream. */
  async #watch(rolloutIds: string[], signal: AbortSignal): Promise<void> {
    try {
      for await (const rollout of this.#store.waitForRollouts({ rolloutIds, signal })) {
        this.#onFinish(rollout.rolloutId);
      }
    } catch {
      if (signal.aborted) return; // replaced
      this.#covered.clear();
      const due = performance.now() + PAUSE_MS;
      for (const context of this.#due.keys()) this.#due.set(context, due);
      clearTimeout(this.#timer);
      this.#timer = this.#stopped ? undefined : this.#later(PAUSE_MS);
    }
  }
}
