/** The runner: claims rollouts, runs a function on each, and reports the outcomes. */

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
import { Finishes } from "./finishes.js";
import { Heartbeats } from "./heartbeats.js";
import { toMode } from "./rollouts.js";
import { enableContext } from "./tracing.js";

/** Options of a runner. */
export interface RunnerOptions extends ConnectOptions {
  /** The client to use; the caller closes it. Default: a new one with the options given here. */
  readonly store?: LightningStore;
  /** Id of the worker. Default: generated from host name, process id and random digits. */
  readonly workerId?: string;
  /** Maximum number of rollouts at a time. Default 1. */
  readonly concurrency?: number;
  /** Claims only rollouts with these modes, undefined for those without a mode. Default: any. */
  readonly modes?: readonly ("train" | "val" | "test" | undefined)[];
  /** Task queues to claim from; "" is the default queue. Default: the default queue only. */
  readonly queues?: readonly string[];
  /** Number of rollouts after which the runner ends. Default: no limit. */
  readonly maxRollouts?: number;
  /** Duration of a long poll in milliseconds. Default 20,000. */
  readonly pollWaitMs?: number;
  /**
   * Maximum milliseconds between heartbeats, reduced to a third of the shortest unresponsive timeout of the
   * running attempts. Default 10,000.
   */
  readonly heartbeatPeriodMs?: number;
  /** Maximum milliseconds to retry a report while the server is down. Default 10 minutes. */
  readonly outageMs?: number;
  /** Milliseconds for cancelled functions to return after a second stop. Default 5,000. */
  readonly graceMs?: number;
  /**
   * Returns the publish number that heartbeats report, such as that of the weights which the worker's model has
   * loaded; undefined: unchanged. Default: that of the resources which the function was called with last.
   */
  readonly publishNumber?: () => bigint | number | undefined;
}

/**
 * Claims rollouts and runs a function on each, several at a time. The type of the function's input is not
 * checked.
 *
 * A function that returns has succeeded; a number it returns is sent twice: in a span
 * `agentlightning.annotation`, and as the reward of the attempt. What it throws is a failure with its type and message, which is retried
 * according to the rollout's config unless it is a NonRetryable. When the attempt is cancelled or superseded,
 * `context.signal` is aborted; then it is never reported as succeeded, whatever the function returns.
 *
 * Heartbeats are sent by the event loop: a function that blocks it for longer than the rollout's unresponsive
 * timeout delays them. Run CPU-bound work in a worker thread. While the server is down, the runner continues,
 * keeps its spans, and reports when the server is back; no claim is lost.
 */
export class Runner<Input = unknown> {
  /** Id of the worker. */
  readonly workerId: string;
  readonly #store: LightningStore;
  readonly #ownsStore: boolean;
  readonly #concurrency: number;
  readonly #graceMs: number;
  readonly #exporter: SpanExporter;
  readonly #heartbeats: Heartbeats;
  readonly #finishes: Finishes;
  readonly #claims: Claims;
  readonly #work: Work;
  readonly #running = new Map<string, RunContext>();
  /** Attempts whose functions have returned, and that are being reported. */
  readonly #reporting = new Set<RunContext>();
  #left: number;
  #finished = 0;
  #stops = 0;
  #hasRun = false;
  /** Aborted when an attempt has ended, or the runner is stopped. */
  #changed = new AbortController();

  /**
   * @throws RangeError for a concurrency below 1.
   * @throws TypeError for invalid options.
   */
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
      publishNumber: options.publishNumber ?? (() => this.#work.publishNumber),
    });
    this.#finishes = new Finishes(this.#store, (rolloutId) => {
      this.#onFinish(rolloutId);
    });
    const wait = options.pollWaitMs ?? 20_000;
    this.#claims = new Claims(this.#store, this.workerId, wait, {
      modes: modes.map(toMode),
      queues: options.queues ?? [],
    });
    this.#work = new Work(this.#store, agent as Agent, this.#exporter, options.outageMs ?? 600_000);
  }

  /**
   * Works until `stop` is called, SIGTERM or Ctrl-C arrives, `signal` is aborted, or `maxRollouts` are done.
   * It then lets the running functions finish; a second signal cancels them. With `handleSignals: false` it
   * installs no signal handlers. Rejects with LightningStoreError for an error that is not retryable. A
   * runner runs once.
   */
  async run(options: { signal?: AbortSignal; handleSignals?: boolean } = {}): Promise<void> {
    if (this.#hasRun) throw new Error("a runner can run only once");
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
      this.#finishes.stop();
      this.#heartbeats.stop();
      await beating;
      await this.#exporter.shutdown();
      if (this.#ownsStore) this.#store.close();
    }
  }

  /** Lets the running functions finish and claims no more. A second call cancels them. */
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

  /** Waits until an attempt ends or the runner is stopped, at most `ms` milliseconds. */
  async #change(ms = 2 ** 31 - 1): Promise<void> {
    await pause(ms, this.#changed.signal);
    this.#changed = new AbortController();
  }

  #start(rollout: Rollout): void {
    this.#left--;
    const attempt = rollout.latestAttempt;
    if (!attempt) throw new Error("the server's response lacks the claimed attempt");
    const context = new RunContext(rollout, attempt, this.workerId);
    this.#running.set(key(context), context);
    if (this.#stops > 1) context.cancel(undefined);
    this.#heartbeats.add(context);
    this.#finishes.add(context);
    void this.#runOne(context);
  }

  async #runOne(context: RunContext): Promise<void> {
    try {
      await this.#work.do(context, () => {
        this.#finishes.remove(context);
        this.#reporting.add(context);
      });
    } catch (error) {
      warn(
        `attempt ${context.attemptId} of ${context.rolloutId} was lost by an internal error`,
        error,
      );
    }
    this.#heartbeats.remove(context);
    this.#finishes.remove(context);
    this.#reporting.delete(context);
    this.#running.delete(key(context));
    this.#finished++;
    this.#changed.abort();
  }

  /** Waits for the running functions; after they are cancelled, for at most the grace period. */
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

  /** Sends a heartbeat, which says why a rollout has finished that is still being worked on. */
  #onFinish(rolloutId: string): void {
    for (const context of this.#running.values()) {
      if (context.rolloutId === rolloutId && !this.#reporting.has(context)) {
        this.#heartbeats.hurry();
        return;
      }
    }
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
