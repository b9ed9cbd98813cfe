import assert from "node:assert/strict";
import { test } from "node:test";

import { create } from "@bufbuild/protobuf";

import { Code, LightningStore, type NamespaceStubs } from "../src/index.js";
import { listNamespaces } from "../src/namespaces.js";
import { ListNamespacesResponseSchema, NamespaceSchema } from "../src/proto.js";
import { TestServer } from "./server.js";

test("namespaces are created, changed and deleted", async (t) => {
  await using server = await TestServer.start();
  const store = new LightningStore(server.address);
  const inside = new LightningStore({ address: server.address, namespace: "run-1" });
  t.after(() => {
    store.close();
    inside.close();
  });
  const settings = { description: "first", labels: { team: "a" }, maxQueueLength: 7 };
  const created = await store.createNamespace("run-1", settings);
  assert.equal(created.name, "run-1");
  assert.equal(created.maxQueueLength, 7n);
  assert(created.storeId);
  await assert.rejects(store.createNamespace("run-1"), {
    code: Code.ALREADY_EXISTS,
    reason: "ERROR_REASON_NAMESPACE_EXISTS",
  });
  const changes = { description: "second", maxQueueLength: null, retainFinishedMs: 1500 };
  const changed = await store.updateNamespace("run-1", changes);
  assert.equal(changed.description, "second");
  assert.deepEqual({ ...changed.labels }, { team: "a" });
  assert.equal(changed.maxQueueLength, undefined);
  assert.deepEqual(changed.retainFinished?.nanos, 500_000_000);
  assert.equal((await store.getNamespace("run-1")).description, "second");
  const names = [];
  for await (const { name } of store.listNamespaces()) names.push(name);
  assert.deepEqual(names, ["default", "run-1"]);

  const [rollout] = await inside.enqueue([{ input: 1 }]);
  assert(rollout);
  await assert.rejects(store.getRollout(rollout.rolloutId), { code: Code.NOT_FOUND });

  await store.deleteNamespace("run-1", { force: true });
  await assert.rejects(inside.getRollout(rollout.rolloutId), {
    code: Code.NOT_FOUND,
    reason: "ERROR_REASON_NAMESPACE_NOT_FOUND",
  });
  await assert.rejects(store.deleteNamespace("run-1"), { code: Code.NOT_FOUND });
  await store.deleteNamespace("run-1", { allowMissing: true });
});

test("lists of namespaces load page by page", async () => {
  const asked: unknown[] = [];
  const stubs = {
    listNamespaces: (request: { pageToken: string }, call: unknown) => {
      asked.push([request, call]);
      const namespaces = [create(NamespaceSchema, { name: `n${asked.length}` })];
      const nextPageToken = asked.length < 3 ? `${asked.length}` : "";
      const page = create(ListNamespacesResponseSchema, { namespaces, nextPageToken });
      return Promise.resolve(page);
    },
  } as unknown as NamespaceStubs;
  const query = { nameContains: "n", timeoutMs: 7 };
  const names = [];
  for await (const { name } of listNamespaces(stubs, query)) names.push(name);
  assert.deepEqual(names, ["n1", "n2", "n3"]);
  assert.deepEqual(
    asked,
    ["", "1", "2"].map((pageToken) => [{ nameContains: "n", pageToken }, { timeoutMs: 7 }]),
  );
  asked.length = 0;
  for await (const { name } of listNamespaces(stubs, query)) {
    assert.equal(name, "n1");
    break;
  }
  assert.equal(asked.length, 1, "pages are loaded when they are read");
});
