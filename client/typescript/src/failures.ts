/**
 * Describes thrown values. Any value can be thrown, and each of its properties may be a getter that throws,
 * so every access is guarded.
 */

import { inspect } from "node:util";

import { create } from "@bufbuild/protobuf";

import { NonRetryable } from "./context.js";
import { Code, type LightningStoreError } from "./errors.js";
import { FailureSchema, type Failure } from "./gen/lightningstore/v1/attempt_pb.js";
import { cut } from "./text.js";

/** Maximum size in bytes of a failure's type and message. */
const TYPE_BYTES = 256;
const MESSAGE_BYTES = 16_384;
const REFUSAL_BYTES = 1_024;

/** Returns the failure for a value thrown by the function. */
export function failureOf(thrown: unknown): Failure {
  const isFinal = attempt(() => thrown instanceof NonRetryable) ?? false;
  const cause = isFinal ? attempt(() => (thrown as NonRetryable).cause) : undefined;
  const failure = create(FailureSchema, {
    type: cut(typeName(cause ?? thrown), TYPE_BYTES),
    message: cut(messageOf(thrown), MESSAGE_BYTES),
  });
  if (isFinal) failure.retryable = false;
  return failure;
}

/** Returns whether the server rejects a request permanently. */
export function isRefusal({ code, retryDelayMs }: LightningStoreError): boolean {
  return (
    code === Code.INVALID_ARGUMENT ||
    (code === Code.RESOURCE_EXHAUSTED && retryDelayMs === undefined)
  );
}

/** Returns whether the server does not know a field of an update. */
export function isUnknownPath({ code, fieldViolations }: LightningStoreError): boolean {
  return (
    code === Code.INVALID_ARGUMENT &&
    fieldViolations.some(({ field }) => field.startsWith("update_mask"))
  );
}

/**
 * Returns the failure that replaces an outcome that the server rejected. It contains no text of the function.
 */
export function refusedFailure(refusal: LightningStoreError, refused?: Failure): Failure {
  const message = `the server rejected the report of the outcome: ${refusal.message}`;
  const failure = create(FailureSchema, {
    type: "ReportRefused",
    message: cut(message, REFUSAL_BYTES),
  });
  if (refused?.retryable !== undefined) failure.retryable = refused.retryable;
  return failure;
}

/** Returns the text of a thrown value, never empty. */
export function messageOf(thrown: unknown): string {
  if (typeof thrown === "string") return thrown || "string";
  const message = isError(thrown) ? attempt(() => thrown.message as unknown) : thrown;
  const text = typeof message === "string" ? message : attempt(() => String(message));
  // "[object Object]" is not a description.
  if (text === undefined || text.startsWith("[object ")) {
    return attempt(() => inspect(message, { depth: 3, breakLength: Infinity })) ?? typeName(thrown);
  }
  return text || typeName(thrown);
}

/** Returns the stack of an error if it has one that can be read. */
export function stackOf(thrown: unknown): string | undefined {
  if (!isError(thrown)) return undefined;
  const stack = attempt(() => thrown.stack as unknown);
  return typeof stack === "string" ? stack : messageOf(thrown);
}

function typeName(thrown: unknown): string {
  if (!isError(thrown)) return thrown === null ? "null" : typeof thrown;
  const name = attempt(() => thrown.name as unknown);
  if (typeof name === "string" && name && name !== "Error") return name;
  // Error classes rarely set a name of their own.
  const given = attempt(() => thrown.constructor.name as unknown);
  return typeof given === "string" && given ? given : "Error";
}

function isError(thrown: unknown): thrown is Error {
  return attempt(() => thrown instanceof Error) ?? false;
}

function attempt<T>(look: () => T): T | undefined {
  try {
    return look();
  } catch {
    return undefined;
  }
}
