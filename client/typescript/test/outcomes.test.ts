/** Whatever ends a function is reported. */

import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";

import { context as otel } from "@opentelemetry/api";
import { suppressTracing } from "@opentelemetry/core";

import {
  AttemptStatus,
  Code,
  emitReward,
  NonRetryable,
  Runner,
  type Agent,
  type Reward,
} from "../src/index.js";
import type { SpanBatch, UpdateAttemptRequest } from "../src/proto.js";
import { Refusal, ScriptedServer, type Script } from "./scripted.js";

beforeEach(() => {
  mock.method(process, "emitWarning", () => undefined);
});

interface Told {
  readonly updates: UpdateAttemptRequest[];
  readonly batches: SpanBatch[];
}

/** Runs a function on one rollout, and returns its report. */
async function told(agent: Agent, script: Script = {}): Promise<Told> {
  const updates: UpdateAttemptRequest[] = [];
  const batches: SpanBatch[] = [];
  const latestAttempt = { rolloutId: "ro", attemptId: "at", sequenceNumber: 1 };
  using server = await ScriptedServer.start({
    dequeueRollouts: () => ({
      rollouts: [{ rolloutId: "ro", inputJson: Buffer.from("1"), latestAttempt }],
    }),
    heartbeat: () => ({}),
    ingestSpans: async (requests) => {
      for await (const { batch } of requests) if (batch) batches.push(batch);
      return { result: {} };
    },
    updateAttempt: (request) => {
      updates.push(request);
      return {};
    },
    ...script,
  });
  await new Runner(agent, { address: server.address, maxRollouts: 1 }).run();
  return { updates, batches };
}

const broken = (): never => {
  throw new Error("broken getter");
};

/** An error with a property that cannot be read, or that is not what it should be. */
function withProperty(name: string, descriptor: PropertyDescriptor): Error {
  return Object.defineProperty(new TypeError("text"), name, descriptor);
}

const traps = { get: broken, getPrototypeOf: broken, ownKeys: broken };
const hostile = new Proxy(Object.freeze(new Error("inside")), traps);
const ring: Record<string, unknown> = { name: "ring" };
ring.ring = ring;
const endless = new Error("endless");
endless.cause = endless;

const THROWN: readonly [what: string, thrown: unknown, type: string, message: RegExp][] = [
  ["undefined", undefined, "undefined", /^undefined$/],
  ["null", null, "null", /^null$/],
  ["a symbol", Symbol("mark"), "symbol", /^Symbol\(mark\)$/],
  ["an empty text", "", "string", /^string$/],
  ["a bigint", 10n, "bigint", /^10$/],
  ["an object", { status: 503 }, "object", /503/],
  ["an object that holds itself", ring, "object", /ring/],
  ["an object without a prototype", Object.create(null), "object", /./],
  ["an object whose toString throws", { toString: broken }, "object", /toString/],
  ["a function", broken, "function", /broken getter/],
  ["a frozen proxy whose traps throw", hostile, "object", /./],
  ["a message that cannot be read", withProperty("message", { get: broken }), "TypeError", /./],
  ["a message that is an object", withProperty("message", { value: ring }), "TypeError", /ring/],
  ["a message that is nothing", withProperty("message", { value: undefined }), "TypeError", /./],
  ["a name that cannot be read", withProperty("name", { get: broken }), "TypeError", /^text$/],
  ["a name that is a number", withProperty("name", { value: 5 }), "TypeError", /^text$/],
  ["a stack that cannot be read", withProperty("stack", { get: broken }), "TypeError", /^text$/],
  [
    "no constructor",
    Object.assign(new Error("text"), { constructor: undefined }),
    "Error",
    /^text$/,
  ],
  ["an endless chain of causes", endless, "Error", /^endless$/],
  [
    "a cause that cannot be read",
    Object.defineProperty(new NonRetryable("text"), "cause", { get: broken }),
    "NonRetryable",
    /^text$/,
  ],
  ["half a surrogate pair", new Error("a\ud800b"), "Error", /^a\ufffdb$/],
  ["a huge text", new Error("é".repeat(1 << 22)), "Error", /^é{8192}$/],
  ["a text cut within a pair", new Error("a" + "😀".repeat(1 << 13)), "Error", /^a😀{4095}$/u],
  ["a huge name", withProperty("name", { value: "n".repeat(1 << 20) }), "n".repeat(256), /^text$/],
];

for (const [what, thrown, type, message] of THROWN) {
  test(`thrown ${what}: reported as a failure`, async () => {
    const { updates } = await told(() => {
      throw thrown;
    });
    assert.equal(updates.length, 1);
    const { status, failure } = updates[0]?.attempt ?? {};
    assert.equal(status, AttemptStatus.FAILED);
    assert.equal(failure?.type, type);
    assert.match(failure.message, message);
    assert(Buffer.byteLength(failure.message) <= 16_384);
  });
}

const RETURNED: readonly [what: string, value: unknown, message: RegExp][] = [
  ["NaN", NaN, /must be a finite number, not NaN/],
  ["infinity", -Infinity, /must be a finite number, not -Infinity/],
  ["a bigint", 10n ** 400n, /not bigint/],
  ["a symbol", Symbol("a"), /not symbol/],
  ["a function", broken, /not function/],
  ["an object whose toJSON throws", { toJSON: broken, valueOf: broken }, /not object/],
  ["an object that holds itself", ring, /not object/],
  ["a proxy whose traps throw", new Proxy({}, { get: broken }), /broken getter/],
];

for (const [what, value, message] of RETURNED) {
  test(`returned ${what}: reported as a failure`, async () => {
    const { updates, batches } = await told(() => value as Reward);
    assert.equal(updates.length, 1);
    const { status, failure } = updates[0]?.attempt ?? {};
    assert.equal(status, AttemptStatus.FAILED);
    assert.match(failure?.message ?? "", message);
    assert.deepEqual(batches, []);
  });
}

for (const code of [Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED]) {
  for (const [what, agent] of [
    ["success", () => 1],
    [
      "failure",
      () => {
        throw new NonRetryable("help");
      },
    ],
  ] as const) {
    test(`a report of ${what} that is refused (${Code[code]}) is repeated as a plain failure`, async () => {
      const got: UpdateAttemptRequest[] = [];
      await told(agent, {
        updateAttempt: (request) => {
          got.push(request);
          if (got.length === 1) throw new Refusal(code, "attempt.failure: no");
          return {};
        },
      });
      assert.equal(got.length, 2);
      const { status, failure } = got[1]?.attempt ?? {};
      assert.equal(status, AttemptStatus.FAILED);
      assert.equal(failure?.type, "ReportRefused");
      assert.match(failure.message, /attempt\.failure: no/);
      assert.equal(failure.retryable, what === "failure" ? false : undefined);
      assert.notEqual(got[0]?.requestId, got[1]?.requestId);
    });
  }
}

test("a report that is refused again is given up", async () => {
  let tries = 0;
  await told(() => 1, {
    updateAttempt: () => {
      tries++;
      throw new Refusal(Code.INVALID_ARGUMENT);
    },
  });
  assert.equal(tries, 2);
});

test("nothing of the environment, or of the caller, switches the runner's spans off", async (t) => {
  const environment = {
    OTEL_SDK_DISABLED: "true",
    OTEL_TRACES_SAMPLER: "always_off",
    OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT: "1",
    OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT: "1",
    OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT: "1",
    OTEL_RESOURCE_ATTRIBUTES: "agentlightning.rollout_id=other",
  };
  const before = { ...process.env };
  t.after(() => (process.env = before));
  Object.assign(process.env, environment);
  const dimensions = Object.fromEntries(Array.from({ length: 200 }, (_, n) => [`d${n}`, n]));
  const agent: Agent = (_input, _resources, tracer) => {
    tracer.startSpan("long", { attributes: { text: "long" } }).end();
    emitReward(dimensions);
    otel.with(suppressTracing(otel.active()), () => {
      emitReward(1);
    });
    return 1;
  };
  const { batches } = await otel.with(suppressTracing(otel.active()), () => told(agent));
  assert.deepEqual(
    batches.map(({ rolloutId, attemptId }) => [rolloutId, attemptId]),
    [["ro", "at"]],
  );
  const spans = batches.flatMap((batch) => batch.spans);
  assert.deepEqual(
    spans.map(({ attributes }) => attributes.length),
    [1, 400, 2, 2],
  );
  assert.equal(spans[0]?.attributes[0]?.value?.value.value, "long");
});

test("ids of spans do not repeat where Math.random does", async (t) => {
  t.mock.method(Math, "random", () => 0.5);
  const { batches } = await told((_input, _resources, tracer) => {
    for (let n = 0; n < 2000; n++) tracer.startSpan("s").end();
  });
  const spans = batches.flatMap((batch) => batch.spans);
  const ids = new Set(spans.map(({ spanId }) => Buffer.from(spanId).toString("hex")));
  const traces = new Set(spans.map(({ traceId }) => Buffer.from(traceId).toString("hex")));
  assert.deepEqual([ids.size, traces.size], [2000, 2000]);
});
