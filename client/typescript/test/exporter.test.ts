import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createServer, type AddressInfo, type Socket } from "node:net";
import { test, type TestContext } from "node:test";
import { fileURLToPath } from "node:url";

import { SpanStatusCode, type Tracer } from "@opentelemetry/api";
import { BasicTracerProvider, SimpleSpanProcessor } from "@opentelemetry/sdk-trace-base";

import {
  Code,
  LightningStore,
  LightningStoreError,
  SpanExporter,
  StopReason,
} from "../src/index.js";
import { ErrorReason, type IngestSpansRequest, type SpanBatch } from "../src/proto.js";
import { Refusal, ScriptedServer } from "./scripted.js";
import { TestServer } from "./server.js";

function tracerOf(exporter: SpanExporter): Tracer {
  const provider = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] });
  return provider.getTracer("test", "1");
}

async function batchesOf(requests: AsyncIterable<IngestSpansRequest>): Promise<SpanBatch[]> {
  const batches: SpanBatch[] = [];
  for await (const { batch } of requests) if (batch) batches.push(batch);
  return batches;
}

const names = (batches: SpanBatch[]): string[] =>
  batches.flatMap(({ spans }) => spans.map(({ name }) => name));

const ATTEMPT = { rolloutId: "ro", attemptId: "at" };
const accepted = (count: number) => ({ result: { acceptedCount: BigInt(count) } });

/** Collects the program's warnings, which would else fill the log of the tests. */
function warnings(t: TestContext): string[] {
  const got: string[] = [];
  t.mock.method(process, "emitWarning", (message: string) => got.push(message));
  return got;
}

test("spans are stored whole, each in its attempt", async () => {
  await using server = await TestServer.start();
  const store = new LightningStore(server.address);
  const start = async (): Promise<{ rolloutId: string; attemptId: string }> => {
    const { rollout } = await store.rpc.startRollout({ rollout: { inputJson: Buffer.from("1") } });
    return { rolloutId: rollout?.rolloutId ?? "", attemptId: rollout?.latestAttemptId ?? "" };
  };
  const [first, second] = [await start(), await start()];
  const exporter = new SpanExporter({ address: server.address, ...first });
  const tracer = tracerOf(exporter);
  const span = tracer.startSpan("own", { attributes: { text: "é", whole: 3, list: [1.5, 2.5] } });
  span.addEvent("event", { a: true });
  span.addLink({ context: span.spanContext() });
  span.setStatus({ code: SpanStatusCode.ERROR, message: "bad" });
  span.end();
  const ids = {
    "agentlightning.rollout_id": second.rolloutId,
    "agentlightning.attempt_id": second.attemptId,
    "agentlightning.span_sequence_id": 7,
  };
  tracer.startSpan("other", { attributes: ids }).end();
  await exporter.forceFlush();
  assert.equal(exporter.sentCount(first.rolloutId, first.attemptId), 1);
  const read = async (rolloutId: string) => {
    const spans = [];
    for await (const one of store.querySpans(rolloutId)) spans.push(one);
    return spans;
  };
  const [own] = await read(first.rolloutId);
  assert(own);
  assert.equal(own.attemptId, first.attemptId);
  assert.equal(own.traceId, span.spanContext().traceId);
  assert.equal(own.spanId, span.spanContext().spanId);
  assert.deepEqual(own.attributes, { text: "é", whole: 3, list: [1.5, 2.5] });
  assert.equal(own.otlp.kind, 1);
  assert.deepEqual([own.otlp.status?.code, own.otlp.status?.message], [2, "bad"]);
  assert.deepEqual([own.otlp.events[0]?.name, own.otlp.links.length], ["event", 1]);
  assert(own.otlp.endTimeUnixNano >= own.otlp.startTimeUnixNano);
  assert.deepEqual([own.scope?.name, own.scope?.version], ["test", "1"]);
  assert(own.resource?.attributes.some(({ key }) => key === "telemetry.sdk.language"));
  const [other] = await read(second.rolloutId);
  assert.deepEqual([other?.name, other?.sequenceId], ["other", 7n]);
  await exporter.shutdown();
  store.close();
});

test("what is not acknowledged is sent again, and no more than that", async () => {
  const streams: string[][] = [];
  using server = await ScriptedServer.start({
    ingestSpans: async (requests, peer) => {
      const got = names(await batchesOf(requests));
      streams.push(got);
      if (streams.length === 1) peer.cut();
      if (streams.length === 2) throw new Refusal(Code.UNAVAILABLE);
      return accepted(got.length);
    },
  });
  const exporter = new SpanExporter({ address: server.address, ...ATTEMPT });
  const tracer = tracerOf(exporter);
  tracer.startSpan("a").end();
  tracer.startSpan("b").end();
  await exporter.forceFlush();
  tracer.startSpan("c").end();
  await exporter.forceFlush();
  assert.deepEqual(streams, [["a", "b"], ["a", "b"], ["a", "b"], ["c"]]);
  assert.equal(exporter.droppedCount, 0);
  await exporter.shutdown();
  assert.equal(streams.length, 4);
});

test("beyond the buffer new spans are dropped, counted and warned about", async (t) => {
  const told = warnings(t);
  const streams: string[][] = [];
  using server = await ScriptedServer.start({
    ingestSpans: async (requests) => {
      streams.push(names(await batchesOf(requests)));
      return accepted(1);
    },
  });
  const options = { address: server.address, maxBufferBytes: 1500, maxSpanBytes: 1200 };
  const exporter = new SpanExporter({ ...options, ...ATTEMPT });
  const tracer = tracerOf(exporter);
  const attributes = { text: "x".repeat(1000) };
  tracer.startSpan("kept", { attributes }).end();
  tracer.startSpan("dropped", { attributes }).end();
  tracer.startSpan("large", { attributes: { text: "x".repeat(1300) } }).end();
  await exporter.forceFlush();
  assert.equal(exporter.droppedCount, 2);
  assert.equal(exporter.sentCount("ro", "at"), 3);
  tracer.startSpan("room again", { attributes }).end();
  await exporter.forceFlush();
  assert.deepEqual(streams, [["kept"], ["room again"]]);
  const withoutIds = new SpanExporter({ address: server.address });
  tracerOf(withoutIds).startSpan("without ids").end();
  assert.equal(withoutIds.droppedCount, 1);
  assert.deepEqual(
    told.map((message) => /buffer of 1500|over the limit of 1200|no rollout/.exec(message)?.[0]),
    ["buffer of 1500", "over the limit of 1200", "no rollout"],
  );
  await exporter.shutdown();
  await withoutIds.shutdown();
});

test("a bad span takes no other one with it", async (t) => {
  warnings(t);
  const stored: string[] = [];
  using server = await ScriptedServer.start({
    ingestSpans: async (requests) => {
      const batches = await batchesOf(requests);
      const bad = batches.map((batch) => batch.spans.some(({ name }) => name === "bad"));
      stored.push(...names(batches.filter((_, index) => !bad[index])));
      const rejections = batches.flatMap((batch, index) =>
        bad[index]
          ? [
              {
                messageIndex: BigInt(index),
                reason: ErrorReason.FIELD_INVALID,
                spanCount: batch.spans.length,
              },
            ]
          : [],
      );
      const rejectedCount = BigInt(rejections.reduce((sum, one) => sum + one.spanCount, 0));
      return { result: { rejectedCount, rejections } };
    },
  });
  const exporter = new SpanExporter({ address: server.address, ...ATTEMPT });
  const tracer = tracerOf(exporter);
  for (const name of ["a", "bad", "b"]) tracer.startSpan(name).end();
  await exporter.forceFlush();
  assert.deepEqual(stored, ["a", "b"]);
  assert.equal(exporter.droppedCount, 1);
  await exporter.shutdown();
});

test("attempts to stop are reported", async () => {
  using server = await ScriptedServer.start({
    ingestSpans: async (requests) => {
      await batchesOf(requests);
      return { result: { stops: [{ attempt: ATTEMPT, reason: StopReason.SUPERSEDED }] } };
    },
  });
  const stops: unknown[] = [];
  const exporter = new SpanExporter({
    address: server.address,
    ...ATTEMPT,
    onStop: ({ attempt, reason }) => stops.push([attempt?.attemptId, reason]),
  });
  tracerOf(exporter).startSpan("a").end();
  await exporter.forceFlush();
  assert.deepEqual(stops, [["at", StopReason.SUPERSEDED]]);
  await exporter.shutdown();
});

test("flush and shutdown keep their deadlines while no server is there", async (t) => {
  const told = warnings(t);
  const exporter = new SpanExporter({ address: "127.0.0.1:1", ...ATTEMPT });
  tracerOf(exporter).startSpan("a").end();
  const isLate = (error: unknown): boolean =>
    error instanceof LightningStoreError && error.code === Code.DEADLINE_EXCEEDED;
  await assert.rejects(exporter.forceFlush(10), isLate);
  await exporter.shutdown(50);
  assert.equal(exporter.droppedCount, 1);
  assert.match(told.join(), /not stored before/);
  const results: number[] = [];
  exporter.export([], ({ code }) => results.push(code));
  assert.deepEqual(results, [1]);
  await exporter.forceFlush();
});

test("a program's last spans are sent at its end, without a word", async () => {
  const got: string[] = [];
  using server = await ScriptedServer.start({
    ingestSpans: async (requests) => {
      got.push(...names(await batchesOf(requests)));
      return accepted(1);
    },
  });
  assert.equal(await runLast(server.address), 0);
  assert.deepEqual(got, ["last"]);
});

test("a server that is away holds a program's end up for 5 seconds at most", async () => {
  const began = performance.now();
  assert.equal(await runLast("127.0.0.1:1"), 0);
  assert(performance.now() - began < 30_000); // the process' own start counts here
});

test("so does one that takes the spans and says nothing", async () => {
  using server = await ScriptedServer.start({ ingestSpans: () => new Promise(() => undefined) });
  const began = performance.now();
  assert.equal(await runLast(server.address), 0);
  assert(performance.now() - began < 30_000);
});

/** Runs a program that makes a span and ends. */
async function runLast(address: string): Promise<unknown> {
  const program = fileURLToPath(new URL("last.js", import.meta.url));
  const child = spawn(process.execPath, ["--no-warnings", program, address], { stdio: "inherit" });
  const [code] = (await once(child, "exit")) as [number];
  return code;
}

test("an upload ends when the client is closed before it is connected", async (t) => {
  t.mock.method(process, "emitWarning", () => undefined);
  const silent = createServer(); // accepts connections and never says a word
  silent.listen(0, "127.0.0.1");
  await once(silent, "listening");
  const address = `127.0.0.1:${(silent.address() as AddressInfo).port}`;
  const store = new LightningStore(address);
  const exporter = new SpanExporter({ store, rolloutId: "ro", attemptId: "at" });
  tracerOf(exporter).startSpan("a").end();
  const flushed = exporter.forceFlush();
  const uploaded = store.rpc.ingestSpans([]);
  const [socket] = (await once(silent, "connection")) as [Socket]; // the calls wait for it
  store.close();
  await assert.rejects(uploaded, LightningStoreError);
  await flushed;
  assert.equal(exporter.droppedCount, 1);
  socket.destroy();
  silent.close();
});
