/** Waits and queries that resume after a broken connection. */

import { create } from "@bufbuild/protobuf";

import { Backoff, pause } from "./backoff.js";
import { Code, LightningStoreError, toStoreError } from "./errors.js";
import {
  WaitForRolloutsRequestSchema,
  type WaitForRolloutsRequest,
} from "./gen/lightningstore/v1/completion_pb.js";
import type { Rollout } from "./gen/lightningstore/v1/rollout_pb.js";
import type { QuerySpansRequest } from "./gen/lightningstore/v1/span_pb.js";
import { toDuration } from "./rollouts.js";
import type { Stubs } from "./rpc.js";
import { spansOf, type StoredSpan } from "./spans.js";

/** The rollouts to wait for: at least one id or group. If both are set, the wait is for all of them. */
export interface WaitOptions {
  readonly rolloutIds?: readonly string[];
  /** Adds all rollouts that are in these groups when the wait begins. */
  readonly groupIds?: readonly string[];
  /** Number of finished rollouts at which the wait ends. Default: all. */
  readonly minCount?: number;
  /**
   * Time after which the wait ends, in milliseconds. 0: returns the rollouts that are already finished.
   * Default: no limit.
   */
  readonly timeoutMs?: number;
  /** Ends the wait with an error of code CANCELLED. */
  readonly signal?: AbortSignal;
  /** Called when the server has accepted the wait: no later finish is missed. */
  readonly onStarted?: () => void;
}

/**
 * Repeats a stream that breaks until it is complete. `open` returns the next stream, or undefined if nothing
 * is left to request. `patienceMs` is the maximum time without progress.
 */
export async function* takenUp<T>(
  open: () => AsyncIterable<T> | undefined,
  hasEnded: () => boolean,
  patienceMs: number,
  signal: AbortSignal | undefined,
): AsyncGenerator<T, void, undefined> {
  const backoff = new Backoff(50, 2_000);
  let brokenSince: number | undefined;
  for (;;) {
    let failure: LightningStoreError;
    try {
      const stream = open();
      if (!stream) return;
      for await (const message of stream) {
        brokenSince = undefined;
        backoff.reset();
        yield message;
      }
      if (hasEnded()) return;
      failure = new LightningStoreError(Code.UNAVAILABLE, "the stream ended early");
    } catch (error) {
      failure = toStoreError(error);
    }
    brokenSince ??= performance.now();
    const delay = backoff.next(failure.retryDelayMs);
    const isOver = performance.now() + delay - brokenSince >= patienceMs;
    if (!failure.isTemporary || isOver) throw failure;
    await pause(delay, signal);
  }
}

/** Rollouts as they finish, each once: `for await (const rollout of wait)`. It can be iterated once. */
export class RolloutWait implements AsyncIterable<Rollout> {
  /** Number of rollouts that have finished so far. */
  finishedCount = 0;
  /** Ids of the rollouts that have not finished. Known at the end. */
  openRolloutIds: string[] = [];
  readonly #rpc: Stubs;
  readonly #options: WaitOptions;
  readonly #patienceMs: number;
  readonly #ids: readonly string[];
  readonly #seen = new Set<string>();
  #began: number | undefined;
  #ended = false;

  /** @internal */
  constructor(rpc: Stubs, options: WaitOptions, patienceMs: number) {
    this.#rpc = rpc;
    this.#options = options;
    this.#patienceMs = patienceMs;
    this.#ids = [...new Set(options.rolloutIds)];
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Rollout, void, undefined> {
    const { signal } = this.#options;
    const messages = takenUp(
      () => this.#open(),
      () => this.#ended,
      this.#patienceMs,
      signal,
    );
    for await (const message of messages) {
      for (const rollout of message.rollouts) {
        if (this.#seen.has(rollout.rolloutId)) continue;
        this.#seen.add(rollout.rolloutId);
        this.finishedCount = this.#seen.size;
        yield rollout;
      }
      if (message.summary) this.#end(message.summary.openRolloutIds);
    }
  }

  #open() {
    const request = this.#request();
    const { signal, onStarted } = this.#options;
    return request && this.#rpc.waitForRollouts(request, { signal, onStarted });
  }

  /**
   * Returns the request for the rollouts that have not finished, or undefined if there are none. Only the
   * server knows the members of groups, so with groups the request is unchanged.
   */
  #request(): WaitForRolloutsRequest | undefined {
    const { groupIds = [], minCount, timeoutMs } = this.#options;
    const request = create(WaitForRolloutsRequestSchema, { groupIds: [...groupIds] });
    request.rolloutIds = [...this.#ids];
    if (minCount !== undefined) request.minCount = minCount;
    const now = performance.now();
    this.#began ??= now;
    if (timeoutMs !== undefined) {
      request.timeout = toDuration(Math.max(timeoutMs - (now - this.#began), 0));
    }
    if (this.#seen.size > 0 && groupIds.length === 0) {
      request.rolloutIds = this.#ids.filter((id) => !this.#seen.has(id));
      const left = (minCount ?? this.#ids.length) - this.#seen.size;
      if (left <= 0) {
        this.#end(request.rolloutIds);
        return undefined;
      }
      if (minCount !== undefined) request.minCount = left;
    }
    return request;
  }

  #end(open: string[]): void {
    this.openRolloutIds = open;
    this.#ended = true;
  }
}

/** Reads spans. After a break the query is repeated from its beginning; each span is returned once. */
export async function* querySpans(
  rpc: Stubs,
  request: QuerySpansRequest,
  patienceMs: number,
  signal: AbortSignal | undefined,
): AsyncGenerator<StoredSpan, void, undefined> {
  const seen = new Set<string>();
  const answers = takenUp(
    () => rpc.querySpans(request, { signal }),
    () => true,
    patienceMs,
    signal,
  );
  for await (const answer of answers) {
    for (const span of answer.batches.flatMap(spansOf)) {
      const key = `${span.attemptId} ${span.spanId}`;
      if (seen.has(key)) continue;
      seen.add(key);
      yield span;
    }
  }
}
