import assert from "node:assert/strict";
import { once } from "node:events";
import { beforeEach, mock, test } from "node:test";

import type { Tracer } from "@opentelemetry/api";

import {
  AttemptStatus,
  Code,
  decodeJson,
  LightningStore,
  RolloutStatus,
  Runner,
  StopReason,
  type RunContext,
} from "../src/index.js";
import type { UpdateAttemptRequest } from "../src/proto.js";
import { Proxy } from "./proxy.js";
import { Refusal, ScriptedServer, type Script } from "./scripted.js";
import { TestServer } from "./server.js";

beforeEach(() => {
  mock.method(process, "emitWarning", () => undefined);
});

const ATTEMPT = { rolloutId: "ro", attemptId: "at", sequenceNumber: 1 };
const CLAIM = {
  rollouts: [{ rolloutId: "ro", inputJson: Buffer.from("1"), latestAttempt: ATTEMPT }],
};

/** A server with one claim to give that takes everything, but for what `script` says. */
async function withOneClaim(script: Script): Promise<ScriptedServer> {
  return ScriptedServer.start({
    dequeueRollouts: () => CLAIM,
    heartbeat: () => ({}),
    ingestSpans: async (requests) => {
      for await (const _ of requests);
      return { result: {} };
    },
    updateAttempt: () => ({}),
    getAttempt: () => ({ attempt: { ...ATTEMPT, status: AttemptStatus.RUNNING } }),
    ...script,
  });
}

test("a claim whose answer was lost is asked for again by its id", async () => {
  const ids: string[] = [];
  using server = await withOneClaim({
    dequeueRollouts: (request, peer) => {
      ids.push(request.requestId);
      assert.equal(request.limit, 1);
      assert.equal(request.wait?.seconds, 20n);
      if (ids.length === 1) peer.cut();
      if (ids.length < 8) throw new Refusal(Code.UNAVAILABLE); // more than gRPC's own tries
      return CLAIM;
    },
  });
  await new Runner(() => 1, { address: server.address, maxRollouts: 1 }).run();
  assert.equal(ids.length, 8);
  assert.equal(new Set(ids).size, 1);
});

test("a heartbeat for many attempts goes out in parts, and a claim asks for no more than a call may", async () => {
  const sizes: number[] = [];
  const limits: number[] = [];
  let enough: () => void = () => undefined;
  const beaten = new Promise<void>((resolve) => (enough = resolve));
  const rollouts = Array.from({ length: 1500 }, (_, n) => ({
    rolloutId: `ro-${n}`,
    inputJson: Buffer.from("1"),
    latestAttempt: { rolloutId: `ro-${n}`, attemptId: "at" },
  }));
  using server = await withOneClaim({
    dequeueRollouts: ({ limit }) => {
      limits.push(limit);
      return { rollouts: rollouts.splice(0, limit) };
    },
    heartbeat: ({ attempts }) => {
      sizes.push(attempts.length);
      if (sizes.at(-2) === 1000 && sizes.at(-1) === 500) enough();
      return {};
    },
  });
  const options = { maxRollouts: 1500, concurrency: 1500, heartbeatPeriodMs: 50 };
  await new Runner(() => beaten, { address: server.address, ...options }).run();
  assert.deepEqual(limits, [1000, 500]);
  assert(sizes.every((size) => size <= 1000));
});

test("a claim that comes without its payloads is filled", async () => {
  const got: unknown[] = [];
  const rollouts = [{ rolloutId: "ro", payloadsOmitted: true, latestAttempt: ATTEMPT }];
  using server = await withOneClaim({
    dequeueRollouts: () => ({ rollouts }),
    getRollout: ({ rolloutId }) => ({
      rollout: { rolloutId, inputJson: Buffer.from("7"), metadataJson: Buffer.from('{"a":1}') },
    }),
  });
  const agent = (input: unknown, _1: unknown, _2: unknown, { rollout }: RunContext): void => {
    got.push(input, decodeJson(rollout.metadataJson));
  };
  await new Runner(agent, { address: server.address, maxRollouts: 1 }).run();
  assert.deepEqual(got, [7, { a: 1 }]);
});

test("what a poll had claimed that a stop broke off is found and finished", async () => {
  const ids: string[] = [];
  const updates: UpdateAttemptRequest[] = [];
  let runner: Runner | undefined = undefined;
  using server = await withOneClaim({
    dequeueRollouts: async (request, peer) => {
      ids.push(request.requestId);
      if (ids.length > 1) return CLAIM;
      runner?.stop();
      await once(peer.signal, "abort");
      throw new Refusal(Code.CANCELLED);
    },
    updateAttempt: (request) => {
      updates.push(request);
      return {};
    },
  });
  runner = new Runner(() => 1, { address: server.address });
  await runner.run();
  assert.equal(ids[0], ids[1]);
  assert.equal(updates[0]?.attempt?.status, AttemptStatus.SUCCEEDED);
});

test("an error that is not retryable ends the runner", async () => {
  using server = await withOneClaim({
    dequeueRollouts: () => {
      throw new Refusal(Code.PERMISSION_DENIED);
    },
  });
  await assert.rejects(new Runner(() => 1, { address: server.address }).run(), {
    code: Code.PERMISSION_DENIED,
  });
});

const REASONS = [
  StopReason.ROLLOUT_CANCELLED,
  StopReason.ROLLOUT_FINISHED,
  StopReason.SUPERSEDED,
  StopReason.UNKNOWN_ATTEMPT,
  99 as StopReason, // one that came after this client
];

for (const reason of REASONS) {
  for (const carrier of ["heartbeat", "ingestSpans"] as const) {
    test(`stop reason ${reason} by ${carrier}: never reported as succeeded`, async () => {
      const updates: UpdateAttemptRequest[] = [];
      const stops = [{ attempt: ATTEMPT, reason }];
      using server = await withOneClaim({
        heartbeat: ({ attempts }) =>
          carrier === "heartbeat" && attempts.length > 0 ? { stops } : {},
        ingestSpans: async (requests) => {
          for await (const _ of requests);
          return { result: carrier === "ingestSpans" ? { stops } : {} };
        },
        updateAttempt: (request) => {
          updates.push(request);
          return {};
        },
      });
      const agent = async (_0: unknown, _1: unknown, tracer: Tracer, context: RunContext) => {
        tracer.startSpan("a").end();
        if (!context.signal.aborted) await once(context.signal, "abort");
        assert.equal(context.cancellation?.stopReason, reason);
        return 1;
      };
      const options = { address: server.address, maxRollouts: 1, heartbeatPeriodMs: 50 };
      await new Runner(agent, options).run();
      const statuses = updates.map(({ attempt }) => attempt?.status);
      const isKnown = reason !== StopReason.UNKNOWN_ATTEMPT;
      assert.deepEqual(statuses, isKnown ? [AttemptStatus.FAILED] : []);
    });
  }
}

test("a short unresponsive timeout quickens the heartbeats", { timeout: 9_000 }, async () => {
  const config = { unresponsiveTimeout: { nanos: 300_000_000 } };
  let beats = 0;
  let enough: () => void = () => undefined;
  const beaten = new Promise<void>((resolve) => (enough = resolve));
  using server = await withOneClaim({
    dequeueRollouts: () => ({ rollouts: [{ ...CLAIM.rollouts[0], config }] }),
    heartbeat: ({ workerId, statsJson, attempts }) => {
      assert.equal(workerId, "me");
      const stats = decodeJson(statsJson) as Record<string, unknown>;
      if (attempts.length === 0) return {};
      assert.equal(stats.running, 1);
      assert.deepEqual([attempts[0]?.rolloutId, attempts[0]?.attemptId], ["ro", "at"]);
      if (++beats === 5) enough(); // at the usual period this would take most of a minute
      return {};
    },
  });
  const options = { address: server.address, maxRollouts: 1, workerId: "me" };
  await new Runner(() => beaten, options).run();
});

test("finishes are watched again at once after a break", { timeout: 9_000 }, async () => {
  let waits = 0;
  let finish: () => void = () => undefined;
  const finished = new Promise<void>((resolve) => (finish = resolve));
  using server = await withOneClaim({
    waitForRollouts: async function* () {
      waits++;
      if (waits < 3) throw new Refusal(waits === 1 ? Code.UNAVAILABLE : Code.CANCELLED);
      finish();
      yield { summary: {} };
    },
  });
  // The pause of ten seconds follows only errors that are not retryable.
  await new Runner(() => finished, { address: server.address, maxRollouts: 1 }).run();
  assert.equal(waits, 3);
});

test("a stop that the last spans are answered withdraws the success", async () => {
  const updates: UpdateAttemptRequest[] = [];
  using server = await withOneClaim({
    ingestSpans: async (requests) => {
      for await (const _ of requests);
      return { result: { stops: [{ attempt: ATTEMPT, reason: StopReason.SUPERSEDED }] } };
    },
    updateAttempt: (request) => {
      updates.push(request);
      return {};
    },
  });
  await new Runner(() => 1, { address: server.address, maxRollouts: 1 }).run();
  assert.deepEqual(
    updates.map(({ attempt }) => attempt?.failure?.type),
    ["Cancelled"],
  );
});

test("spans are stored before the outcome is reported, whatever fails on the way", async () => {
  const log: string[] = [];
  const ids = new Set<string>();
  using server = await withOneClaim({
    ingestSpans: async (requests, peer) => {
      const spans = [];
      for await (const { batch } of requests) spans.push(...(batch?.spans ?? []));
      log.push(`ingest ${spans.length}`);
      if (log.length === 1) peer.cut();
      if (log.length === 2) throw new Refusal(Code.UNAVAILABLE);
      return { result: {} };
    },
    updateAttempt: (request, peer) => {
      log.push(`update ${String(request.sentSpanCount)}`);
      assert.deepEqual(request.updateMask?.paths, ["status", "reward"]);
      ids.add(request.requestId);
      if (log.length === 4) peer.cut();
      if (log.length < 11) throw new Refusal(Code.UNAVAILABLE); // more than gRPC's own tries
      return {};
    },
  });
  await new Runner(() => 1, { address: server.address, maxRollouts: 1 }).run();
  const updates = Array<string>(8).fill("update 1");
  assert.deepEqual(log, ["ingest 1", "ingest 1", "ingest 1", ...updates]);
  assert.equal(ids.size, 1);
});

test("resources that cannot be had fail the attempt", async () => {
  const updates: UpdateAttemptRequest[] = [];
  const latestAttempt = { ...ATTEMPT, resourcesId: "rs", resourcesVersion: 1 };
  using server = await withOneClaim({
    dequeueRollouts: () => ({ rollouts: [{ ...CLAIM.rollouts[0], latestAttempt }] }),
    getResources: () => {
      throw new Refusal(Code.NOT_FOUND);
    },
    updateAttempt: (request) => {
      updates.push(request);
      return {};
    },
  });
  await new Runner(() => 1, { address: server.address, maxRollouts: 1 }).run();
  assert.equal(updates[0]?.attempt?.failure?.type, "LightningStoreError");
});

test(
  "while the server is away the runner goes on, and reports when it is back",
  { timeout: 60_000 },
  async () => {
    await using server = await TestServer.start();
    using wire = await Proxy.start(server.address);
    const store = new LightningStore(server.address);
    const [rollout] = await store.enqueue([{ input: 1 }]);
    const agent = (_0: unknown, _1: unknown, tracer: Tracer): number => {
      wire.part();
      tracer.startSpan("kept").end();
      return 1;
    };
    mock.method(process, "emitWarning", (message: string) => {
      if (message.startsWith("heartbeat failed")) void wire.rejoin();
    });
    const options = { address: wire.address, maxRollouts: 1, heartbeatPeriodMs: 300 };
    await new Runner(agent, options).run();
    const { status, latestAttempt } = await store.getRollout(rollout?.rolloutId ?? "");
    assert.deepEqual([status, latestAttempt?.spanCount], [RolloutStatus.SUCCEEDED, 2n]);
    store.close();
  },
);

test("a server that is killed and starts again loses no claim, span or outcome", async () => {
  await using server = await TestServer.start("sqlite");
  const count = 24;
  let store = new LightningStore(server.address);
  const rollouts = await store.enqueue(Array.from({ length: count }, (_, n) => ({ input: n })));
  const worked = new Map<unknown, number>();
  let reached: () => void = () => undefined;
  const agent = async (input: unknown, _1: unknown, tracer: Tracer): Promise<number> => {
    worked.set(input, (worked.get(input) ?? 0) + 1);
    tracer.startSpan("before").end();
    if (worked.size === 6 || worked.size === 15) reached();
    await new Promise((resolve) => setImmediate(resolve));
    tracer.startSpan("after").end();
    return input as number;
  };
  const runner = new Runner(agent, {
    address: server.address,
    concurrency: 4,
    maxRollouts: count,
    heartbeatPeriodMs: 100,
  });
  const running = runner.run();
  for (let kills = 0; kills < 2; kills++) {
    await new Promise<void>((resolve) => (reached = resolve));
    await server.kill();
    await server.begin();
  }
  await running;
  store.close();
  store = new LightningStore(server.address);
  assert.deepEqual([...worked.values()], Array<number>(count).fill(1));
  for (const { rolloutId } of rollouts) {
    const { status, attemptCount } = await store.getRollout(rolloutId);
    assert.deepEqual([status, attemptCount], [RolloutStatus.SUCCEEDED, 1]);
    const names = [];
    for await (const { name } of store.querySpans(rolloutId)) names.push(name);
    assert.deepEqual(names, ["before", "after", "agentlightning.annotation"]);
  }
  store.close();
});
