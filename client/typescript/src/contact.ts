/**
 * A warning if the first call of a client does not reach a server for 2 seconds.
 *
 * Calls and runners retry while the server is away, so that programs can start in any order. A wrong address
 * would therefore look like a call that hangs.
 */

import { warn } from "./backoff.js";

/** Milliseconds without an answer after which the first call of a client emits a warning. */
const FIRST_ANSWER_MS = 2_000;

/** Runs a function after some milliseconds, unless the returned function is called before. */
export type Timer = (ms: number, run: () => void) => () => void;

const timeout: Timer = (ms, run) => {
  const timer = setTimeout(run, ms).unref(); // no reason for a program to keep running
  return () => {
    clearTimeout(timer);
  };
};

/** Whether the server of a client has answered a call. */
export class Contact {
  readonly #address: string;
  readonly #isConnected: () => boolean;
  readonly #timer: Timer;
  #cancel: (() => void) | undefined;
  #isOver = false;

  /** `isConnected`: whether the connection is up. A first call may take long on a server that is there. */
  constructor(address: string, isConnected: () => boolean, timer = timeout) {
    this.#address = address;
    this.#isConnected = isConnected;
    this.#timer = timer;
  }

  /** Whether the server has answered, or the client was closed. */
  get isOver(): boolean {
    return this.#isOver;
  }

  /** Starts the time with the first call. */
  called(): void {
    if (this.#isOver) return;
    this.#cancel ??= this.#timer(FIRST_ANSWER_MS, () => {
      this.#report();
    });
  }

  /** Notes that the server has answered, or that the client was closed. */
  readonly end = (): void => {
    this.#isOver = true;
    this.#cancel?.();
  };

  #report(): void {
    if (this.#isOver || this.#isConnected()) return;
    warn(
      `no server has answered at ${this.#address} for ${FIRST_ANSWER_MS / 1000} s: ` +
        "is `lightningstore serve` running there?",
    );
  }
}
