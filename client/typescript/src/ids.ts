/** Ids from the operating system's randomness. */

import { randomFillSync } from "node:crypto";

import type { IdGenerator } from "@opentelemetry/sdk-trace-base";

const SPAN_BYTES = 8;
const TRACE_BYTES = 16;

/** Random bytes are read in advance, to avoid a system call per span. */
const pool = Buffer.alloc(4096);
let used = pool.length;

function randomHex(length: number): string {
  for (;;) {
    if (used + length > pool.length) {
      randomFillSync(pool);
      used = 0;
    }
    const id = pool.toString("hex", used, used + length);
    used += length;
    if (!/^0+$/.test(id)) return id; // all zero is no id
  }
}

/**
 * Generates trace and span ids. OpenTelemetry's own generator uses Math.random, which a program may have
 * seeded: then ids repeat, and the store keeps only the first of two spans of an attempt with the same id.
 */
export class SecureIdGenerator implements IdGenerator {
  readonly generateTraceId = (): string => randomHex(TRACE_BYTES);
  readonly generateSpanId = (): string => randomHex(SPAN_BYTES);
}
