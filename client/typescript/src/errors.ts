/** Errors of calls. */

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

/** Texts of gRPC for a connection that broke during a call, if the code is not UNAVAILABLE. */
const BROKEN =
  /RST_STREAM|ECONNRESET|EPIPE|Connection dropped|socket hang up|GOAWAY|Bandwidth exhausted|HTTP status code 200/i;
/** The codes of such errors. */
const VAGUE: readonly Code[] = [Code.UNKNOWN, Code.INTERNAL, Code.RESOURCE_EXHAUSTED];

/** Texts of gRPC for a message that is too large to be sent or received. */
const REQUEST_TOO_LARGE = /^Attempted to send message/;
const ANSWER_TOO_LARGE = /^(Received|Sent) message .*larger than/i;

/** Text of gRPC for a call cancelled by this client. */
const CANCELLED_HERE = "Cancelled on client";

/** A field of a request with an invalid value. */
export interface FieldViolation {
  /** Path of the field in the request, for example "rollouts[3].config.max_attempts". */
  readonly field: string;
  /** Says which values are valid. */
  readonly description: string;
}

/** The fields of an error besides its message. */
export interface ErrorFields {
  readonly reason?: string;
  readonly domain?: string;
  readonly metadata?: Readonly<Record<string, string>>;
  readonly retryDelayMs?: number | undefined;
  readonly fieldViolations?: readonly FieldViolation[];
  readonly cause?: unknown;
}

/**
 * The failure of a call. After UNAVAILABLE, DEADLINE_EXCEEDED and CANCELLED a write may or may not have taken
 * effect.
 */
export class LightningStoreError extends Error {
  override readonly name = "LightningStoreError";
  /** gRPC's status code: `error.code === Code.NOT_FOUND`. */
  readonly code: Code;
  /** The server's text, without the code that `message` begins with. */
  readonly details: string;
  /**
   * Name of an ErrorReason, for example "ERROR_REASON_ROLLOUT_NOT_FOUND". Empty if the server, or a proxy in
   * front of it, sent none.
   */
  readonly reason: string;
  /** Domain of the reason, "lightningstore". Empty without a reason. */
  readonly domain: string;
  /** The values that the message names, for programs; keys in lowerCamelCase. */
  readonly metadata: Readonly<Record<string, string>>;
  /** Minimum milliseconds before a retry. Undefined if the server did not request a delay. */
  readonly retryDelayMs: number | undefined;
  /** The invalid fields. */
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

  /** gRPC's name of the code, for example "NOT_FOUND". */
  get codeName(): string {
    return Code[this.code];
  }

  /** Whether a retry may succeed: no server, no response in time, or an error with a retry delay. */
  get isTemporary(): boolean {
    return (
      this.code === Code.UNAVAILABLE ||
      this.code === Code.DEADLINE_EXCEEDED ||
      this.retryDelayMs !== undefined
    );
  }
}

/**
 * Returns the error of a call that gRPC ended with `error`. `signal` is the caller's own, if there is one.
 */
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
      // Not a google.rpc.Status: use the plain status.
    }
  }
  let code: Code = error.code;
  if (VAGUE.includes(code) && BROKEN.test(error.details)) code = Code.UNAVAILABLE;
  if (code === Code.CANCELLED && error.details !== CANCELLED_HERE) {
    code = Code.UNAVAILABLE; // by a server that is shutting down, or by a proxy
  }
  const given = code === Code.CANCELLED && signal?.aborted ? (signal.reason as unknown) : error;
  return new LightningStoreError(code, error.details + advice(code, error.details), {
    cause: given,
  });
}

/** Returns how to avoid a message size error that gRPC itself raised. */
function advice(code: Code, details: string): string {
  if (code !== Code.RESOURCE_EXHAUSTED) return "";
  if (REQUEST_TOO_LARGE.test(details)) {
    return ": the request does not fit into one message and was not sent; send fewer or smaller items";
  }
  if (ANSWER_TOO_LARGE.test(details)) {
    return (
      ": the response does not fit into one message, but a write has taken effect; read the changed records in " +
      "pages, and send fewer items in such a call"
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
