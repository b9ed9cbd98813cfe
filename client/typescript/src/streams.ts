/** Waits and queries that go on by themselves where a connection broke. */

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

/** What is waited for: at least one id or group; both together are joined. */
export interface WaitOptions {
  readonly rolloutIds?: readonly string[];
  /** All rollouts that are in these groups when the wait begins. */
  readonly groupIds?: readonly string[];
  /** Ends once this many have finished. Absent: all of them. */
  readonly minCount?: number;
  /** Ends after this long, in milliseconds. 0: tells what has finished by now. Absent: no limit. */
  readonly timeoutMs?: number;
  /** Ends the wait with an error of code CANCELLED. */
  readonly signal?: AbortSignal;
  /** Called when the server has taken the wait up: no finish after this is missed. */
  readonly onStarted?: () => void;
}

/**
 * Repeats a stream that breaks until it comes to its end. `open` makes the next one, undefined if there is
 * nothing left to ask for; `patienceMs` is how long it is tried in vain.
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
      failure = new LightningStoreError(Code.UNAVAILABLE, "the stream ended before its end");
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

/** Rollouts as they finish, each once: `for await (const rollout of wait)`, a single time. */
export class RolloutWait implements AsyncIterable<Rollout> {
  /** How many have finished so far. */
  finishedCount = 0;
  /** Ids of those that are still open. Known at the end. */
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
   * After a break only what is still open is asked for; undefined if that is nothing. Members of groups are
   * known to the server alone: there all are asked for again.
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

/** Reads spans. A query that broke is asked again from its beginning; each span comes once. */
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
