/** What a call can fail with. */

import { fromBinary, type DescMessage, type MessageShape } from "@bufbuild/protobuf";
import { anyUnpack, type Any } from "@bufbuild/protobuf/wkt";
import { status as Code, type ServiceError } from "@grpc/grpc-js";

import {
  BadRequestSchema,
  ErrorInfoSchema,
  RetryInfoSchema,
} from "./gen/google/rpc/error_details_pb.js";
import { StatusSchema } from "./gen/google/rpc/status_pb.js";

export { Code };

const DETAILS_KEY = "grpc-status-details-bin";

/** How gRPC words a connection that broke under a call, where it does not say UNAVAILABLE itself. */
const BROKEN =
  /RST_STREAM|ECONNRESET|EPIPE|Connection dropped|socket hang up|GOAWAY|Bandwidth exhausted|HTTP status code 200/i;
/** The codes that it gives to that. */
const VAGUE: readonly Code[] = [Code.UNKNOWN, Code.INTERNAL, Code.RESOURCE_EXHAUSTED];

/** How gRPC words a message that is too large to be sent, or to be taken. */
const REQUEST_TOO_LARGE = /^Attempted to send message/;
const ANSWER_TOO_LARGE = /^(Received|Sent) message .*larger than/i;

/** How gRPC words what this side has cancelled. */
const CANCELLED_HERE = "Cancelled on client";

/** A field of a request that has a value that it cannot have. */
export interface FieldViolation {
  /** Path of the field in the request, "rollouts[3].config.max_attempts" for instance. */
  readonly field: string;
  /** What would be right. */
  readonly description: string;
}

/** What an error is made of, besides its message. */
export interface ErrorFields {
  readonly reason?: string;
  readonly domain?: string;
  readonly metadata?: Readonly<Record<string, string>>;
  readonly retryDelayMs?: number | undefined;
  readonly fieldViolations?: readonly FieldViolation[];
  readonly cause?: unknown;
}

/** A call failed. UNAVAILABLE, DEADLINE_EXCEEDED and CANCELLED leave open whether a write took place. */
export class LightningStoreError extends Error {
  override readonly name = "LightningStoreError";
  /** The status code of gRPC: `error.code === Code.NOT_FOUND`. */
  readonly code: Code;
  /** What the server said, without the code that `message` begins with. */
  readonly details: string;
  /**
   * Name of an ErrorReason, "ERROR_REASON_ROLLOUT_NOT_FOUND" for instance. Empty if the server, or what
   * stands before it, gave none.
   */
  readonly reason: string;
  /** Who gave the reason: "lightningstore". Empty without one. */
  readonly domain: string;
  /** What the message names, for machines; keys in lowerCamelCase. */
  readonly metadata: Readonly<Record<string, string>>;
  /** Milliseconds after which the call may be tried again. Undefined: the server gave none. */
  readonly retryDelayMs: number | undefined;
  /** The fields that are wrong. */
  readonly fieldViolations: readonly FieldViolation[];

  constructor(code: Code, details: string, fields: ErrorFields = {}) {
    super(`${Code[code]}: ${details}`, fields.cause === undefined ? {} : { cause: fields.cause });
    this.code = code;
    this.details = details;
    this.reason = fields.reason ?? "";
    this.domain = fields.domain ?? "";
    this.metadata = fields.metadata ?? {};
    this.retryDelayMs = fields.retryDelayMs;
    this.fieldViolations = fields.fieldViolations ?? [];
  }

  /** gRPC's name of the code, "NOT_FOUND" for instance. */
  get codeName(): string {
    return Code[this.code];
  }

  /** Whether waiting and repeating may help: no server, no answer in time, or one that says when. */
  get isTemporary(): boolean {
    return (
      this.code === Code.UNAVAILABLE ||
      this.code === Code.DEADLINE_EXCEEDED ||
      this.retryDelayMs !== undefined
    );
  }
}

/** Returns the error of a call that gRPC ended with `error`; `signal` is the caller's own, if it has one. */
export function toStoreError(error: unknown, signal?: AbortSignal): LightningStoreError {
  if (error instanceof LightningStoreError) return error;
  if (!isServiceError(error)) {
    const text = error instanceof Error ? error.message : String(error);
    return new LightningStoreError(Code.UNKNOWN, text, { cause: error });
  }
  const [bytes] = error.metadata.get(DETAILS_KEY);
  if (Buffer.isBuffer(bytes)) {
    try {
      return fromStatus(bytes, error);
    } catch {
      // No google.rpc.Status: the plain status is good all the same.
    }
  }
  let code: Code = error.code;
  if (VAGUE.includes(code) && BROKEN.test(error.details)) code = Code.UNAVAILABLE;
  if (code === Code.CANCELLED && error.details !== CANCELLED_HERE) {
    code = Code.UNAVAILABLE; // by a server that goes down, or by what lies before it
  }
  const given = code === Code.CANCELLED && signal?.aborted ? (signal.reason as unknown) : error;
  return new LightningStoreError(code, error.details + advice(code, error.details), {
    cause: given,
  });
}

/** Returns what would be right where gRPC itself refused a message for its size. */
function advice(code: Code, details: string): string {
  if (code !== Code.RESOURCE_EXHAUSTED) return "";
  if (REQUEST_TOO_LARGE.test(details)) {
    return ": the request does not fit into one message; nothing was sent, so give the call fewer or smaller items";
  }
  if (ANSWER_TOO_LARGE.test(details)) {
    return (
      ": the answer does not fit into one message; a write has taken place all the same, so read what it changed " +
      "page by page, and give such a call fewer items"
    );
  }
  return "";
}

function fromStatus(bytes: Uint8Array, error: ServiceError): LightningStoreError {
  const status = fromBinary(StatusSchema, bytes);
  const info = detail(status.details, ErrorInfoSchema);
  const delay = detail(status.details, RetryInfoSchema)?.retryDelay;
  const violations = detail(status.details, BadRequestSchema)?.fieldViolations ?? [];
  return new LightningStoreError(status.code, status.message, {
    reason: info?.reason ?? "",
    domain: info?.domain ?? "",
    metadata: info?.metadata ?? {},
    retryDelayMs: delay && Number(delay.seconds) * 1000 + delay.nanos / 1e6,
    fieldViolations: violations.map(({ field, description }) => ({ field, description })),
    cause: error,
  });
}

function detail<D extends DescMessage>(details: Any[], schema: D): MessageShape<D> | undefined {
  for (const any of details) {
    const found = anyUnpack(any, schema);
    if (found) return found;
  }
  return undefined;
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "metadata" in error && "code" in error && "details" in error;
}
