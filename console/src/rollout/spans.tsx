// Spans of an attempt as rows of a tree.
import { useReload, type Live } from "../api/live.js";
import type { Store } from "../api/client.js";
import type { Attempt } from "../gen/lightningstore/v1/attempt_pb.js";
import type { SpanBatch } from "../gen/lightningstore/v1/span_pb.js";
import type { AnyValue, KeyValue } from "../gen/opentelemetry/proto/common/v1/common_pb.js";
import { Status_StatusCode, type Span } from "../gen/opentelemetry/proto/trace/v1/trace_pb.js";
import { Empty } from "../parts/basics.js";

export interface Row {
  readonly id: string;
  readonly span: Span;
  readonly batch: SpanBatch;
  readonly sequenceId: bigint;
  /** Milliseconds since the first span began. */
  readonly start: number;
  readonly end: number;
  readonly failed: boolean;
  level: number;
  children: Row[];
}

export interface Trace {
  /** All spans from above: a caller before its callees, siblings by start. */
  readonly rows: readonly Row[];
  /** Milliseconds from the first start to the last end. */
  readonly length: number;
  /** When the first span began, in nanoseconds. */
  readonly began: bigint;
}

/** Loads again when spans have been added. */
export function useSpanReload(live: Live<unknown>, attempt: Attempt): void {
  useReload(live, `${attempt.spanCount} ${attempt.status}`);
}

export const hex = (bytes: Uint8Array): string =>
  Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

export async function loadTrace(
  store: Store,
  { rolloutId, attemptId }: Attempt,
  signal: AbortSignal,
): Promise<Trace> {
  const batches: SpanBatch[] = [];
  for await (const answer of store.querySpans({ rolloutId, attemptId }, { signal }))
    batches.push(...answer.batches);
  return traceOf(batches);
}

function traceOf(batches: readonly SpanBatch[]): Trace {
  const spans = batches.flatMap((batch) => batch.spans);
  const starts = spans.map((span) => span.startTimeUnixNano).filter((time) => time > 0n);
  const began = starts.reduce((least, time) => (time < least ? time : least), starts[0] ?? 0n);
  const rows: Row[] = [];
  let last = 0;
  for (const batch of batches)
    batch.spans.forEach((span, index) => {
      // A span without a start begins with the one before it, as in triplets.
      const start = span.startTimeUnixNano ? Number(span.startTimeUnixNano - began) / 1e6 : last;
      const end = span.endTimeUnixNano ? Number(span.endTimeUnixNano - began) / 1e6 : start;
      last = start;
      rows.push({
        id: hex(span.spanId),
        span,
        batch,
        sequenceId: batch.sequenceIds[index] ?? 0n,
        start,
        end: Math.max(start, end),
        failed: span.status?.code === Status_StatusCode.ERROR || span.events.some(isException),
        level: 1,
        children: [],
      });
    });
  const length = rows.reduce((longest, row) => Math.max(longest, row.end), 0);
  return { rows: preorder(rows), length, began };
}

export const isException = ({ name }: { name: string }): boolean => name === "exception";

/** Returns the rows from above. Spans whose parent is missing, or is below them, are roots. */
function preorder(rows: readonly Row[]): Row[] {
  const byId = new Map(rows.map((row) => [row.id, row]));
  const roots: Row[] = [];
  for (const row of rows) {
    const parent = byId.get(hex(row.span.parentSpanId));
    if (parent && parent !== row) parent.children.push(row);
    else roots.push(row);
  }
  const order = (one: Row, other: Row) =>
    one.start - other.start || Number(one.sequenceId - other.sequenceId);
  const sorted: Row[] = [];
  const seen = new Set<Row>();
  const visit = (from: Row[]) => {
    const waiting = from.sort(order).reverse();
    for (let row = waiting.pop(); row; row = waiting.pop()) {
      if (seen.has(row)) continue;
      seen.add(row);
      sorted.push(row);
      for (const child of row.children.sort(order).reverse()) {
        child.level = row.level + 1;
        waiting.push(child);
      }
    }
  };
  visit(roots);
  // What is left is in cycles.
  for (const row of rows) if (!seen.has(row)) visit([row]);
  return sorted;
}

/** Returns an attribute's value as text. */
export function valueText(value: AnyValue | undefined): string {
  const plain = plainValue(value);
  return typeof plain === "string" ? plain : JSON.stringify(plain, null, 2);
}

function plainValue(value: AnyValue | undefined): unknown {
  const inner = value?.value;
  switch (inner?.case) {
    case "arrayValue":
      return inner.value.values.map(plainValue);
    case "kvlistValue":
      return plainAttributes(inner.value.values);
    case "bytesValue":
      return hex(inner.value);
    case "intValue":
      return Number.isSafeInteger(Number(inner.value))
        ? Number(inner.value)
        : inner.value.toString();
    case undefined:
      return null;
    default:
      return inner?.value;
  }
}

/** Returns attributes as JSON values. A map without a prototype, because keys come from the trace. */
export function plainAttributes(pairs: readonly KeyValue[]): Record<string, unknown> {
  const map = Object.create(null) as Record<string, unknown>;
  for (const { key, value } of pairs) map[key] = plainValue(value);
  return map;
}

/** What stands where an attempt has no spans. */
export function NoSpans({ attempt }: { attempt: Attempt }) {
  return (
    <Empty
      command={`store.add_spans(batch)  # SpanBatch(rollout_id=${JSON.stringify(attempt.rolloutId)}, attempt_id=${JSON.stringify(attempt.attemptId)}, spans=[…])`}
    >
      This attempt has no spans. Its runner adds them by itself if the agent is traced with
      OpenTelemetry; other programs call:
    </Empty>
  );
}
