/** Converts spans of the OpenTelemetry SDK to messages of OTLP. */

import { create } from "@bufbuild/protobuf";
import type { Attributes, HrTime, Link, SpanContext } from "@opentelemetry/api";
import type { Resource as SdkResource } from "@opentelemetry/resources";
import type { ReadableSpan, TimedEvent } from "@opentelemetry/sdk-trace-base";

import {
  AnyValueSchema,
  InstrumentationScopeSchema,
  KeyValueSchema,
  type AnyValue,
  type InstrumentationScope,
  type KeyValue,
} from "./gen/opentelemetry/proto/common/v1/common_pb.js";
import {
  ResourceSchema,
  type Resource,
} from "./gen/opentelemetry/proto/resource/v1/resource_pb.js";
import {
  Span_EventSchema,
  Span_LinkSchema,
  SpanSchema,
  StatusSchema,
  type Span,
  type Span_Event,
  type Span_Link,
} from "./gen/opentelemetry/proto/trace/v1/trace_pb.js";
import { isRewardValue } from "./rewards.js";

/** Bits of OTLP's flags: whether it is known if the parent is remote, and whether it is. */
const HAS_IS_REMOTE = 0x100;
const IS_REMOTE = 0x200;

/** Returns a span as a message of OTLP. */
export function toOtlpSpan(span: ReadableSpan): Span {
  const own = span.spanContext();
  const parent = span.parentSpanContext;
  return create(SpanSchema, {
    traceId: bytes(own.traceId),
    spanId: bytes(own.spanId),
    parentSpanId: parent ? bytes(parent.spanId) : new Uint8Array(),
    traceState: own.traceState?.serialize() ?? "",
    flags: flags(own, parent),
    name: span.name,
    kind: span.kind + 1, // OTLP keeps 0 for "unspecified"
    startTimeUnixNano: nanos(span.startTime),
    endTimeUnixNano: nanos(span.endTime),
    attributes: toPairs(span.attributes),
    droppedAttributesCount: span.droppedAttributesCount,
    events: span.events.map(toEvent),
    droppedEventsCount: span.droppedEventsCount,
    links: span.links.map(toLink),
    droppedLinksCount: span.droppedLinksCount,
    status: create(StatusSchema, {
      code: span.status.code as number,
      message: span.status.message ?? "",
    }),
  });
}

/** Returns the resource of a span as a message of OTLP. */
export function toOtlpResource(resource: SdkResource): Resource {
  return create(ResourceSchema, { attributes: toPairs(resource.attributes) });
}

/** Returns the scope of a span as a message of OTLP. */
export function toOtlpScope(scope: ReadableSpan["instrumentationScope"]): InstrumentationScope {
  return create(InstrumentationScopeSchema, { name: scope.name, version: scope.version ?? "" });
}

function toEvent(event: TimedEvent): Span_Event {
  return create(Span_EventSchema, {
    name: event.name,
    timeUnixNano: nanos(event.time),
    attributes: toPairs(event.attributes ?? {}),
    droppedAttributesCount: event.droppedAttributesCount ?? 0,
  });
}

function toLink(link: Link): Span_Link {
  return create(Span_LinkSchema, {
    traceId: bytes(link.context.traceId),
    spanId: bytes(link.context.spanId),
    traceState: link.context.traceState?.serialize() ?? "",
    attributes: toPairs(link.attributes ?? {}),
    droppedAttributesCount: link.droppedAttributesCount ?? 0,
    flags: flags(link.context, link.context),
  });
}

function flags(own: SpanContext, other: SpanContext | undefined): number {
  return (own.traceFlags & 0xff) | HAS_IS_REMOTE | (other?.isRemote ? IS_REMOTE : 0);
}

function bytes(hex: string): Uint8Array {
  return Uint8Array.from(Buffer.from(hex, "hex"));
}

function nanos([seconds, rest]: HrTime): bigint {
  return BigInt(seconds) * 1_000_000_000n + BigInt(rest);
}

function toPairs(attributes: Attributes): KeyValue[] {
  return Object.entries(attributes).map(([key, value]) =>
    create(KeyValueSchema, {
      key,
      value:
        typeof value === "number" && isRewardValue(key)
          ? create(AnyValueSchema, { value: { case: "doubleValue", value } })
          : toAny(value),
    }),
  );
}

function toAny(value: unknown): AnyValue {
  return create(AnyValueSchema, { value: toCase(value) });
}

function toCase(value: unknown): AnyValue["value"] {
  switch (typeof value) {
    case "string":
      return { case: "stringValue", value };
    case "boolean":
      return { case: "boolValue", value };
    case "bigint":
      // OTLP has integers of 64 bits; a larger one would make the whole span invalid.
      return BigInt.asIntN(64, value) === value
        ? { case: "intValue", value }
        : { case: "stringValue", value: value.toString() };
    case "number":
      return Number.isSafeInteger(value)
        ? { case: "intValue", value: BigInt(value) }
        : { case: "doubleValue", value };
  }
  if (value instanceof Uint8Array) return { case: "bytesValue", value };
  if (Array.isArray(value)) {
    const values = value.map(toAny);
    return {
      case: "arrayValue",
      value: { $typeName: "opentelemetry.proto.common.v1.ArrayValue", values },
    };
  }
  if (value !== null && typeof value === "object") {
    const values = toPairs(value as Attributes);
    return {
      case: "kvlistValue",
      value: { $typeName: "opentelemetry.proto.common.v1.KeyValueList", values },
    };
  }
  return { case: undefined };
}
