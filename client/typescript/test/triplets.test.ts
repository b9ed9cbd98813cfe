/** Triplets and samples: over a connection that breaks, and from a real server. */

import assert from "node:assert/strict";
import { test } from "node:test";

import {
  Code,
  LightningStore,
  LightningStoreError,
  Runner,
  type SampleOptions,
  type TripletOptions,
} from "../src/index.js";
import {
  RewardPolicy,
  SampleMerge,
  TripletSource,
  type ListSamplesRequest,
  type ListTripletsRequest,
} from "../src/proto.js";
import { ScriptedServer } from "./scripted.js";
import { TestServer } from "./server.js";

/** Returns a part of an attempt's triplets with these sequence ids. */
function part(rolloutId: string, complete: boolean, ...numbers: bigint[]) {
  const triplets = numbers.map((sequenceId) => ({ sequenceId }));
  return { attempt: { rolloutId, attemptId: "at" }, triplets, complete };
}

test("triplets of many rollouts are asked for in parts", async () => {
  const sizes: number[] = [];
  const rewards: unknown[] = [];
  using scripted = await ScriptedServer.start({
    listTriplets: async function* ({ rolloutIds, finalRewards }) {
      await Promise.resolve();
      sizes.push(rolloutIds.length);
      rewards.push(finalRewards);
      yield { attempts: [part(rolloutIds[0] ?? "", true, 1n)] };
    },
  });
  const client = new LightningStore(scripted.address);
  const ids = Array.from({ length: 20_001 }, (_, n) => `${n}`);
  const found = [];
  for await (const { attempt } of client.listTriplets(ids, { finalRewards: { 10000: 2 } })) {
    found.push(attempt?.rolloutId);
  }
  assert.deepEqual(found, ["0", "10000", "20000"]);
  assert.deepEqual(sizes, [10_000, 10_000, 1]);
  assert.deepEqual(rewards, [{}, { 10000: 2 }, {}]);
  client.close();
});

test("a list of triplets that breaks goes on where it was, each attempt whole", async () => {
  const asked: ListTripletsRequest[] = [];
  let arrived: () => void = () => undefined;
  const arrival = new Promise<void>((resolve) => (arrived = resolve));
  using scripted = await ScriptedServer.start({
    listTriplets: async function* (request, peer) {
      asked.push(request);
      if (asked.length === 1) {
        yield { attempts: [part("a", false, 1n)] };
        yield { attempts: [part("a", true, 2n), part("b", false, 3n)] };
        await arrival;
        peer.cut();
      }
      yield { attempts: [part("b", true, 4n), part("c", true)] };
    },
  });
  const client = new LightningStore(scripted.address);
  const options: TripletOptions = {
    source: "proxy",
    rewardPolicy: "by-sequence",
    agentMatch: "x",
    deduplicate: false,
    finalRewards: { a: 1, c: 2 },
  };
  const found = [];
  for await (const { attempt, triplets } of client.listTriplets(["a", "b", "c"], options)) {
    found.push([attempt?.rolloutId, triplets.map(({ sequenceId }) => sequenceId)]);
    arrived();
  }
  assert.deepEqual(found, [
    ["a", [1n, 2n]],
    ["b", [4n]],
    ["c", []],
  ]);
  assert.deepEqual(
    asked.map(({ rolloutIds, finalRewards }) => [rolloutIds, finalRewards]),
    [
      [["a", "b", "c"], { a: 1, c: 2 }],
      [["b", "c"], { c: 2 }],
    ],
  );
  for (const request of asked) {
    assert.equal(request.source, TripletSource.PROXY);
    assert.equal(request.rewardPolicy, RewardPolicy.BY_SEQUENCE);
    assert.equal(request.agentMatch, "x");
    assert.equal(request.deduplicate, false);
    assert.equal(request.repairHierarchy, undefined);
  }
  client.close();
});

test("a list of samples that breaks goes on where it was, each attempt whole", async () => {
  const asked: ListSamplesRequest[] = [];
  let arrived: () => void = () => undefined;
  const arrival = new Promise<void>((resolve) => (arrived = resolve));
  const rows = (rolloutId: string, complete: boolean, ...indexes: number[]) => {
    const samples = indexes.map((index) => ({ index, tokenIds: [index], mask: [true] }));
    return { attempt: { rolloutId, attemptId: "at" }, groupId: "g", samples, complete };
  };
  using scripted = await ScriptedServer.start({
    listSamples: async function* (request, peer) {
      asked.push(request);
      if (asked.length === 1) {
        yield { attempts: [rows("a", false, 0)] };
        yield { attempts: [rows("a", true, 1), rows("b", false, 0)] };
        await arrival;
        peer.cut();
      }
      yield { attempts: [rows("b", true, 0)] };
    },
  });
  const client = new LightningStore(scripted.address);
  const found = [];
  const options: SampleOptions = { merge: "none", finalRewards: { a: 1, b: 2 } };
  for await (const { attempt, groupId, samples } of client.listSamples(["a", "b"], options)) {
    found.push([attempt?.rolloutId, groupId, samples.map(({ tokenIds }) => tokenIds)]);
    arrived();
  }
  assert.deepEqual(found, [
    ["a", "g", [[0], [1]]],
    ["b", "g", [[0]]],
  ]);
  assert.deepEqual(
    asked.map(({ rolloutIds, finalRewards, merge }) => [rolloutIds, finalRewards, merge]),
    [
      [["a", "b"], { a: 1, b: 2 }, SampleMerge.NONE],
      [["b"], { b: 2 }, SampleMerge.NONE],
    ],
  );
  client.close();
});

test("triplets of a server hold the reward of their call", async () => {
  await using server = await TestServer.start();
  const store = new LightningStore(server.address);
  const [rollout] = await store.enqueue([{ input: 1 }]);
  const runner = new Runner(
    (_task, _resources, tracer) => {
      tracer.startSpan("openai.chat.completion").end();
      return Promise.resolve(0.5);
    },
    { store, maxRollouts: 1 },
  );
  await runner.run();
  const rewards = [];
  for await (const { triplets } of store.listTriplets([rollout?.rolloutId ?? ""])) {
    rewards.push(...triplets.map(({ reward }) => reward?.value));
  }
  assert.deepEqual(rewards, [0.5]);
  await assert.rejects(store.listTriplets(["nobody"]).next(), (error) => {
    assert(error instanceof LightningStoreError);
    return error.code === Code.NOT_FOUND;
  });
  store.close();
});
