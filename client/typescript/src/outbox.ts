/**
 * Prepares spans for sending, without I/O: encodes them, assigns them to attempts, and groups them into
 * messages.
 */

import { create, toBinary } from "@bufbuild/protobuf";
import type { Attributes } from "@opentelemetry/api";
import type { ReadableSpan } from "@opentelemetry/sdk-trace-base";

import { SpanBatchSchema, type SpanBatch } from "./gen/lightningstore/v1/span_pb.js";
import {
  InstrumentationScopeSchema,
  type InstrumentationScope,
} from "./gen/opentelemetry/proto/common/v1/common_pb.js";
import {
  ResourceSchema,
  type Resource,
} from "./gen/opentelemetry/proto/resource/v1/resource_pb.js";
import { SpanSchema, type Span } from "./gen/opentelemetry/proto/trace/v1/trace_pb.js";
import { toOtlpResource, toOtlpScope, toOtlpSpan } from "./otlp.js";

export const ROLLOUT_ID = "agentlightning.rollout_id";
export const ATTEMPT_ID = "agentlightning.attempt_id";
const SEQUENCE_ID = "agentlightning.span_sequence_id";

/**
 * A message is closed when it exceeds this size: small enough for every limit, large enough to be efficient.
 */
export const MESSAGE_BYTES = 1 << 20;

/** One encoded span, and what it shares with others. */
export interface Item {
  readonly rolloutId: string;
  readonly attemptId: string;
  readonly resource: Resource;
  readonly resourceSchemaUrl: string;
  readonly scope: InstrumentationScope;
  readonly schemaUrl: string;
  readonly span: Span;
  readonly sequenceId: bigint;
  /** Bytes of the span. */
  readonly size: number;
  /** Bytes of the resource and the scope, which the server limits like a span. */
  readonly originSize: number;
}

// An SDK shares these among spans, so each is encoded once.
const resources = new WeakMap<object, Resource>();
const scopes = new WeakMap<object, InstrumentationScope>();
const resourceSizes = new WeakMap<Resource, number>();
const scopeSizes = new WeakMap<InstrumentationScope, number>();

/** The attempt that a span belongs to. */
export interface Filed {
  readonly rolloutId: string;
  readonly attemptId: string;
}

/**
 * Returns the attempt of a span: named by its attributes, else by those of its resource, else the one given.
 */
export function attemptOf(span: ReadableSpan, given: Filed): Filed {
  const own = span.attributes;
  const shared = span.resource.attributes;
  return {
    rolloutId: text(own, ROLLOUT_ID) ?? text(shared, ROLLOUT_ID) ?? given.rolloutId,
    attemptId: text(own, ATTEMPT_ID) ?? text(shared, ATTEMPT_ID) ?? given.attemptId,
  };
}

/** Returns why ids cannot name an attempt; undefined if they can. */
export function wrongAttempt({ rolloutId, attemptId }: Filed): string | undefined {
  if (!rolloutId || !attemptId) return "no rollout id and attempt id";
  // A repaired id would name another attempt.
  if (!rolloutId.isWellFormed()) return `${ROLLOUT_ID} has half a surrogate pair`;
  if (!attemptId.isWellFormed()) return `${ATTEMPT_ID} has half a surrogate pair`;
  return undefined;
}

/**
 * Encodes a span of an attempt.
 *
 * @throws Error if the span cannot be encoded.
 */
export function encode(span: ReadableSpan, filed: Filed): Item {
  const encoded = toOtlpSpan(span);
  const number = span.attributes[SEQUENCE_ID];
  const isNumbered = typeof number === "number" && Number.isSafeInteger(number) && number > 0;
  const resource = kept(resources, span.resource, toOtlpResource);
  const scope = kept(scopes, span.instrumentationScope, toOtlpScope);
  return {
    ...filed,
    resource,
    resourceSchemaUrl: span.resource.schemaUrl ?? "",
    scope,
    schemaUrl: span.instrumentationScope.schemaUrl ?? "",
    span: encoded,
    sequenceId: isNumbered ? BigInt(number) : 0n,
    size: toBinary(SpanSchema, encoded).length,
    originSize:
      kept(resourceSizes, resource, (one) => toBinary(ResourceSchema, one).length) +
      kept(scopeSizes, scope, (one) => toBinary(InstrumentationScopeSchema, one).length),
  };
}

function text(attributes: Attributes, key: string): string | undefined {
  const value = attributes[key];
  return typeof value === "string" && value ? value : undefined;
}

function kept<K extends object, V>(cache: WeakMap<object, V>, key: K, make: (key: K) => V): V {
  let value = cache.get(key);
  if (value === undefined) {
    value = make(key);
    cache.set(key, value);
  }
  return value;
}

/** Groups items into messages of about 1 MiB, each with one origin, keeping the order in each attempt. */
export function intoMessages(items: readonly Item[]): Item[][] {
  const messages: Item[][] = [];
  const current = new Map<string, { members: Item[]; size: number }>();
  for (const item of items) {
    const attempt = `${item.rolloutId} ${item.attemptId}`;
    let open = current.get(attempt);
    const first = open?.members[0];
    if (!open || !first || !sameOrigin(first, item) || open.size + item.size > MESSAGE_BYTES) {
      open = { members: [], size: 0 };
      current.set(attempt, open);
      messages.push(open.members);
    }
    open.members.push(item);
    open.size += item.size;
  }
  return messages;
}

/**
 * For one attempt. OTLP messages are created once per resource and scope, so comparing references suffices.
 */
function sameOrigin(one: Item, other: Item): boolean {
  return one.resource === other.resource && one.scope === other.scope;
}

/** Returns a message of the contract with items of one origin. */
export function toBatch(items: readonly [Item, ...Item[]]): SpanBatch {
  const { rolloutId, attemptId, resource, resourceSchemaUrl, scope, schemaUrl } = items[0];
  return create(SpanBatchSchema, {
    rolloutId,
    attemptId,
    resource,
    resourceSchemaUrl,
    scope,
    schemaUrl,
    spans: items.map((item) => item.span),
    sequenceIds: items.some((item) => item.sequenceId) ? items.map((item) => item.sequenceId) : [],
  });
}
