import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type IncomingHttpHeaders } from "node:http2";
import type { AddressInfo } from "node:net";
import { test, type TestContext } from "node:test";

import { BasicTracerProvider, SimpleSpanProcessor } from "@opentelemetry/sdk-trace-base";

import { LightningStore, Runner, SpanExporter, type ConnectOptions } from "../src/index.js";
import { LightningStoreService } from "../src/proto.js";

const UNIMPLEMENTED = 12;

/** A server that implements nothing and records the headers of all calls. */
async function recorder(t: TestContext) {
  const calls: IncomingHttpHeaders[] = [];
  const server = createServer();
  const sessions = new Set<{ destroy: () => void }>();
  server.on("session", (session) => sessions.add(session));
  server.on("stream", (stream, headers) => {
    calls.push(headers);
    stream.on("error", () => undefined);
    const answer = {
      ":status": 200,
      "content-type": "application/grpc",
      "grpc-status": UNIMPLEMENTED,
    };
    stream.respond(answer, { endStream: true });
    server.emit("recorded");
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    for (const session of sessions) session.destroy();
    server.close();
  });
  const address = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  return { address, calls, recorded: () => once(server, "recorded") };
}

/** Returns the namespaces that a call named. */
function named(headers: IncomingHttpHeaders | undefined): unknown {
  assert(headers);
  return headers["x-lightning-namespace"];
}

/** Makes a call that fails, and returns its headers. */
async function ask(options: ConnectOptions, calls: IncomingHttpHeaders[], metadata = {}) {
  const store = new LightningStore(options);
  await assert.rejects(store.getRollout("ro", { metadata }));
  store.close();
  return calls.pop();
}

test("every call names the namespace", async (t) => {
  const { address, calls } = await recorder(t);
  const store = new LightningStore({ address, namespace: "run-1" });
  const rpc = store.rpc as unknown as Record<string, (request: unknown) => unknown>;
  for (const method of LightningStoreService.methods) {
    const answer = rpc[method.localName]?.(method.methodKind === "client_streaming" ? [] : {});
    const isStream = method.methodKind === "server_streaming";
    await assert.rejects(
      isStream ? (answer as AsyncGenerator).next() : (answer as Promise<unknown>),
    );
    const call = calls.pop();
    assert.equal(call?.[":path"], `/lightningstore.v1.LightningStoreService/${method.name}`);
    assert.equal(named(call), "run-1", method.name);
    assert.deepEqual(calls, []);
  }
  assert(LightningStoreService.methods.length > 20);
  store.close();
});

test("exporters and runners name the namespace", async (t) => {
  const { address, calls, recorded } = await recorder(t);
  t.mock.method(process, "emitWarning", () => undefined);
  const options = { address, namespace: "run-1" };
  const exporter = new SpanExporter({ ...options, rolloutId: "ro", attemptId: "at" });
  const provider = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] });
  const exported = recorded();
  provider.getTracer("test").startSpan("step").end();
  await exported;
  assert.match(String(calls[0]?.[":path"]), /IngestSpans$/);
  await exporter.shutdown();
  await assert.rejects(new Runner(() => undefined, options).run({ handleSignals: false }));
  assert(calls.some((call) => call[":path"]?.endsWith("DequeueRollouts")));
  for (const call of calls) assert.equal(named(call), "run-1");
});

test("a client without a namespace names none", async (t) => {
  const { address, calls } = await recorder(t);
  for (const options of [{ address }, { address, namespace: "" }]) {
    assert.equal(named(await ask(options, calls)), undefined);
  }
});

test("the environment names a namespace", async (t) => {
  const { address, calls } = await recorder(t);
  process.env.LIGHTNINGSTORE_NAMESPACE = "run-3";
  t.after(() => delete process.env.LIGHTNINGSTORE_NAMESPACE);
  assert.equal(named(await ask({ address }, calls)), "run-3");
  assert.equal(named(await ask({ address, namespace: "run-1" }, calls)), "run-1");
  assert.equal(named(await ask({ address, namespace: "" }, calls)), undefined);
});

test("a call that names its own namespace names only that", async (t) => {
  const { address, calls } = await recorder(t);
  const metadata = { "x-lightning-namespace": "run-2" };
  assert.equal(named(await ask({ address, namespace: "run-1" }, calls, metadata)), "run-2");
});

test("names of namespaces are checked", () => {
  const longest = "x".repeat(63);
  for (const namespace of ["a", "0", "run-1", "a.b_c-d", longest]) {
    new LightningStore({ namespace }).close();
  }
  for (const namespace of ["-a", "a.", "Run", "a b", "a/b", "é", "a\n", `${longest}x`]) {
    assert.throws(() => new LightningStore({ namespace }), {
      name: "TypeError",
      message: /^the namespace must be 1 to 63 of a-z 0-9/,
    });
  }
});
