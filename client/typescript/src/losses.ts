/** Reports lost spans with a limited number of warnings. */

import { warn } from "./backoff.js";
import { holdAtExit, letGo } from "./exit.js";

/** Minimum milliseconds between two summaries. */
const SUMMARY_MS = 60_000;

/**
 * Counts lost spans and reports them in warnings: the first loss of a kind at once, all others in a summary,
 * at most one per minute and one at the end of the program.
 */
export class Losses {
  /** Number of spans lost so far. */
  count = 0;
  /** Counts that have not been reported, by kind. A kind that was reported has an entry. */
  readonly #unsaid = new Map<string, number>();
  #isDue = false;
  readonly #after: (ms: number, summarize: () => void) => void;

  /** `after` calls a function after a number of milliseconds. */
  constructor(
    after = (ms: number, summarize: () => void): void => void setTimeout(summarize, ms).unref(),
  ) {
    this.#after = after;
  }

  /** Counts lost spans with the reason. */
  add(count: number, kind: string, why: string): void {
    this.count += count;
    const unsaid = this.#unsaid.get(kind);
    this.#unsaid.set(kind, unsaid === undefined ? 0 : unsaid + count);
    if (unsaid === undefined) {
      warn(`dropped ${count} span(s): ${why}; ${this.count} so far`);
    } else if (!this.#isDue) {
      this.#isDue = true;
      holdAtExit(this);
      this.#after(SUMMARY_MS, () => {
        this.summarize();
      });
    }
  }

  /** Reports the losses since the last warning. */
  summarize(): void {
    this.#isDue = false;
    letGo(this);
    const kinds = [...this.#unsaid].filter(([, count]) => count > 0);
    if (kinds.length === 0) return;
    for (const [kind] of kinds) this.#unsaid.set(kind, 0);
    const counts = kinds.map(([kind, count]) => `${count} ${kind}`).join(", ");
    warn(`dropped more spans: ${counts}; ${this.count} so far`);
  }

  /** Called at the end of the program. */
  shutdown(): Promise<void> {
    this.summarize();
    return Promise.resolve();
  }
}
