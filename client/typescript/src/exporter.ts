/** An exporter of the OpenTelemetry SDK that streams spans to a store. */

import { context, type Context } from "@opentelemetry/api";
import { ExportResultCode, suppressTracing, type ExportResult } from "@opentelemetry/core";
import type { ReadableSpan, SpanExporter as SdkExporter } from "@opentelemetry/sdk-trace-base";

import { Backoff, pause, warn } from "./backoff.js";
import type { ConnectOptions } from "./channel.js";
import { LightningStore } from "./client.js";
import { Code, LightningStoreError, toStoreError } from "./errors.js";
import { holdAtExit, letGo } from "./exit.js";
import type { Stop } from "./gen/lightningstore/v1/attempt_pb.js";
import { ErrorReason } from "./gen/lightningstore/v1/error_reason_pb.js";
import type { BatchRejection, IngestResult } from "./gen/lightningstore/v1/span_pb.js";
import { messageOf } from "./failures.js";
import { Losses } from "./losses.js";
import {
  attemptOf,
  encode,
  intoMessages,
  MESSAGE_BYTES,
  toBatch,
  wrongAttempt,
  type Item,
} from "./outbox.js";

const MIB = 1 << 20;
/** Maximum milliseconds that a span waits to be sent together with others. */
const DELAY_MS = 200;
/** A stream is closed, so that the server acknowledges it, after this number of bytes. */
const STREAM_BYTES = 16 * MIB;
/** Timeout of the first stream. It doubles with each stream that is not answered. */
const FIRST_STREAM_MS = 2_000;
/** Additional timeout for each MiB of a stream. */
const MIB_MS = 1_000;
const LONGEST_STREAM_MS = 60_000;
/** Maximum duration of a shutdown. With a first stream before it, the total is below 5 seconds. */
const SHUTDOWN_MS = 2_900;
/** Number of internal errors after which spans are dropped: the server cannot process them. */
const MAX_DEFECTS = 5;
/** Maximum number of attempts whose spans are counted; the oldest are evicted. */
const MAX_COUNTS = 10_000;

/** Options of an exporter. */
export interface SpanExporterOptions extends ConnectOptions {
  /** The client to use; the caller closes it. Default: a new one with the options given here. */
  readonly store?: LightningStore;
  /** The attempt of spans that do not name one. */
  readonly rolloutId?: string;
  readonly attemptId?: string;
  /** Maximum bytes of spans that are not stored yet; further ones are dropped. Default 64 MiB. */
  readonly maxBufferBytes?: number;
  /** The server's limit for a span; a larger span is dropped. Default 4 MiB. */
  readonly maxSpanBytes?: number;
  /** Called for each attempt that the server requests to stop. */
  readonly onStop?: (stop: Stop) => void;
}

/**
 * Streams spans to a store, each to its attempt, without blocking the program.
 *
 * `export` encodes and buffers the spans. They are sent with IngestSpans, kept until the server has stored
 * them, and sent again after a broken connection; the server counts repeats once. Beyond `maxBufferBytes` new
 * spans are dropped. Dropped spans are counted in `droppedCount`. The first loss of a kind is reported in a
 * warning at once, later ones in summaries, at most one per minute. When the program ends (but not after
 * process.exit), the remaining spans are sent within 5 seconds.
 *
 * The attempt of a span is named by the attributes `agentlightning.rollout_id` and
 * `agentlightning.attempt_id` of the span, else of its resource, else by the options. Use the exporter with a
 * SimpleSpanProcessor: the buffer of a BatchSpanProcessor would drop spans of its own.
 */
export class SpanExporter implements SdkExporter {
  readonly #store: LightningStore;
  readonly #options: SpanExporterOptions;
  readonly #silent: Context = suppressTracing(context.active());
  readonly #counts = new Map<string, number>();
  readonly #losses = new Losses();
  readonly #waiting = new Set<() => void>();
  #queue: Item[] = [];
  #bytes = 0; // in the queue and on their way
  #added = 0;
  #settled = 0;
  #sending: Promise<void> | undefined;
  /** Aborted when the time of a shutdown is over. */
  readonly #over = new AbortController();
  #stopAt: number | undefined;
  /** Ends the current pause: of batching for a flush, of a broken stream for a shutdown. */
  #wake = new AbortController();
  #ended: Promise<void> | undefined;

  constructor(options: SpanExporterOptions = {}) {
    this.#options = options;
    this.#store = options.store ?? new LightningStore(options);
  }

  /**
   * Number of spans lost so far: beyond the buffer, too large, rejected, without an attempt, or after the
   * shutdown.
   */
  get droppedCount(): number {
    return this.#losses.count;
  }

  /** Queues spans without waiting for the network. Fails only after `shutdown`. */
  export(spans: ReadableSpan[], resultCallback: (result: ExportResult) => void): void {
    if (this.#stopAt !== undefined) {
      if (spans.length > 0) this.#drop(spans.length, "after shutdown", "the exporter is shut down");
      resultCallback({ code: ExportResultCode.FAILED, error: new Error("shut down") });
      return;
    }
    for (const span of spans) this.#add(span);
    if (this.#queue.length > 0) {
      holdAtExit(this);
      this.#sending ??= context.with(this.#silent, () => this.#run());
      if (this.#bytes >= MESSAGE_BYTES) this.#hurry();
    }
    resultCallback({ code: ExportResultCode.SUCCESS });
  }

  /**
   * Returns the number of exported spans of an attempt, including dropped ones. Pass it to UpdateAttempt as
   * sentSpanCount to get the number of missing spans.
   */
  sentCount(rolloutId: string, attemptId: string): number {
    return this.#counts.get(`${rolloutId} ${attemptId}`) ?? 0;
  }

  /**
   * Waits until all spans exported so far are stored or dropped, at most `timeoutMs` milliseconds. Rejects
   * with DEADLINE_EXCEEDED if the time is over; sending continues.
   */
  async forceFlush(timeoutMs = 30_000): Promise<void> {
    const target = this.#added;
    if (this.#settled >= target) return;
    this.#hurry();
    await new Promise<void>((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiting.delete(check);
        reject(new LightningStoreError(Code.DEADLINE_EXCEEDED, "spans are not stored yet"));
      }, timeoutMs);
      const check = (): void => {
        if (this.#settled < target) return;
        clearTimeout(timer);
        this.#waiting.delete(check);
        resolve();
      };
      this.#waiting.add(check);
    });
  }

  /**
   * Sends the remaining spans within `timeoutMs` milliseconds and stops the exporter. Spans that are not
   * stored by then are lost, with a warning.
   */
  shutdown(timeoutMs = SHUTDOWN_MS): Promise<void> {
    this.#ended ??= this.#end(timeoutMs);
    return this.#ended;
  }

  async #end(timeoutMs: number): Promise<void> {
    this.#stopAt = performance.now() + timeoutMs;
    const timer = setTimeout(() => {
      this.#over.abort();
    }, timeoutMs);
    this.#hurry();
    await this.#sending;
    clearTimeout(timer);
    letGo(this);
    if (!this.#options.store) this.#store.close();
    const left = this.#added - this.#settled;
    if (left > 0)
      this.#drop(
        left,
        "not stored at the shutdown",
        "not stored before the exporter was shut down",
      );
    this.#losses.summarize();
    this.#settle(left, this.#bytes);
  }

  #add(span: ReadableSpan): void {
    const { rolloutId = "", attemptId = "" } = this.#options;
    const { maxBufferBytes = 64 * MIB, maxSpanBytes = 4 * MIB } = this.#options;
    const filed = attemptOf(span, { rolloutId, attemptId });
    const wrong = wrongAttempt(filed);
    if (wrong) {
      this.#drop(1, "without an attempt", wrong);
      return;
    }
    this.#count(`${filed.rolloutId} ${filed.attemptId}`);
    let item: Item;
    try {
      item = encode(span, filed);
    } catch (error) {
      const name = messageOf(span.name); // JavaScript lets it be anything
      this.#drop(1, "that cannot be encoded", `"${name}" cannot be encoded: ${messageOf(error)}`);
      return;
    }
    if (item.originSize > maxSpanBytes) {
      const sizes = `${item.originSize} bytes, over the limit of ${maxSpanBytes}`;
      const what = `resource and scope of "${messageOf(span.name)}"`;
      this.#drop(1, "with a resource that is too large", `${what} have ${sizes}`);
    } else if (item.size > maxSpanBytes) {
      const sizes = `${item.size} bytes, over the limit of ${maxSpanBytes}`;
      this.#drop(1, "that are too large", `"${messageOf(span.name)}" has ${sizes}`);
    } else if (this.#bytes + item.size > maxBufferBytes) {
      this.#drop(1, "beyond the buffer", `the buffer of ${maxBufferBytes} bytes is full`);
    } else {
      this.#queue.push(item);
      this.#bytes += item.size;
      this.#added++;
    }
  }

  #count(attempt: string): void {
    const count = (this.#counts.get(attempt) ?? 0) + 1;
    this.#counts.delete(attempt);
    this.#counts.set(attempt, count);
    if (this.#counts.size > MAX_COUNTS) {
      for (const oldest of this.#counts.keys()) {
        this.#counts.delete(oldest);
        break;
      }
    }
  }

  #drop(count: number, kind: string, why: string): void {
    this.#losses.add(count, kind, why);
  }

  #settle(count: number, bytes: number): void {
    this.#settled += count;
    this.#bytes -= bytes;
    for (const check of [...this.#waiting]) check();
  }

  #hurry(): void {
    this.#wake.abort();
  }

  #isOver(): boolean {
    return this.#over.signal.aborted;
  }

  // --- sending ------------------------------------------------------------------------------------

  /** Sends spans until none are left, or the time of a shutdown is over. */
  async #run(): Promise<void> {
    await pause(DELAY_MS, this.#wake.signal, false); // so that spans travel together
    while (this.#queue.length > 0 && !this.#isOver()) {
      this.#wake = new AbortController();
      const items = this.#take();
      try {
        if (!(await this.#deliver(items))) break;
      } catch (error) {
        this.#drop(items.length, "lost by an internal error", messageOf(error));
      }
      this.#settle(items.length, total(items));
    }
    this.#sending = undefined;
    this.#wake = new AbortController();
    if (this.#queue.length === 0) letGo(this);
  }

  #take(): Item[] {
    let size = 0;
    let count = 0;
    while (count < this.#queue.length && size < STREAM_BYTES)
      size += this.#queue[count++]?.size ?? 0;
    return this.#queue.splice(0, count);
  }

  /** Sends spans until each is stored or rejected; returns false if the time of a shutdown is over. */
  async #deliver(items: Item[]): Promise<boolean> {
    let messages = intoMessages(items);
    while (messages.length > 0) {
      let result: IngestResult | undefined;
      try {
        result = await this.#send(messages);
      } catch (error) {
        this.#drop(messages.flat().length, "refused", `rejected by the server: ${String(error)}`);
        return true;
      }
      if (!result) return false;
      for (const stop of result.stops) this.#passOn(stop);
      messages = this.#sortOut(messages, result);
    }
    return true;
  }

  #passOn(stop: Stop): void {
    try {
      this.#options.onStop?.(stop);
    } catch (error) {
      warn("onStop failed", error);
    }
  }

  /**
   * Returns the spans to send again: an invalid span fails its whole message, although the others are valid.
   */
  #sortOut(messages: Item[][], result: IngestResult): Item[][] {
    const again: Item[][] = [];
    let told = 0;
    let last = -1;
    for (const rejection of result.rejections) {
      const members = messages[Number(rejection.messageIndex)];
      if (!members) continue; // no message of this stream: counted below
      last = Number(rejection.messageIndex);
      // If only some are rejected, these are single spans, for example with ids that exist. The others are
      // stored.
      const refused = Math.min(rejection.spanCount || members.length, members.length);
      told += refused;
      if (members.length === 1 || refused < members.length || isAboutAttempt(rejection)) {
        const why = `rejected by the server: ${rejection.message}`;
        this.#drop(refused, `refused (${ErrorReason[rejection.reason]})`, why);
      } else {
        again.push(...members.map((item) => [item]));
      }
    }
    const untold = Number(result.rejectedCount) - told;
    if (untold > 0 && last >= 0) {
      // The server lists only the first rejections. The messages after them are sent again; stored spans are
      // skipped.
      again.push(...messages.slice(last + 1));
    } else if (untold > 0) {
      this.#drop(untold, "rejected without a reason", "rejected by the server without a reason");
    }
    return again;
  }

  /** Sends messages until they are answered; undefined if a shutdown ended the tries. */
  async #send(messages: Item[][]): Promise<IngestResult | undefined> {
    const backoff = new Backoff(100, 2_000);
    let timeoutMs = FIRST_STREAM_MS + (total(messages.flat()) / MIB) * MIB_MS;
    for (let defects = 0; ;) {
      try {
        return await this.#try(messages, timeoutMs);
      } catch (error) {
        const failure = toStoreError(error);
        if (this.#isOver()) return undefined;
        if (failure.code === Code.INTERNAL) defects++;
        const perhaps = failure.code === Code.INTERNAL && defects < MAX_DEFECTS;
        if (!failure.isTemporary && !perhaps) throw failure;
        await this.#rest(backoff.next(failure.retryDelayMs));
        if (this.#isOver()) return undefined;
      }
      timeoutMs = Math.min(timeoutMs * 2, LONGEST_STREAM_MS);
    }
  }

  /** Waits before a retry. A shutdown ends the wait; a flush does not, because the server is unreachable. */
  async #rest(delayMs: number): Promise<void> {
    const until = performance.now() + delayMs;
    for (;;) {
      const left = until - performance.now();
      if (left <= 0 || this.#isOver()) return;
      this.#wake = new AbortController();
      const isStopping = this.#stopAt !== undefined;
      const signal = isStopping ? this.#over.signal : this.#wake.signal;
      await pause(left, signal, isStopping);
      if (!isStopping && this.#stopAt !== undefined) return;
    }
  }

  async #try(messages: Item[][], timeoutMs: number): Promise<IngestResult> {
    const requests = messages.map((members) => ({ batch: toBatch(members as [Item, ...Item[]]) }));
    const answer = await this.#store.rpc.ingestSpans(requests, {
      timeoutMs,
      signal: this.#over.signal,
    });
    if (!answer.result) throw new Error("the server's response lacks a required field");
    return answer.result;
  }
}

function total(items: readonly Item[]): number {
  return items.reduce((size, item) => size + item.size, 0);
}

/** Returns whether a rejection applies to all spans of a message. */
function isAboutAttempt(rejection: BatchRejection): boolean {
  return (
    rejection.reason === ErrorReason.ROLLOUT_NOT_FOUND ||
    rejection.reason === ErrorReason.ATTEMPT_NOT_FOUND
  );
}
