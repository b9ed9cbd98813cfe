/** The official Connect client for the web, unchanged, over the generated stubs and Node's fetch. */

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { Code, ConnectError, createClient, type Client } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";

import { ErrorInfoSchema } from "../src/gen/google/rpc/error_details_pb.js";
import { NamespaceService } from "../src/gen/lightningstore/v1/namespace_pb.js";
import { AttemptStatus, ErrorReason, LightningStoreService } from "../src/proto.js";
import { TestServer } from "./server.js";

type Store = Client<typeof LightningStoreService>;

const encoder = new TextEncoder();

let server: TestServer;
before(async () => {
  server = await TestServer.startWithHttp();
});
after(() => server[Symbol.asyncDispose]());

/** Runs a test in JSON, and again in protobuf. */
function both(name: string, run: (store: Store, form: string) => Promise<void>): void {
  for (const form of ["json", "protobuf"]) {
    test(`${name}, in ${form}`, async () => {
      const useBinaryFormat = form === "protobuf";
      const transport = createConnectTransport({ baseUrl: server.http, useBinaryFormat });
      await run(createClient(LightningStoreService, transport), form);
    });
  }
}

async function rejected(call: Promise<unknown>): Promise<ConnectError> {
  try {
    await call;
  } catch (error) {
    assert(error instanceof ConnectError);
    return error;
  }
  assert.fail("the call was answered");
}

async function finish(store: Store): Promise<string> {
  const inputJson = encoder.encode('{"q":"né"}');
  await store.enqueueRollouts({ rollouts: [{ inputJson }] });
  const { rollouts } = await store.dequeueRollouts({ limit: 1, workerId: "web" });
  const claimed = rollouts[0];
  assert(claimed);
  assert.deepEqual(claimed.inputJson, inputJson);
  const { rolloutId, latestAttemptId: attemptId } = claimed;
  await store.updateAttempt({ attempt: { rolloutId, attemptId, status: AttemptStatus.SUCCEEDED } });
  return rolloutId;
}

both("unary calls", async (store) => {
  const rolloutId = await finish(store);
  const { rollout } = await store.getRollout({ rolloutId });
  assert.equal(rollout?.rolloutId, rolloutId);
  assert.equal((await store.getStatistics({})).queueDepth, 0n);
});

both("errors have their code, text and details", async (store) => {
  const error = await rejected(store.getRollout({ rolloutId: "none" }));
  assert.equal(error.code, Code.NotFound);
  assert.equal(error.rawMessage, "no rollout 'none'");
  const [info] = error.findDetails(ErrorInfoSchema);
  assert.equal(info?.reason, `ERROR_REASON_${ErrorReason[ErrorReason.ROLLOUT_NOT_FOUND]}`);
  assert.equal(info.domain, "lightningstore");
});

both("a stream arrives as things happen, and ends when the client leaves", async (store) => {
  const leaving = new AbortController();
  const seen: string[] = [];
  let finished = "";
  const error = await rejected(
    (async () => {
      const { signal } = leaving;
      for await (const answer of store.watchRollouts({}, { signal, timeoutMs: 20_000 })) {
        const text = JSON.stringify(answer, (_, value: unknown) =>
          typeof value === "bigint" ? Number(value) : value,
        );
        seen.push(text);
        if (seen.length === 1) finished = await finish(store);
        else if (text.includes(finished)) leaving.abort();
      }
    })(),
  );
  assert.equal(error.code, Code.Canceled);
  assert(seen.length >= 2);
});

both("a stream ends with its error and the details", async (store) => {
  const error = await rejected(
    (async () => {
      for await (const _ of store.querySpans({ rolloutId: "none" })) assert.fail();
    })(),
  );
  assert.equal(error.code, Code.NotFound);
  assert.equal(
    error.findDetails(ErrorInfoSchema)[0]?.reason,
    `ERROR_REASON_${ErrorReason[ErrorReason.ROLLOUT_NOT_FOUND]}`,
  );
});

both("deadlines and aborts end calls", async (store) => {
  const late = await rejected(
    (async () => {
      for await (const { storeId } of store.watchRollouts({}, { timeoutMs: 300 })) assert(storeId);
    })(),
  );
  assert.equal(late.code, Code.DeadlineExceeded);
  const poll = { limit: 1, workerId: "web", wait: { seconds: 30n, nanos: 0 } };
  const gone = await rejected(store.dequeueRollouts(poll, { signal: AbortSignal.timeout(300) }));
  assert([Code.Canceled, Code.DeadlineExceeded].includes(gone.code), gone.message);
  // The claim that was abandoned takes nothing.
  await finish(store);
});

both("namespaces are named by a header", async (store, form) => {
  const transport = createConnectTransport({ baseUrl: server.http });
  const namespaces = createClient(NamespaceService, transport);
  await namespaces.createNamespace({ namespace: { name: form } });
  const headers = { "x-lightning-namespace": form };
  await store.enqueueRollouts({ rollouts: [{ inputJson: encoder.encode("1") }] }, { headers });
  assert.equal((await store.getStatistics({}, { headers })).queueDepth, 1n);
  assert.equal((await store.getStatistics({})).queueDepth, 0n);
  const names = (await namespaces.listNamespaces({})).namespaces.map(({ name }) => name);
  assert(names.includes("default") && names.includes(form));
});
