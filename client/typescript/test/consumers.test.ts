/** Consumers: their settings, pulls, acknowledgements, and what happens when a response is lost. */

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { create } from "@bufbuild/protobuf";
import { anyPack } from "@bufbuild/protobuf/wkt";

import { RetryInfoSchema } from "../src/gen/google/rpc/error_details_pb.js";
import {
  Code,
  ConsumerUnit,
  DeliveryState,
  LightningStore,
  RolloutStatus,
  type Delivery,
} from "../src/index.js";
import type { PullFinishedRequest } from "../src/proto.js";
import { Refusal, ScriptedServer, type Script } from "./scripted.js";
import { TestServer } from "./server.js";

const PATIENCE_MS = 30_000;

let server: TestServer;

before(async () => {
  server = await TestServer.start();
});

after(async () => {
  await server[Symbol.asyncDispose]();
});

function disposable(store: LightningStore): LightningStore & Disposable {
  return Object.assign(store, {
    [Symbol.dispose]: () => {
      store.close();
    },
  });
}

/** A client of a namespace of its own. */
async function storeOf(namespace: string): Promise<LightningStore & Disposable> {
  const store = disposable(new LightningStore({ address: server.address, namespace }));
  await store.createNamespace(namespace);
  return store;
}

/** Makes rollouts that have succeeded, in this order. */
async function finish(store: LightningStore, ...ids: string[]): Promise<void> {
  for (const rolloutId of ids) {
    await store.rpc.startRollout({ rollout: { rolloutId, inputJson: Buffer.from("1") } });
    await store.updateAttempt(rolloutId, "latest", { status: "succeeded" });
  }
}

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const item of items) found.push(item);
  return found;
}

const itemsOf = (deliveries: Delivery[]): string[] => deliveries.map(({ itemId }) => itemId);
const idsOf = (deliveries: Delivery[]): string[] => deliveries.map((d) => d.deliveryId);

test("consumers are created, changed and deleted", async () => {
  using store = await storeOf("settings");
  const spec = {
    statuses: [RolloutStatus.SUCCEEDED],
    modes: ["train", undefined],
    queues: ["gpu"],
    labels: { run: "7" },
    afterCompletionNumber: 0,
    maxLag: 4,
    onStale: "deliver",
    maxOutstanding: 8n,
  } as const;
  const created = await store.createConsumer("trainer", spec);
  assert.deepEqual(created.filter?.queues, ["gpu"]);
  assert.equal(created.filter.modes.length, 2);
  assert.deepEqual({ ...created.filter.labels }, { run: "7" });
  assert.deepEqual([created.maxLag, created.afterCompletionNumber], [4n, 0n]);
  assert.equal(created.ackDeadline?.seconds, 600n);
  assert.deepEqual(await store.createConsumer("trainer", spec), created);
  await assert.rejects(store.createConsumer("trainer"), {
    reason: "ERROR_REASON_CONSUMER_EXISTS",
  });
  const changes = { maxLag: null, maxDeliveries: 3, ackDeadlineMs: 1500 };
  const changed = await store.updateConsumer("trainer", changes);
  assert.deepEqual(
    [changed.maxLag, changed.maxDeliveries, changed.maxOutstanding],
    [undefined, 3, 8n],
  );
  assert.equal(changed.ackDeadline?.nanos, 500_000_000);
  assert.deepEqual(await store.updateConsumer("trainer", {}), changed);
  assert.deepEqual(await store.getConsumer("trainer"), changed);
  const archive = await store.createConsumer("archive", { unit: "group", ackDeadlineMs: 60_000 });
  assert.deepEqual([archive.unit, archive.filter], [ConsumerUnit.GROUP, undefined]);
  const names = (await all(store.listConsumers())).map(({ name }) => name);
  assert.deepEqual(names, ["archive", "trainer"]);
  await store.deleteConsumer("archive");
  await assert.rejects(store.deleteConsumer("archive"), { code: Code.NOT_FOUND });
  await store.deleteConsumer("archive", { allowMissing: true });
  await assert.rejects(store.pullFinished("archive"), {
    reason: "ERROR_REASON_CONSUMER_NOT_FOUND",
  });
});

test("deliveries are acknowledged", async () => {
  using store = await storeOf("deliveries");
  await store.createConsumer("trainer");
  await finish(store, "a", "b", "c");
  const pull = { maxItems: 5, minItems: 3, waitMs: PATIENCE_MS, requestId: "mine" };
  const first = await store.pullFinished("trainer", pull);
  assert.deepEqual(itemsOf(first), ["a", "b", "c"]);
  assert.equal(first[0]?.rollout?.rolloutId, "a");
  assert.deepEqual(idsOf(await store.pullFinished("trainer", pull)), idsOf(first));
  const before = Date.now();
  const moved = await store.modifyAckDeadline("trainer", first.slice(0, 1), 3_600_000);
  assert(moved.getTime() > before + 3_000_000);
  await store.acknowledge("trainer", first.slice(0, 1));
  const ended = { reason: "ERROR_REASON_DELIVERY_ENDED" };
  await assert.rejects(store.acknowledge("trainer", first), ended); // all of them or none
  const release = { outcome: "released", note: "later", requestId: "mine" } as const;
  for (let n = 0; n < 2; n++) await store.acknowledge("trainer", idsOf(first).slice(1), release);
  const query = { states: ["redelivery"], pageSize: 1 } as const;
  const waiting = await all(store.listDeliveries("trainer", query));
  assert.deepEqual(itemsOf(waiting), ["b", "c"]);
  assert.deepEqual([waiting[0]?.note, waiting[0]?.state], ["later", DeliveryState.REDELIVERY]);
  const three = { maxItems: 3, minItems: 3 };
  assert.deepEqual(await store.pullFinished("trainer", three), []);
  const rest = await store.pullFinished("trainer", { ...three, partialOk: true });
  assert.deepEqual(itemsOf(rest), ["b", "c"]);
  assert.equal(rest[0]?.deliveryCount, 2);
  await assert.rejects(store.pullFinished("trainer", { waitMs: -1 }), {
    code: Code.INVALID_ARGUMENT,
  });
});

test("consumers belong to the namespace of the client", async () => {
  using inside = await storeOf("inside");
  using outside = await storeOf("outside");
  for (const store of [inside, outside]) await store.createConsumer("trainer");
  await finish(inside, "a");
  assert.deepEqual(await outside.pullFinished("trainer"), []);
  const found = await inside.pullFinished("trainer");
  assert.deepEqual(itemsOf(found), ["a"]);
  await assert.rejects(outside.acknowledge("trainer", found), { code: Code.FAILED_PRECONDITION });
  await inside.acknowledge("trainer", found);
});

test("a pull whose response is lost loses nothing and takes nothing twice", async () => {
  using behind = await storeOf("lost");
  await behind.createConsumer("trainer");
  await finish(behind, "a", "b", "c", "d");
  const taken = new Set<string>();
  let calls = 0;
  using front = await ScriptedServer.start({
    pullFinished: async (request, { cut }) => {
      const answer = await behind.rpc.pullFinished(request);
      for (const { deliveryId } of answer.deliveries) taken.add(deliveryId);
      if (++calls % 2 === 1) cut(); // every other response
      return answer;
    },
  });
  using store = disposable(new LightningStore(front.address));
  const seen = await store.pullFinished("trainer", { maxItems: 2, waitMs: PATIENCE_MS });
  assert.deepEqual(itemsOf(seen), ["a", "b"]);
  for await (const deliveries of store.consume("trainer")) {
    seen.push(...deliveries);
    if (seen.length === 4) break;
  }
  assert.deepEqual(itemsOf(seen), ["a", "b", "c", "d"]);
  assert.deepEqual(idsOf(seen), [...taken]);
  await behind.acknowledge("trainer", seen);
});

async function scripted(
  pullFinished: NonNullable<Script["pullFinished"]>,
): Promise<{ store: LightningStore } & Disposable> {
  const front = await ScriptedServer.start({ pullFinished });
  const store = new LightningStore({ address: front.address, timeoutMs: PATIENCE_MS });
  return {
    store,
    [Symbol.dispose]: () => {
      store.close();
      front[Symbol.dispose]();
    },
  };
}

test("a pull may wait for longer than a call, and is repeated unchanged", async () => {
  const asked: PullFinishedRequest[] = [];
  using front = await scripted((request, { deadline }) => {
    asked.push(request);
    assert(deadline > Date.now() + 3_500_000, "the deadline of the call ends the wait");
    if (asked.length === 1) throw new Refusal(Code.UNAVAILABLE);
    const details = create(RetryInfoSchema, { retryDelay: { nanos: 1 } });
    const busy = new Refusal(Code.RESOURCE_EXHAUSTED, "busy", [anyPack(RetryInfoSchema, details)]);
    if (asked.length < 4) throw busy; // other calls do not retry such errors
    return { deliveries: [{ deliveryId: "de-1" }] };
  });
  const found = await front.store.pullFinished("trainer", { waitMs: 3_600_000 });
  assert.deepEqual(idsOf(found), ["de-1"]);
  assert.equal(asked.length, 4);
  assert(asked[0]?.requestId);
  for (const request of asked) assert.deepEqual(request, asked[0]);
});

test("an aborted pull ends, also that of an iteration", async () => {
  let arrived: () => void = () => undefined;
  let left: () => void = () => undefined;
  using front = await scripted(
    (_, { signal }) =>
      new Promise((resolve) => {
        signal.addEventListener("abort", () => {
          left();
          resolve({});
        });
        arrived();
      }),
  );
  const { store } = front;
  const pulls = [
    (signal: AbortSignal) => store.pullFinished("trainer", { waitMs: 3_600_000, signal }),
    (signal: AbortSignal) => all(store.consume("trainer", { signal })),
  ];
  for (const pull of pulls) {
    const controller = new AbortController();
    const arrival = new Promise<void>((resolve) => (arrived = resolve));
    const leaving = new Promise<void>((resolve) => (left = resolve));
    const result = assert.rejects(pull(controller.signal), { code: Code.CANCELLED, cause: "why" });
    await arrival;
    controller.abort("why");
    await result;
    await leaving;
  }
});

test("an iteration takes nothing ahead", async () => {
  const asked: PullFinishedRequest[] = [];
  using front = await scripted((request) => {
    asked.push(request);
    if (asked.length === 2) return {}; // the end of a long poll
    if (asked.length === 4) throw new Refusal(Code.NOT_FOUND);
    return { deliveries: [{ itemId: "a" }, { itemId: "b" }] };
  });
  const steps: number[] = [];
  const iterated = async (): Promise<void> => {
    for await (const { length } of front.store.consume("trainer", { maxItems: 7, minItems: 2 })) {
      assert.equal(length, 2);
      steps.push(asked.length);
    }
  };
  await assert.rejects(iterated(), { code: Code.NOT_FOUND });
  assert.deepEqual(steps, [1, 3]);
  assert.equal(new Set(asked.map(({ requestId }) => requestId)).size, 4);
  for (const { maxItems, minItems, wait, partialOk } of asked) {
    assert.deepEqual([maxItems, minItems, wait?.seconds, partialOk], [7, 2, 20n, false]);
  }
});
