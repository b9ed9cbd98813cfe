/** Training control: queues, pause, versions, rewards, groups. */

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { create } from "@bufbuild/protobuf";
import { anyPack } from "@bufbuild/protobuf/wkt";

import { BadRequestSchema } from "../src/gen/google/rpc/error_details_pb.js";
import {
  AttemptStatus,
  Code,
  custom,
  GroupStatus,
  LightningStore,
  llm,
  RewardSource,
  RolloutStatus,
  Runner,
  WorkerStatus,
} from "../src/index.js";
import type {
  DequeueRolloutsRequest,
  GetResourcesRequest,
  UpdateAttemptRequest,
  WatchGroupsRequest,
} from "../src/proto.js";
import { Refusal, ScriptedServer, type Script } from "./scripted.js";
import { TestServer } from "./server.js";

let server: TestServer;

before(async () => {
  server = await TestServer.start();
});

after(async () => {
  await server[Symbol.asyncDispose]();
});

/** A client of a namespace of its own. */
async function storeOf(namespace: string): Promise<LightningStore & Disposable> {
  const store = new LightningStore({ address: server.address, namespace });
  await store.createNamespace(namespace, { keepResourceVersions: 2 });
  return Object.assign(store, {
    [Symbol.dispose]: () => {
      store.close();
    },
  });
}

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const item of items) found.push(item);
  return found;
}

test("task queues, labels and pause", async () => {
  using store = await storeOf("queues");
  await store.enqueue([
    { input: 1, rolloutId: "a", queue: "gpu", labels: { run: "7" } },
    { input: 2, rolloutId: "b", labels: { run: "7" } },
    { input: 3, rolloutId: "c" },
  ]);
  const ids = async (query: Parameters<typeof store.listRollouts>[0]) =>
    (await all(store.listRollouts({ pageSize: 1, ...query }))).map(({ rolloutId }) => rolloutId);
  assert.deepEqual(await ids({}), ["a", "b", "c"]);
  assert.deepEqual(await ids({ queues: ["gpu"] }), ["a"]);
  assert.deepEqual(await ids({ queues: [""] }), ["b", "c"]);
  assert.deepEqual(await ids({ labels: { run: "7" }, queues: [""] }), ["b"]);
  const either = { labels: { run: "7" }, rolloutIds: ["c"], filterLogic: "or" } as const;
  assert.deepEqual(await ids({ ...either, orderBy: "rollout_id desc" }), ["c", "b", "a"]);
  assert.deepEqual(await ids({ statuses: [RolloutStatus.RUNNING] }), []);
  await store.updateRollout("c", { queue: "cpu", labels: { run: "8" } });
  assert.deepEqual(await ids({ queues: ["cpu"], labels: { run: "8" } }), ["c"]);

  const paused = await store.pauseClaims("exchanging weights");
  assert.equal(paused.pause?.reason, "exchanging weights");
  assert.equal(paused.runningAttemptCount, 0n);
  const claim = { limit: 1, queues: ["gpu"] };
  assert.deepEqual((await store.rpc.dequeueRollouts(claim)).rollouts, []);
  assert.equal((await store.resumeClaims()).endedPause?.reason, "exchanging weights");
  assert.equal((await store.resumeClaims()).endedPause, undefined);
  await new Runner(() => 1, { store, queues: ["gpu"], maxRollouts: 1 }).run();
  const { latestAttempt } = await store.getRollout("a");
  assert.equal(latestAttempt?.rewardSource, RewardSource.REPORTED);
  assert.equal((await store.getRollout("b")).attemptCount, 0);
});

test("versions and their watch", async () => {
  using store = await storeOf("versions");
  assert.equal((await store.getNamespace("versions")).keepResourceVersions, 2);
  for (const number of [1, 2, 3]) {
    const { version, publishNumber } = await store.updateResources("policy", { w: custom(number) });
    assert.deepEqual([version, publishNumber], [number, BigInt(number)]);
  }
  const second = await store.getResources("policy", { version: 2 });
  assert.equal(second.version, 2);
  assert.deepEqual(await store.getPublishedResources(2), second);
  await assert.rejects(store.getPublishedResources(1), {
    reason: "ERROR_REASON_RESOURCES_VERSION_REMOVED",
  });
  const watch = store.watchResources({ after: 0 });
  const numbers: bigint[] = [];
  for await (const { publishNumber } of watch) {
    numbers.push(publishNumber);
    if (numbers.length === 2) break;
  }
  assert.deepEqual(numbers, [2n, 3n]);
  assert.equal(watch.through, 3n);
  assert(watch.storeId);
  await assert.rejects(all(store.watchResources({ after: 3n, storeId: "another" })), {
    code: Code.FAILED_PRECONDITION,
  });
  await store.updateNamespace("versions", { keepResourceVersions: null });
  assert.equal((await store.getNamespace("versions")).keepResourceVersions, undefined);

  for (const [workerId, publishNumber] of [["old", 2n] as const, ["new", 3n] as const]) {
    await store.rpc.heartbeat({ workerId, publishNumber });
  }
  const ready = await all(store.listWorkers({ minPublishNumber: 3 }));
  assert.deepEqual(
    ready.map(({ workerId, publishNumber }) => [workerId, publishNumber]),
    [["new", 3n]],
  );
  assert.equal((await all(store.listWorkers({ pageSize: 1 }))).length, 2);
  assert.equal((await all(store.listWorkers({ statuses: [WorkerStatus.BUSY] }))).length, 0);
});

test("a rollout may name the latest resources", async () => {
  using store = await storeOf("latest");
  await store.enqueue([{ input: 1, resourcesId: "latest" }]);
  await store.addResources({ model: llm({ endpoint: "http://h/v1", model: "m" }) });
  let kind: string | undefined;
  const agent = (_input: unknown, { model }: Readonly<Record<string, { kind: string }>>): void => {
    kind = model?.kind;
  };
  await new Runner(agent, { store, maxRollouts: 1 }).run();
  assert.equal(kind, "llm");
});

test("rewards, scores and series", async () => {
  using store = await storeOf("rewards");
  for (const [rolloutId, reward] of [["a", 0] as const, ["b", 1] as const]) {
    await store.rpc.startRollout({ rollout: { rolloutId, inputJson: Buffer.from("1") } });
    const scores = { style: 1, length: 2 };
    await store.updateAttempt(rolloutId, "latest", { status: "succeeded", reward, scores });
  }
  const scores = { judge: 3, length: null };
  const judged = await store.updateAttempt("a", "latest", { scores });
  assert.deepEqual({ ...judged.scores }, { style: 1, judge: 3 });
  assert.equal(judged.reward, 0);
  const best = await all(store.listRollouts({ minReward: 0, orderBy: "reward desc" }));
  assert.deepEqual(
    best.map(({ rolloutId }) => rolloutId),
    ["b", "a"],
  );
  assert.equal((await all(store.listRollouts({ maxReward: 0.5 }))).length, 1);
  const [bucket] = await store.getSeries({ measure: "reward", bucketCount: 1 });
  assert.deepEqual([bucket?.count, bucket?.mean], [2n, 0.5]);
  const now = new Date();
  const lately = { axis: "completion-time", startTime: new Date(0), endTime: now } as const;
  const [style] = await store.getSeries({ measure: "score", scoreName: "style", ...lately });
  assert.equal(style?.max, 1);
  const one = { firstNumber: 1, lastNumber: 1n, groupIds: ["none"] };
  assert.deepEqual(await store.getSeries({ measure: "queue-time", ...one }), []);
  const cleared = await store.updateAttempt("b", "latest", { reward: null });
  assert.equal(cleared.reward, undefined);
  assert.equal(cleared.status, AttemptStatus.SUCCEEDED);
  assert.deepEqual((await store.updateAttempt("b", "latest", {})).scores, cleared.scores);
  const failure = { type: "Broken", message: "why", retryable: false };
  await store.rpc.startRollout({ rollout: { rolloutId: "c", inputJson: Buffer.from("1") } });
  const failed = await store.updateAttempt("c", "latest", { status: "failed", failure });
  assert.deepEqual([failed.failure?.type, failed.failure?.retryable], ["Broken", false]);
});

test("groups complete together, and are watched", async () => {
  using store = await storeOf("groups");
  const runner = new Runner<number>((reward) => reward, { store, maxRollouts: 2 });
  const running = runner.run();
  const groups = [
    { groupId: "g", size: 2, deadlineMs: 60_000 },
    { groupId: "empty", size: 1, deadlineMs: 60_000, onDeadline: "keep-waiting" },
  ] as const;
  const specs = [1, 2].map((input) => ({ input, groupId: "g" }));
  const enqueue = (): void => {
    void store.enqueue(specs, { groups });
  };
  for await (const group of store.watchGroups({ onStarted: enqueue })) {
    assert.deepEqual([group.groupId, group.rewards?.mean], ["g", 1.5]);
    assert.equal(group.rolloutIds.length, 2);
    break;
  }
  await running;
  assert.equal((await store.getGroup("g")).status, GroupStatus.COMPLETE);
  await assert.rejects(store.getGroup("none"), { code: Code.NOT_FOUND });
  await assert.rejects(store.enqueue([{ input: 3, groupId: "g" }]), {
    code: Code.FAILED_PRECONDITION,
    reason: "ERROR_REASON_GROUP_FULL",
  });
  const names = async (query: Parameters<typeof store.listGroups>[0]) =>
    (await all(store.listGroups(query))).map(({ groupId }) => groupId);
  assert.deepEqual(await names({ pageSize: 1 }), ["g", "empty"]);
  assert.deepEqual(await names({ statuses: ["open"] }), ["empty"]);
  assert.deepEqual(await names({ groupIds: ["g", "none"] }), ["g"]);
});

test("a watch goes on where it broke", async () => {
  const asked: WatchGroupsRequest[] = [];
  using scripted = await ScriptedServer.start({
    watchGroups: async function* (request) {
      asked.push(request);
      const group = (number: bigint) => ({ groupId: "g", completionNumber: number });
      if (asked.length === 1) {
        yield { throughCompletionNumber: 4n, storeId: "s" };
        throw new Refusal(Code.UNAVAILABLE);
      }
      if (asked.length === 2) {
        const groups = [group(5n), group(7n)];
        yield { groups, throughCompletionNumber: 8n, storeId: "s" }; // and ends the stream
      } else {
        yield { groups: [group(9n)], throughCompletionNumber: 10n, storeId: "s" };
      }
    },
  });
  const store = new LightningStore(scripted.address);
  let starts = 0;
  const watch = store.watchGroups({ onStarted: () => starts++ });
  const numbers: bigint[] = [];
  for await (const { completionNumber } of watch) {
    numbers.push(completionNumber);
    if (numbers.length === 3) break;
  }
  store.close();
  assert.deepEqual([numbers, starts, watch.through], [[5n, 7n, 9n], 1, 9n]);
  assert.deepEqual(
    asked.map(({ afterCompletionNumber, storeId }) => [afterCompletionNumber, storeId]),
    [
      [undefined, ""],
      [4n, "s"],
      [8n, "s"],
    ],
  );
});

/** A server that hands out `claims`, and takes everything but for what `script` says. */
async function withClaims(
  claims: { resourcesId: string; resourcesVersion: number }[],
  script: Script,
): Promise<ScriptedServer> {
  let next = 0;
  return ScriptedServer.start({
    dequeueRollouts: () => {
      const rolloutId = `ro-${next}`;
      const latestAttempt = { ...claims[next++], rolloutId, attemptId: "at", sequenceNumber: 1 };
      return { rollouts: [{ rolloutId, inputJson: Buffer.from("1"), latestAttempt }] };
    },
    heartbeat: () => ({}),
    ingestSpans: async (requests) => {
      for await (const _ of requests);
      return { result: {} };
    },
    updateAttempt: () => ({}),
    ...script,
  });
}

test("claims name the queues, and reports the reward", async () => {
  const claims: DequeueRolloutsRequest[] = [];
  const updates: UpdateAttemptRequest[] = [];
  const latestAttempt = { rolloutId: "ro", attemptId: "at", sequenceNumber: 1 };
  using scripted = await withClaims([], {
    dequeueRollouts: (request) => {
      claims.push(request);
      return { rollouts: [{ rolloutId: "ro", inputJson: Buffer.from("1"), latestAttempt }] };
    },
    updateAttempt: (request) => {
      updates.push(request);
      return {};
    },
  });
  const options = { address: scripted.address, queues: ["gpu", ""], maxRollouts: 1 };
  await new Runner(() => 0, options).run();
  assert.deepEqual(claims[0]?.queues, ["gpu", ""]);
  assert.equal(updates[0]?.attempt?.reward, 0);
  assert.deepEqual(updates[0].updateMask?.paths, ["status", "reward"]);
});

test("an older server gets reports without rewards", async (t) => {
  t.mock.method(process, "emitWarning", () => undefined);
  const masks: string[][] = [];
  const none = { resourcesId: "", resourcesVersion: 0 };
  using scripted = await withClaims([none, none, none], {
    updateAttempt: ({ attempt, updateMask }) => {
      const paths = updateMask?.paths ?? [];
      masks.push(paths);
      assert.equal(attempt?.status, AttemptStatus.SUCCEEDED);
      if (!paths.includes("reward")) return {};
      const fieldViolations = [{ field: "update_mask.paths[1]" }];
      const details = create(BadRequestSchema, { fieldViolations });
      throw new Refusal(Code.INVALID_ARGUMENT, "unknown", [anyPack(BadRequestSchema, details)]);
    },
  });
  await new Runner(() => 1, { address: scripted.address, maxRollouts: 3 }).run();
  // Only the first report is repeated.
  assert.deepEqual(masks, [["status", "reward"], ["status"], ["status"], ["status"]]);
});

test("resources have the version of the attempt, and heartbeats their number", async () => {
  const asked: GetResourcesRequest[] = [];
  const versions = [2, 3, 2].map((version) => ({ resourcesId: "rs", resourcesVersion: version }));
  let seen: (number: bigint) => void = () => undefined;
  using scripted = await withClaims(versions, {
    getResources: (request) => {
      asked.push(request);
      const { resourcesId, version } = request;
      return { resources: { resourcesId, version, publishNumber: BigInt(40 + version) } };
    },
    heartbeat: ({ publishNumber }) => {
      seen(publishNumber);
      return {};
    },
  });
  const numbers: bigint[] = [];
  const agent = (): Promise<void> =>
    new Promise((resolve) => {
      const wanted = [42n, 43n, 42n][numbers.length];
      seen = (number) => {
        if (number !== wanted) return;
        numbers.push(number);
        seen = () => undefined;
        resolve();
      };
    });
  const options = { address: scripted.address, maxRollouts: 3, heartbeatPeriodMs: 50 };
  await new Runner(agent, options).run();
  assert.deepEqual(numbers, [42n, 43n, 42n]);
  assert.deepEqual(
    asked.map(({ resourcesId, version }) => [resourcesId, version]),
    [
      ["rs", 2],
      ["rs", 3],
    ],
  );
});

test("heartbeats report the number of the option", async (t) => {
  t.mock.method(process, "emitWarning", () => undefined);
  const numbers: bigint[] = [];
  let calls = 0;
  const none = { resourcesId: "", resourcesVersion: 0 };
  let done: () => void = () => undefined;
  using scripted = await withClaims([none], {
    heartbeat: ({ publishNumber }) => {
      numbers.push(publishNumber);
      if (numbers.length === 3) done();
      return {};
    },
  });
  const publishNumber = (): number | bigint | undefined => {
    calls++;
    if (calls === 2) throw new Error("not loaded"); // costs this heartbeat only
    return [7, 0, 8n][calls - 1];
  };
  const agent = (): Promise<void> => new Promise((resolve) => (done = resolve));
  const options = { address: scripted.address, maxRollouts: 1, heartbeatPeriodMs: 50 };
  await new Runner(agent, { ...options, publishNumber }).run();
  assert.deepEqual(numbers.slice(0, 3), [7n, 8n, 0n]);
});
