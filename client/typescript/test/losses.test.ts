import assert from "node:assert/strict";
import { once } from "node:events";
import { test, type TestContext } from "node:test";
import { fileURLToPath } from "node:url";
import { Worker } from "node:worker_threads";

import { trace, type Span } from "@opentelemetry/api";
import { resourceFromAttributes } from "@opentelemetry/resources";
import {
  AlwaysOffSampler,
  BasicTracerProvider,
  SimpleSpanProcessor,
} from "@opentelemetry/sdk-trace-base";

import { emitReward, SpanExporter } from "../src/index.js";
import { Losses } from "../src/losses.js";
import type { SpanBatch } from "../src/proto.js";
import { ScriptedServer } from "./scripted.js";

function warnings(t: TestContext): string[] {
  const got: string[] = [];
  t.mock.method(process, "emitWarning", (message: string) => got.push(message));
  return got;
}

function tracerOf(exporter: SpanExporter) {
  const provider = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] });
  return provider.getTracer("test");
}

/** Puts attributes on a span that the SDK itself would not take, as an instrumentation may. */
function put(span: Span, attributes: object): void {
  Object.assign((span as unknown as { attributes: object }).attributes, attributes);
}

const ATTEMPT = { rolloutId: "ro", attemptId: "at" };

test("losses are reported once, and then in a summary per minute", (t) => {
  const told = warnings(t);
  const due: (() => void)[] = [];
  const losses = new Losses((ms, summarize) => {
    assert.equal(ms, 60_000);
    due.push(summarize);
  });
  for (let n = 0; n < 1000; n++) {
    losses.add(1, "beyond the buffer", "the buffer is full");
    losses.add(2, "too large", "it has 5 MiB");
  }
  assert.deepEqual(told.splice(0), [
    "dropped 1 span(s): the buffer is full; 1 so far",
    "dropped 2 span(s): it has 5 MiB; 3 so far",
  ]);
  assert.equal(due.length, 1);
  due[0]?.();
  const summary = "dropped more spans: 999 beyond the buffer, 1998 too large; 3000 so far";
  assert.deepEqual(told.splice(0), [summary]);
  losses.add(5, "too large", "it has 5 MiB");
  assert.equal(due.length, 2);
  losses.summarize(); // as a shutdown does
  assert.deepEqual(told.splice(0), ["dropped more spans: 5 too large; 3005 so far"]);
  due[1]?.();
  assert.deepEqual(told, []);
});

test("rejections without a reason, or without a message, are reported", async (t) => {
  const told = warnings(t);
  using server = await ScriptedServer.start({
    ingestSpans: async (requests) => {
      for await (const _ of requests);
      return { result: { rejectedCount: 2n, rejections: [{ messageIndex: 99n, spanCount: 2 }] } };
    },
  });
  const exporter = new SpanExporter({ address: server.address, ...ATTEMPT });
  tracerOf(exporter).startSpan("a").end();
  tracerOf(exporter).startSpan("b").end();
  await exporter.forceFlush();
  assert.equal(exporter.droppedCount, 2);
  assert.match(told.join(), /without a reason/);
  await exporter.shutdown();
});

test("single rejected spans of a batch are reported, and the others not sent again", async (t) => {
  const told = warnings(t);
  let streams = 0;
  using server = await ScriptedServer.start({
    ingestSpans: async (requests) => {
      streams++;
      for await (const _ of requests);
      const rejections = [{ message: "another span has the id", spanCount: 2 }];
      return { result: { acceptedCount: 1n, rejectedCount: 2n, rejections } };
    },
  });
  const exporter = new SpanExporter({ address: server.address, ...ATTEMPT });
  const tracer = tracerOf(exporter);
  for (const name of ["a", "b", "c"]) tracer.startSpan(name).end();
  await exporter.forceFlush();
  assert.deepEqual([exporter.droppedCount, streams], [2, 1]);
  assert.match(told.join(), /dropped 2 span\(s\): .*another span has the id/);
  await exporter.shutdown();
});

test("a resource that is too large costs its spans, and nothing is sent", async (t) => {
  const told = warnings(t);
  const exporter = new SpanExporter({ address: "127.0.0.1:1", ...ATTEMPT, maxSpanBytes: 1000 });
  const resource = resourceFromAttributes({ text: "x".repeat(1000) });
  const spanProcessors = [new SimpleSpanProcessor(exporter)];
  new BasicTracerProvider({ resource, spanProcessors }).getTracer("t").startSpan("s").end();
  assert.equal(exporter.droppedCount, 1);
  assert.match(told.join(), /resource and scope of "s" have \d+ bytes, over the limit of 1000/);
  await exporter.shutdown();
});

test("one invalid field costs at most its span, and is reported", async (t) => {
  const told = warnings(t);
  const batches: SpanBatch[] = [];
  using server = await ScriptedServer.start({
    ingestSpans: async (requests) => {
      for await (const { batch } of requests) if (batch) batches.push(batch);
      return { result: {} };
    },
  });
  const exporter = new SpanExporter({ address: server.address, ...ATTEMPT });
  const tracer = tracerOf(exporter);
  const BAD = "a\ud800b";
  tracer.startSpan("good", { attributes: { [BAD]: BAD } }).end();
  tracer.startSpan(BAD).setStatus({ code: 2, message: BAD }).end();
  const endless = tracer.startSpan(Symbol("endless") as unknown as string);
  const ring: Record<string, unknown> = {};
  ring.ring = ring;
  put(endless, ring);
  endless.end();
  tracer.startSpan("lost", { attributes: { "agentlightning.attempt_id": BAD } }).end();
  const big = tracer.startSpan("big");
  put(big, { big: 2n ** 64n });
  big.end();
  await exporter.forceFlush();
  const spans = batches.flatMap((batch) => batch.spans);
  assert.deepEqual(
    spans.map(({ name }) => name),
    ["good", "a\ufffdb", "big"],
  );
  assert.equal(spans[0]?.attributes[0]?.value?.value.value, "a\ufffdb");
  assert.equal(spans[1]?.status?.message, "a\ufffdb");
  assert.equal(spans[2]?.attributes[0]?.value?.value.value, "18446744073709551616");
  assert.equal(exporter.droppedCount, 2);
  assert.match(told[0] ?? "", /Symbol\(endless\)" cannot be encoded/);
  assert.match(told[1] ?? "", /agentlightning\.attempt_id has half a surrogate pair/);
  assert.equal(exporter.sentCount("ro", "at"), 4); // the one that cannot be encoded is one of them
  await exporter.shutdown();
  tracer.startSpan("late").end();
  assert.equal(exporter.droppedCount, 3);
  assert.match(told[2] ?? "", /shut down/);
});

test("a reward of a tracer that does not record is an error", () => {
  const unregistered = trace.getTracer("none"); // no provider is registered
  const sampled = new BasicTracerProvider({ sampler: new AlwaysOffSampler() }).getTracer("off");
  for (const tracer of [unregistered, sampled]) {
    assert.throws(() => {
      emitReward(1, tracer);
    }, /does not record/);
  }
});

test("a worker thread has no attempt, says so, and its own exporter sends its last spans", async () => {
  const names: string[] = [];
  using server = await ScriptedServer.start({
    ingestSpans: async (requests) => {
      for await (const { batch } of requests)
        names.push(...(batch?.spans ?? []).map(({ name }) => name));
      return { result: {} };
    },
  });
  const program = fileURLToPath(new URL("thread.js", import.meta.url));
  const worker = new Worker(program, { workerData: { address: server.address } });
  const events = await Promise.all([once(worker, "message"), once(worker, "exit")]);
  const [message, code] = events.flat() as unknown[];
  assert.match(String(message), /no attempt/);
  assert.equal(code, 0);
  assert.deepEqual(names, ["in a thread"]);
});
