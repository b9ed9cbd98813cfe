/** Spans read from a store. */

import type {
  AnyValue,
  InstrumentationScope,
  KeyValue,
} from "./gen/opentelemetry/proto/common/v1/common_pb.js";
import type { Resource as OtlpResource } from "./gen/opentelemetry/proto/resource/v1/resource_pb.js";
import type { Span as OtlpSpan } from "./gen/opentelemetry/proto/trace/v1/trace_pb.js";
import type { SpanBatch } from "./gen/lightningstore/v1/span_pb.js";

/** Value of an attribute. Integers beyond 2^53 are bigints. */
export type AttributeValue =
  | string
  | number
  | bigint
  | boolean
  | Uint8Array
  | null
  | AttributeValue[]
  | { [key: string]: AttributeValue };

/** An OpenTelemetry span of an attempt. */
export class StoredSpan {
  readonly rolloutId: string;
  readonly attemptId: string;
  /** Position within the attempt, counted from 1. */
  readonly sequenceId: bigint;
  /** The span, as stored. */
  readonly otlp: OtlpSpan;
  /** The entity that produced the span. */
  readonly resource: OtlpResource | undefined;
  readonly scope: InstrumentationScope | undefined;
  #attributes: Record<string, AttributeValue> | undefined;

  constructor(batch: SpanBatch, otlp: OtlpSpan, sequenceId: bigint) {
    this.rolloutId = batch.rolloutId;
    this.attemptId = batch.attemptId;
    this.resource = batch.resource;
    this.scope = batch.scope;
    this.otlp = otlp;
    this.sequenceId = sequenceId;
  }

  get name(): string {
    return this.otlp.name;
  }

  /** 32 lower-case hex digits. */
  get traceId(): string {
    return hex(this.otlp.traceId);
  }

  /** 16 lower-case hex digits. */
  get spanId(): string {
    return hex(this.otlp.spanId);
  }

  /** 16 lower-case hex digits. Empty for a root span. */
  get parentSpanId(): string {
    return hex(this.otlp.parentSpanId);
  }

  /** Its attributes by name. */
  get attributes(): Readonly<Record<string, AttributeValue>> {
    this.#attributes ??= toRecord(this.otlp.attributes);
    return this.#attributes;
  }
}

/** Returns the spans of a batch, in order. */
export function spansOf(batch: SpanBatch): StoredSpan[] {
  return batch.spans.map((span, i) => new StoredSpan(batch, span, batch.sequenceIds[i] ?? 0n));
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("hex");
}

function toRecord(pairs: readonly KeyValue[]): Record<string, AttributeValue> {
  return Object.fromEntries(pairs.map(({ key, value }) => [key, toValue(value)]));
}

function toValue(any: AnyValue | undefined): AttributeValue {
  const value = any?.value;
  switch (value?.case) {
    case "intValue": {
      const number = Number(value.value);
      return Number.isSafeInteger(number) ? number : value.value;
    }
    case "arrayValue":
      return value.value.values.map(toValue);
    case "kvlistValue":
      return toRecord(value.value.values);
    case "stringValue":
    case "boolValue":
    case "doubleValue":
    case "bytesValue":
      return value.value;
    default:
      return null;
  }
}
