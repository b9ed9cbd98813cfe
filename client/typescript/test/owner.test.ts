import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { setTimeout as delay } from "node:timers/promises";

import {
  Metadata,
  Server,
  ServerCredentials,
  status,
  type Client,
  type sendUnaryData,
  type ServerWritableStream,
} from "@grpc/grpc-js";

import { LightningStore, LightningStoreError } from "../src/index.js";
import { Owner } from "../src/owner.js";

const EMPTY = Buffer.alloc(0);
const asItIs = (bytes: Buffer): Buffer => bytes;
const shape = {
  requestStream: false,
  requestSerialize: asItIs,
  requestDeserialize: asItIs,
  responseSerialize: asItIs,
  responseDeserialize: asItIs,
};

/** A server that names an owner in its trailers, counts its calls, and answers them with an empty message. */
async function share(t: TestContext, owner = "") {
  const shared = {
    calls: 0,
    code: status.OK as status,
    address: "",
    stop: (): void => undefined,
  };
  const trailers = new Metadata();
  if (owner) trailers.set("x-lightning-owner", owner);
  const server = new Server();
  const path = (name: string) => `/lightningstore.v1.LightningStoreService/${name}`;
  server.addService(
    {
      GetStatistics: { ...shape, path: path("GetStatistics"), responseStream: false },
      WatchRollouts: { ...shape, path: path("WatchRollouts"), responseStream: true },
    },
    {
      GetStatistics: (_: unknown, answer: sendUnaryData<Buffer>) => {
        shared.calls++;
        if (shared.code) answer({ code: shared.code, details: "scripted" });
        else answer(null, EMPTY, trailers);
      },
      WatchRollouts: (call: ServerWritableStream<Buffer, Buffer>) => {
        shared.calls++;
        if (shared.code) call.emit("error", { code: shared.code, details: "scripted" });
        else call.write(EMPTY);
      },
    },
  );
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, bound) => {
      if (error) reject(error);
      else resolve(bound);
    });
  });
  shared.address = `127.0.0.1:${port}`;
  shared.stop = () => {
    server.forceShutdown();
  };
  t.after(shared.stop);
  return shared;
}

/** Two servers, and a client that knows the first one and makes calls until it has gone to the owner, the second. */
async function settled(t: TestContext) {
  // The owner names another one, as it would after a move: the client does not go on from there.
  const owner = await share(t, "127.0.0.1:1");
  const first = await share(t, owner.address);
  const store = new LightningStore({ address: first.address });
  t.after(() => {
    store.close();
  });
  while (owner.calls === 0) {
    await store.rpc.getStatistics({});
    await delay(1);
  }
  return { owner, first, store, before: first.calls };
}

test("a client goes to the owner of its namespace, and comes back when that is gone", async (t) => {
  const { owner, first, store, before } = await settled(t);
  for (let n = 0; n < 10; n++) await store.rpc.getStatistics({});
  for await (const answer of store.rpc.watchRollouts({})) {
    assert(answer);
    break;
  }
  assert.equal(first.calls, before);
  owner.stop();
  await store.rpc.getStatistics({});
  assert.equal(first.calls, before + 1);
});

test("errors of the owner are those of the call", async (t) => {
  const { owner, first, store, before } = await settled(t);
  owner.code = status.NOT_FOUND;
  await assert.rejects(store.rpc.getStatistics({}), { code: status.NOT_FOUND });
  owner.code = status.OK;
  await store.rpc.getStatistics({});
  assert.equal(first.calls, before);
});

test("a stream of an owner that is gone is unavailable, and the next call comes back", async (t) => {
  const { owner, first, store, before } = await settled(t);
  owner.code = status.UNAVAILABLE;
  await assert.rejects(
    async () => {
      for await (const answer of store.rpc.watchRollouts({})) assert(answer);
    },
    (error) => error instanceof LightningStoreError && error.code === status.UNAVAILABLE,
  );
  await store.rpc.getStatistics({});
  assert.equal(first.calls, before + 1);
});

test("a call that names another namespace stays at the first server", async (t) => {
  const { first, store, before } = await settled(t);
  await store.rpc.getStatistics({}, { metadata: { "x-lightning-namespace": "run-2" } });
  assert.equal(first.calls, before + 1);
});

test("an owner that cannot be reached holds no call up, and no program", async (t) => {
  const first = await share(t, "127.0.0.1:1");
  const store = new LightningStore({ address: first.address });
  for (let n = 0; n < 3; n++) await store.rpc.getStatistics({});
  assert.equal(first.calls, 3);
  store.close();
});

test("trailers lead to a host and a port alone", () => {
  const asked: string[] = [];
  const way = new Owner((address) => {
    asked.push(address);
    return { waitForReady: () => undefined, close: () => undefined } as unknown as Client;
  });
  const refused = ["", "x", "unix:/run/some.sock", "unix:1", "dns://a/b:1", "a:1,b:2", "a b:1"];
  for (const address of [...refused, "[::1", "[::1]:1"]) {
    const trailers = new Metadata();
    trailers.set("x-lightning-owner", address);
    way.learn(trailers);
  }
  assert.deepEqual(asked, ["[::1]:1"]);
});
