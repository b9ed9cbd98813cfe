/** Works on rollouts: claim, run a function, report, for ever. */

import { randomBytes } from "node:crypto";
import { hostname } from "node:os";

import { pause, warn } from "./backoff.js";
import type { ConnectOptions } from "./channel.js";
import { Claims } from "./claims.js";
import { LightningStore } from "./client.js";
import { RunContext } from "./context.js";
import { Work, type Agent } from "./execution.js";
import { SpanExporter } from "./exporter.js";
import type { Stop, StopReason } from "./gen/lightningstore/v1/attempt_pb.js";
import type { Rollout } from "./gen/lightningstore/v1/rollout_pb.js";
import { Heartbeats } from "./heartbeats.js";
import { toMode } from "./rollouts.js";
import { enableContext } from "./tracing.js";

/** What a runner can be told. */
export interface RunnerOptions extends ConnectOptions {
  /** A client to work through, which stays the caller's to close. Absent: connects as told. */
  readonly store?: LightningStore;
  /** What the runner is called. Absent: made of host name, process id and chance. */
  readonly workerId?: string;
  /** Rollouts at a time. Default 1. */
  readonly concurrency?: number;
  /** Only rollouts of these modes, undefined for those without one. Absent: any. */
  readonly modes?: readonly ("train" | "val" | "test" | undefined)[];
  /** Ends after so many rollouts. Absent: goes on until it is stopped. */
  readonly maxRollouts?: number;
  /** How long one long poll lasts, in milliseconds. Default 20,000. */
  readonly pollWaitMs?: number;
  /**
   * Milliseconds between two heartbeats, or a third of the shortest unresponsive timeout of what runs if that
   * is less. Default 10,000.
   */
  readonly heartbeatPeriodMs?: number;
  /** How long a result waits for a server that is away, in milliseconds. Default 10 minutes. */
  readonly outageMs?: number;
  /** How long cancelled functions get at a second stop, in milliseconds. Default 5,000. */
  readonly graceMs?: number;
}

/**
 * Claims rollouts and runs a function on each, several at a time. The type of the function's input is what you
 * say: nothing checks it.
 *
 * The function's return is success, and a number becomes a span `agentlightning.annotation` with the reward.
 * What it throws is a failure with its type and message, retried as the rollout's config says; NonRetryable
 * is not. A cancelled or superseded attempt is told by `context.signal`; whatever its function returns, it is
 * never reported as succeeded.
 *
 * Heartbeats come from the event loop: a function that blocks it for longer than the rollout's unresponsive
 * timeout holds them up, so work that takes a processor belongs into a worker thread. While the server is
 * away the runner goes on, keeps spans, and reports when it is back; no claim is lost.
 */
export class Runner<Input = unknown> {
  /** What the runner is called. */
  readonly workerId: string;
  readonly #store: LightningStore;
  readonly #ownsStore: boolean;
  readonly #concurrency: number;
  readonly #graceMs: number;
  readonly #exporter: SpanExporter;
  readonly #heartbeats: Heartbeats;
  readonly #claims: Claims;
  readonly #work: Work;
  readonly #running = new Map<string, RunContext>();
  #left: number;
  #finished = 0;
  #stops = 0;
  #hasRun = false;
  /** Aborted when an attempt has ended, or the runner is stopped. */
  #changed = new AbortController();

  /** Throws a RangeError for a concurrency below 1, a TypeError for options that cannot be. */
  constructor(agent: Agent<Input>, options: RunnerOptions = {}) {
    const { concurrency = 1, maxRollouts = Infinity, modes = [] } = options;
    if (!(concurrency >= 1)) throw new RangeError(`concurrency must be at least 1`);
    this.workerId = options.workerId ?? newWorkerId();
    this.#store = options.store ?? new LightningStore(options);
    this.#ownsStore = !options.store;
    this.#concurrency = concurrency;
    this.#left = maxRollouts;
    this.#graceMs = options.graceMs ?? 5_000;
    const onStop = (stop: Stop): void => {
      this.#stopAttempt(stop);
    };
    this.#exporter = new SpanExporter({ store: this.#store, onStop });
    this.#heartbeats = new Heartbeats({
      store: this.#store,
      workerId: this.workerId,
      periodMs: options.heartbeatPeriodMs ?? 10_000,
      onStop,
      stats: () => this.#stats(),
    });
    const wait = options.pollWaitMs ?? 20_000;
    this.#claims = new Claims(this.#store, this.workerId, modes.map(toMode), wait);
    this.#work = new Work(this.#store, agent as Agent, this.#exporter, options.outageMs ?? 600_000);
  }

  /**
   * Works until `stop` is called, SIGTERM or Ctrl-C arrives, `signal` is aborted, or `maxRollouts` are done:
   * then what runs is finished. A second signal cancels it. `handleSignals: false` leaves the process'
   * signals alone. Rejects with LightningStoreError for an error that waiting does not mend. A runner runs
   * once.
   */
  async run(options: { signal?: AbortSignal; handleSignals?: boolean } = {}): Promise<void> {
    if (this.#hasRun) throw new Error("a runner runs once");
    this.#hasRun = true;
    const stop = (): void => {
      this.stop();
    };
    const names = (options.handleSignals ?? true) ? (["SIGINT", "SIGTERM"] as const) : [];
    for (const name of names) process.on(name, stop);
    options.signal?.addEventListener("abort", stop);
    if (options.signal?.aborted) this.stop();
    enableContext();
    const beating = this.#heartbeats.run();
    try {
      await this.#claimAndStart();
    } finally {
      await this.#finish();
      for (const name of names) process.off(name, stop);
      options.signal?.removeEventListener("abort", stop);
      this.#heartbeats.stop();
      await beating;
      await this.#exporter.shutdown();
      if (this.#ownsStore) this.#store.close();
    }
  }

  /** Lets what runs finish, and claims no more; called again: cancels what runs. */
  stop(): void {
    this.#stops++;
    this.#claims.stop();
    if (this.#stops > 1) {
      this.#work.hurry();
      for (const context of this.#running.values()) context.cancel(undefined);
    }
    this.#changed.abort();
  }

  async #claimAndStart(): Promise<void> {
    while (this.#stops === 0 && this.#left > 0) {
      const free = Math.min(this.#concurrency - this.#running.size, this.#left);
      if (free <= 0) {
        await this.#change();
        continue;
      }
      for (const rollout of await this.#claims.claim(free)) this.#start(rollout);
    }
  }

  /** Waits until an attempt ends or the runner is stopped, at most for `ms`. */
  async #change(ms = 2 ** 31 - 1): Promise<void> {
    await pause(ms, this.#changed.signal);
    this.#changed = new AbortController();
  }

  #start(rollout: Rollout): void {
    this.#left--;
    const attempt = rollout.latestAttempt;
    if (!attempt) throw new Error("the server left the claimed attempt out");
    const context = new RunContext(rollout, attempt, this.workerId);
    this.#running.set(key(context), context);
    if (this.#stops > 1) context.cancel(undefined);
    this.#heartbeats.add(context);
    void this.#runOne(context);
  }

  async #runOne(context: RunContext): Promise<void> {
    try {
      await this.#work.do(context);
    } catch (error) {
      warn(`attempt ${context.attemptId} of ${context.rolloutId} was lost by a defect`, error);
    }
    this.#heartbeats.remove(context);
    this.#running.delete(key(context));
    this.#finished++;
    this.#changed.abort();
  }

  /** Waits for what runs; once it has been cancelled, no longer than the grace allows. */
  async #finish(): Promise<void> {
    let until: number | undefined;
    while (this.#running.size > 0) {
      if (this.#stops > 1) until ??= performance.now() + this.#graceMs;
      const left = until === undefined ? undefined : until - performance.now();
      if (left !== undefined && left <= 0) {
        until = Infinity;
        this.#work.abandon();
      }
      await this.#change(left === undefined || left <= 0 || left === Infinity ? undefined : left);
    }
  }

  #stopAttempt({ attempt, reason }: { attempt?: Stop["attempt"]; reason: StopReason }): void {
    if (attempt) this.#running.get(key(attempt))?.cancel(reason);
  }

  #stats(): object {
    return {
      running: this.#running.size,
      finished: this.#finished,
      concurrency: this.#concurrency,
      dropped_spans: this.#exporter.droppedCount,
    };
  }
}

function key(attempt: { readonly rolloutId: string; readonly attemptId: string }): string {
  return `${attempt.attemptId} ${attempt.rolloutId}`;
}

function newWorkerId(): string {
  return `${hostname()}-${process.pid}-${randomBytes(3).toString("hex")}`.slice(-256);
}
