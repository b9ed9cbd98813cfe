import assert from "node:assert/strict";
import { readdir, readFile } from "node:fs/promises";
import { after, before, test } from "node:test";

import { create } from "@bufbuild/protobuf";
import { anyPack } from "@bufbuild/protobuf/wkt";

import { ErrorInfoSchema, RetryInfoSchema } from "../src/gen/google/rpc/error_details_pb.js";
import {
  Code,
  custom,
  decodeJson,
  LightningStore,
  LightningStoreError,
  llm,
  promptTemplate,
  proxyLlm,
  RawJson,
  RolloutStatus,
  routed,
} from "../src/index.js";
import { EnqueueRolloutsRequestSchema } from "../src/proto.js";
import { Proxy } from "./proxy.js";
import { Refusal, ScriptedServer } from "./scripted.js";
import { TestServer } from "./server.js";

let server: TestServer;
let store: LightningStore;

before(async () => {
  server = await TestServer.start();
  store = new LightningStore(server.address);
});

after(async () => {
  store.close();
  await server[Symbol.asyncDispose]();
});

async function failureOf(promise: Promise<unknown>): Promise<LightningStoreError> {
  const error: unknown = await promise.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  assert(error instanceof LightningStoreError, String(error));
  return error;
}

test("inputs, configs and resources arrive as they were given", async () => {
  const resources = {
    model: llm({ endpoint: "http://h/v1", model: "q", samplingParameters: { temperature: 0.5 } }),
    proxy: proxyLlm({ endpoint: "http://p/v1/", apiKey: "k" }),
    prompt: promptTemplate("say {word}", "jinja"),
    weights: custom({ step: 2n ** 60n + 1n }, "checkpoint"),
  };
  const added = await store.addResources(resources);
  assert.deepEqual(await store.getResources(), added);
  assert.deepEqual(added.resources, resources);
  const input = { question: "é", id: 2n ** 63n };
  const [rollout] = await store.enqueue([
    {
      input,
      mode: "val",
      priority: 3,
      groupId: "g",
      metadata: { a: 1 },
      config: {
        timeoutMs: 1500,
        unresponsiveTimeoutMs: 250,
        maxAttempts: 3,
        retryCondition: ["failed", "timeout"],
        retryBackoff: { initialDelayMs: 10, factor: 2, maxDelayMs: 1000, jitter: 0.5 },
      },
    },
  ]);
  assert(rollout);
  assert.deepEqual(decodeJson(rollout.inputJson), input);
  assert.equal(rollout.config?.timeout?.nanos, 500_000_000);
  assert.equal(rollout.config.retryBackoff?.factor, 2);
  assert.equal(rollout.resourcesId, added.resourcesId);
  const changed = await store.updateRollout(rollout.rolloutId, {
    input: new RawJson("[1.0]"),
    priority: 0,
  });
  assert.equal(new TextDecoder().decode(changed.inputJson), "[1.0]");
  assert.equal(changed.priority, 0);
  assert.equal(changed.groupId, "g");
  const updated = await store.updateResources(added.resourcesId, { prompt: promptTemplate("x") });
  assert.equal(updated.version, 2);
  const [cancelled] = await store.cancelRollouts([rollout.rolloutId]);
  assert.equal(cancelled?.status, RolloutStatus.CANCELLED);
  const { rolloutId } = rollout;
  const answer = await store.deleteRollouts([rolloutId, "ro-nobody"]);
  assert.deepEqual(answer.deletedRolloutIds, [rolloutId]);
  assert.deepEqual(answer.missingRolloutIds, ["ro-nobody"]);
  assert.equal((await failureOf(store.getRollout(rolloutId))).code, Code.NOT_FOUND);
});

test("a proxy's URL is routed to the attempt", () => {
  const endpoint = (url: string): string => routed(proxyLlm({ endpoint: url }), "r", "a").endpoint;
  assert.equal(endpoint("http://h/v1"), "http://h/rollout/r/attempt/a/v1");
  assert.equal(endpoint("http://h/v1/"), "http://h/rollout/r/attempt/a/v1");
  assert.equal(endpoint("http://h/x/"), "http://h/x/rollout/r/attempt/a");
});

test("errors bear reason, metadata and fields", async () => {
  const missing = await failureOf(store.getRollout("ro-nobody"));
  assert.equal(missing.code, Code.NOT_FOUND);
  assert.equal(missing.codeName, "NOT_FOUND");
  assert.equal(missing.reason, "ERROR_REASON_ROLLOUT_NOT_FOUND");
  assert.equal(missing.domain, "lightningstore");
  assert.deepEqual(missing.metadata, { rolloutId: "ro-nobody" });
  const wrong = await failureOf(store.enqueue([{ input: new RawJson("{") }]));
  assert.equal(wrong.code, Code.INVALID_ARGUMENT);
  assert.deepEqual(
    wrong.fieldViolations.map(({ field }) => field),
    ["rollouts[0].input_json"],
  );
});

test("the server's retry delay can be read", async () => {
  await using small = await TestServer.start("memory", "--max-queue-length", "1");
  const client = new LightningStore(small.address);
  await client.enqueue([{ input: 1 }]);
  const full = await failureOf(client.enqueue([{ input: 2 }]));
  assert.equal(full.reason, "ERROR_REASON_QUEUE_FULL");
  assert(full.retryDelayMs !== undefined && full.retryDelayMs > 0);
  assert(full.isTemporary);
  client.close();
});

test("a signal gives a call up, and so does close", async () => {
  const signal = AbortSignal.timeout(50);
  const request = { limit: 1, wait: { seconds: 20n } };
  const aborted = await failureOf(store.rpc.dequeueRollouts(request, { signal }));
  assert.equal(aborted.code, Code.CANCELLED);
  assert.equal(aborted.cause, signal.reason);
  const other = new LightningStore(server.address);
  const claims = failureOf(other.rpc.dequeueRollouts(request));
  await other.rpc.getServerInfo({});
  other.close();
  assert.equal((await claims).code, Code.CANCELLED);
  assert.equal((await failureOf(other.rpc.getServerInfo({}))).code, Code.CANCELLED);
  const late = await failureOf(store.rpc.dequeueRollouts(request, { timeoutMs: 0 }));
  assert.equal(late.code, Code.DEADLINE_EXCEEDED);
});

test("large messages pass both ways", async () => {
  const input = "x".repeat(15 << 20);
  const rollouts = await store.enqueue([{ input }, { input }, { input }]);
  assert.equal(rollouts.length, 3);
  assert.equal(decodeJson(rollouts[2]?.inputJson ?? new Uint8Array()), input);
  await store.cancelRollouts(rollouts.map(({ rolloutId }) => rolloutId));
});

test("a write whose answer was lost is repeated with its id", async () => {
  const ids: string[] = [];
  using scripted = await ScriptedServer.start({
    enqueueRollouts: (request, peer) => {
      ids.push(request.requestId);
      if (ids.length === 1) peer.cut();
      if (ids.length === 2) throw new Refusal(Code.UNAVAILABLE);
      return {};
    },
  });
  const client = new LightningStore(scripted.address);
  await client.enqueue([{ input: "x".repeat(3 << 20) }]);
  assert.equal(ids.length, 3);
  assert(ids[0]);
  assert.equal(new Set(ids).size, 1);
  client.close();
});

test("a message that is sent twice is two writes", async () => {
  const inputJson = new TextEncoder().encode("1");
  const request = create(EnqueueRolloutsRequestSchema, { rollouts: [{ inputJson }] });
  const [one, other] = [
    await store.rpc.enqueueRollouts(request),
    await store.rpc.enqueueRollouts(request),
  ];
  assert.notEqual(one.rollouts[0]?.rolloutId, other.rollouts[0]?.rolloutId);
  assert.equal(request.requestId, "");
});

test("a server that stays UNAVAILABLE is asked five times", async () => {
  let calls = 0;
  using scripted = await ScriptedServer.start({
    getRollout: () => {
      calls++;
      throw new Refusal(Code.UNAVAILABLE);
    },
  });
  const client = new LightningStore(scripted.address);
  assert.equal((await failureOf(client.getRollout("x"))).code, Code.UNAVAILABLE);
  assert.equal(calls, 5);
  client.close();
  const unreachable = new LightningStore("127.0.0.1:1");
  assert.equal((await failureOf(unreachable.getRollout("x"))).code, Code.UNAVAILABLE);
  unreachable.close();
});

const RESET = "Received RST_STREAM with code 2 (Internal server error)";

/** What gRPC says of its own accord, without details: a server's word has some. */
const BROKEN: [Code, string][] = [
  [Code.CANCELLED, "CANCELLED"], // by a server that is shutting down
  [Code.INTERNAL, RESET],
  [Code.RESOURCE_EXHAUSTED, "Bandwidth exhausted or memory limit exceeded"],
  [Code.UNKNOWN, "Received HTTP status code 200"],
];
const info = (reason: string) =>
  anyPack(ErrorInfoSchema, create(ErrorInfoSchema, { reason, domain: "lightningstore" }));

for (const [code, words] of BROKEN) {
  test(`${Code[code]} of a broken connection is repeated, of the server itself is not`, async () => {
    const ids: string[] = [];
    using scripted = await ScriptedServer.start({
      enqueueRollouts: (request) => {
        ids.push(request.requestId);
        if (ids.length === 1) throw new Refusal(code, words);
        return {};
      },
      getRollout: () => {
        ids.push("once");
        throw new Refusal(code, words, [info("ERROR_REASON_INTERNAL")]);
      },
    });
    const client = new LightningStore(scripted.address);
    await client.enqueue([{ input: 1 }]);
    assert.equal(ids[0], ids[1]);
    assert.equal((await failureOf(client.getRollout("x"))).code, code);
    assert.deepEqual(ids.slice(2), ["once"]);
    client.close();
  });
}

test("close ends what waits to be repeated", async () => {
  const busy = anyPack(RetryInfoSchema, create(RetryInfoSchema, { retryDelay: { seconds: 20n } }));
  let client: LightningStore | undefined = undefined;
  using scripted = await ScriptedServer.start({
    getRollout: () => {
      setTimeout(() => client?.close(), 50);
      throw new Refusal(Code.UNAVAILABLE, "later", [busy]);
    },
  });
  client = new LightningStore(scripted.address);
  assert.equal((await failureOf(client.getRollout("x"))).code, Code.CANCELLED);
});

test("a wait and a query that the server has no room for wait as long as it says", async () => {
  const nanos = 200_000_000;
  const details = [
    info("ERROR_REASON_BUSY"),
    anyPack(RetryInfoSchema, create(RetryInfoSchema, { retryDelay: { nanos } })),
  ];
  const times: number[] = [];
  const busyOnce = (): void => {
    times.push(performance.now());
    if (times.length % 2) throw new Refusal(Code.RESOURCE_EXHAUSTED, "busy", details);
  };
  using scripted = await ScriptedServer.start({
    waitForRollouts: async function* () {
      busyOnce();
      yield { rollouts: [{ rolloutId: "ro" }], summary: {} };
    },
    querySpans: async function* () {
      busyOnce();
      yield {};
    },
  });
  const client = new LightningStore(scripted.address);
  for await (const { rolloutId } of client.waitForRollouts({ rolloutIds: ["ro"] })) {
    assert.equal(rolloutId, "ro");
  }
  for await (const _ of client.querySpans("ro"));
  const [first = 0, second = 0, third = 0, fourth = 0] = times;
  assert(second - first >= 195 && fourth - third >= 195, String(times));
  client.close();
});

async function finish(rolloutId: string): Promise<void> {
  const { rollout } = await store.rpc.startAttempt({ rolloutId });
  const attemptId = rollout?.latestAttemptId ?? "";
  await store.rpc.updateAttempt({ attempt: { rolloutId, attemptId, status: 3 } });
}

test("a wait yields each rollout once, and goes on after a break", async () => {
  using wire = await Proxy.start(server.address);
  const client = new LightningStore(wire.address);
  const rollouts = await store.enqueue([{ input: 1 }, { input: 2 }, { input: 3 }, { input: 4 }]);
  const ids = rollouts.map(({ rolloutId }) => rolloutId) as [string, string, string, string];
  const got: string[] = [];
  let begun = 0;
  await finish(ids[1]);
  const wait = client.waitForRollouts({ rolloutIds: ids, minCount: 3, onStarted: () => begun++ });
  for await (const rollout of wait) {
    got.push(rollout.rolloutId);
    if (got.length === 1) {
      wire.cut();
      await finish(ids[0]);
      await finish(ids[3]);
    }
  }
  assert.deepEqual(new Set(got), new Set([ids[1], ids[0], ids[3]]));
  assert.equal(got.length, 3);
  assert.equal(begun, 2);
  assert.equal(wait.finishedCount, 3);
  assert.deepEqual(wait.openRolloutIds, [ids[2]]);
  client.close();
});

test("a wait for a group goes on after a break, too", async () => {
  using wire = await Proxy.start(server.address);
  const client = new LightningStore(wire.address);
  const rollouts = await store.enqueue([1, 2, 3].map((input) => ({ input, groupId: "three" })));
  const [first = "", ...others] = rollouts.map(({ rolloutId }) => rolloutId);
  await finish(first);
  const got: string[] = [];
  for await (const rollout of client.waitForRollouts({ groupIds: ["three"] })) {
    got.push(rollout.rolloutId);
    if (rollout.rolloutId !== first) continue;
    wire.cut();
    await Promise.all(others.map(finish));
  }
  assert.deepEqual(got.sort(), [first, ...others].sort());
  client.close();
});

test("a wait ends in time, by its signal, and with the server's word", async () => {
  const [rollout] = await store.enqueue([{ input: 1, groupId: "alone" }]);
  const id = rollout?.rolloutId ?? "";
  const timed = store.waitForRollouts({ groupIds: ["alone"], timeoutMs: 20 });
  for await (const _ of timed) assert.fail("nothing has finished");
  assert.deepEqual(timed.openRolloutIds, [id]);
  const drain = async (wait: AsyncIterable<unknown>): Promise<void> => {
    for await (const _ of wait) assert.fail("nothing has finished");
  };
  const signal = AbortSignal.timeout(20);
  const aborted = await failureOf(drain(store.waitForRollouts({ rolloutIds: [id], signal })));
  assert.equal(aborted.code, Code.CANCELLED);
  const unknown = await failureOf(drain(store.waitForRollouts({ rolloutIds: ["ro-x"] })));
  assert.equal(unknown.code, Code.NOT_FOUND);
});

test("a query that breaks yields each span once", async () => {
  const span = (n: number) => ({
    name: `s${n}`,
    traceId: new Uint8Array(16).fill(1),
    spanId: new Uint8Array(8).fill(n),
    attributes: [
      { key: "big", value: { value: { case: "intValue" as const, value: 2n ** 60n } } },
      { key: "small", value: { value: { case: "intValue" as const, value: 7n } } },
    ],
  });
  let calls = 0;
  let arrived: () => void = () => undefined;
  const arrival = new Promise<void>((resolve) => (arrived = resolve));
  using scripted = await ScriptedServer.start({
    querySpans: async function* (request, peer) {
      assert.equal(request.name?.match.value, "s");
      yield { batches: [{ spans: [span(1)], sequenceIds: [1n] }] };
      if (++calls === 1) {
        await arrival;
        peer.cut();
      }
      yield { batches: [{ spans: [span(2)], sequenceIds: [2n] }] };
    },
  });
  const client = new LightningStore(scripted.address);
  const spans = [];
  for await (const one of client.querySpans("ro", { name: { contains: "s" } })) {
    spans.push(one);
    arrived();
  }
  assert.deepEqual(
    spans.map(({ name, spanId, sequenceId }) => [name, spanId, sequenceId]),
    [
      ["s1", "01".repeat(8), 1n],
      ["s2", "02".repeat(8), 2n],
    ],
  );
  assert.equal(calls, 2);
  assert.deepEqual(spans[0]?.attributes, { big: 2n ** 60n, small: 7 });
  client.close();
});

test("a token is not sent unencrypted unless allowed", async () => {
  assert.throws(() => new LightningStore({ token: "secret" }), /unencrypted/);
  assert.throws(() => new LightningStore("http://h:1"), /address/);
  assert.throws(() => new LightningStore({ tls: { cert: "x" } }), /tls.cert requires tls.key/);
  new LightningStore({ address: "https://h:1", token: "secret" }).close();
  const client = new LightningStore({
    address: server.address,
    token: "secret",
    allowInsecureToken: true,
  });
  await client.rpc.getServerInfo({});
  client.close();
});

test("all generated messages of the contract are exported", async () => {
  const exported = await readFile(new URL("../src/proto.js", import.meta.url), "utf8");
  const files = await readdir(new URL("../src/gen/lightningstore/v1/", import.meta.url));
  const missing = files.filter((name) => name.endsWith(".js") && !exported.includes(`/${name}"`));
  assert.deepEqual(missing, []);
  assert(files.length > 10);
});
