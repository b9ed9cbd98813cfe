/** Says which spans were lost, without flooding the log. */

import { warn } from "./backoff.js";
import { holdAtExit, letGo } from "./exit.js";

/** Milliseconds between two summaries, at least. */
const SUMMARY_MS = 60_000;

/**
 * Counts lost spans and warns of them: of the first loss of a kind at once, of all others in a summary, of which
 * there is at most one a minute, and one at the end of the program.
 */
export class Losses {
  /** Spans lost so far. */
  count = 0;
  /** Not yet warned of, by kind; a kind that was warned of has an entry. */
  readonly #unsaid = new Map<string, number>();
  #isDue = false;
  readonly #after: (ms: number, summarize: () => void) => void;

  /** `after` calls a function after milliseconds. */
  constructor(
    after = (ms: number, summarize: () => void): void => void setTimeout(summarize, ms).unref(),
  ) {
    this.#after = after;
  }

  /** Counts spans that were lost, and says why. */
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

  /** Warns of what was lost since the last warning. */
  summarize(): void {
    this.#isDue = false;
    letGo(this);
    const kinds = [...this.#unsaid].filter(([, count]) => count > 0);
    if (kinds.length === 0) return;
    for (const [kind] of kinds) this.#unsaid.set(kind, 0);
    const counts = kinds.map(([kind, count]) => `${count} ${kind}`).join(", ");
    warn(`dropped more spans: ${counts}; ${this.count} so far`);
  }

  /** At the end of the program. */
  shutdown(): Promise<void> {
    this.summarize();
    return Promise.resolve();
  }
}
