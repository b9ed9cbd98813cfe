import assert from "node:assert/strict";
import { test } from "node:test";

import { Code, encodeJson, LightningStore, LightningStoreError, llm } from "../src/index.js";
import { decodeJson } from "../src/json.js";
import { cut } from "../src/text.js";
import { ScriptedServer } from "./scripted.js";

const BAD = "a\ud800b";

async function failure(call: () => Promise<unknown>): Promise<LightningStoreError> {
  const error: unknown = await call().then(
    () => undefined,
    (reason: unknown) => reason,
  );
  assert(error instanceof LightningStoreError, String(error));
  return error;
}

test("half a surrogate pair in what names something is refused with its field", async () => {
  const store = new LightningStore("127.0.0.1:1"); // nothing is sent
  const attempts = [{ rolloutId: "r", attemptId: BAD }];
  const calls: Record<string, () => Promise<unknown>> = {
    "rollouts[1].group_id": () => store.enqueue([{ input: 1 }, { input: 1, groupId: BAD }]),
    "rollout_ids[2]": () => store.cancelRollouts(["a", "b", BAD]),
    'resources["a\\ud800b"]': () => store.addResources({ [BAD]: llm({ endpoint: "http://h" }) }),
    'resources["llm"].llm.model': () =>
      store.addResources({ llm: llm({ endpoint: "http://h", model: BAD }) }),
    "attempts[0].attempt_id": () => store.rpc.heartbeat({ workerId: "w", attempts }),
    "name.equals": () => store.querySpans("r", { name: BAD }).next(),
    "batch.rollout_id": () => store.rpc.ingestSpans([{ batch: { rolloutId: BAD } }]),
    request_id: () => store.enqueue([{ input: 1 }], { requestId: BAD }),
  };
  for (const [field, call] of Object.entries(calls)) {
    const error = await failure(call);
    assert.equal(error.code, Code.INVALID_ARGUMENT, error.message);
    assert.deepEqual(
      error.fieldViolations.map((violation) => violation.field),
      [field],
    );
    assert(error.message.includes(field));
  }
  store.close();
});

test("half a surrogate pair in what describes something becomes U+FFFD", async () => {
  const got: unknown[] = [];
  using server = await ScriptedServer.start({
    updateAttempt: ({ attempt }) => {
      got.push(attempt?.failure?.message);
      return {};
    },
    enqueueRollouts: ({ rollouts }) => {
      got.push(decodeJson(rollouts[0]?.inputJson ?? new Uint8Array()));
      return {};
    },
  });
  const store = new LightningStore(server.address);
  const attempt = { rolloutId: "r", attemptId: "a", failure: { message: BAD } };
  await store.rpc.updateAttempt({ attempt });
  const input = { [BAD]: ["\udc00", "\\ud800", "\\\ud800", "😀"] };
  await store.enqueue([{ input }]);
  assert.deepEqual(got, ["a\ufffdb", { "a\ufffdb": ["\ufffd", "\\ud800", "\\\ufffd", "😀"] }]);
  store.close();
});

test("a value that its field cannot have is an error before anything is sent", async () => {
  const store = new LightningStore("127.0.0.1:1");
  const error = await failure(() => store.enqueue([{ input: 1, priority: 0.5 }]));
  assert.equal(error.code, Code.INVALID_ARGUMENT);
  assert.match(error.message, /int32/);
  store.close();
});

test("invalid JSON is rejected with its path", async () => {
  const ring: Record<string, unknown> = { list: [1] };
  ring.ring = ring;
  const broken = (): never => {
    throw new Error("broken");
  };
  const cases: readonly [value: unknown, message: RegExp][] = [
    [NaN, /^value: NaN cannot be represented in JSON$/],
    [{ a: [1, { b: Infinity }] }, /^value\.a\[1\]\.b: Infinity cannot be represented in JSON$/],
    [{ a: 1, b: { toJSON: () => ({ c: NaN }) } }, /^value\.b\.c: NaN/],
    [{ a: 1, b: { toJSON: broken } }, /^value\.b: broken$/],
    [
      {
        a: { n: 1 },
        get b() {
          return broken();
        },
      },
      /^value\.b: broken$/,
    ],
    [ring, /^value\.ring: Converting circular structure/],
    [undefined, /^value: undefined cannot be represented/],
    [Buffer.from("1"), /^value: .*RawJson/],
  ];
  for (const [value, message] of cases) {
    assert.throws(() => encodeJson(value), { name: "TypeError", message });
  }
  const store = new LightningStore("127.0.0.1:1");
  const specs = [{ input: 1 }, { input: 1, metadata: { x: NaN } }];
  await assert.rejects(store.enqueue(specs), /^TypeError: rollouts\[1\]\.metadata\.x: NaN/);
  store.close();
});

test("messages beyond the limit say what would be right", async () => {
  const groupId = "x".repeat(65 << 20);
  using server = await ScriptedServer.start({
    enqueueRollouts: () => ({ rollouts: [{ groupId }] }),
  });
  const store = new LightningStore(server.address);
  const large = await failure(() => store.enqueue([{ input: groupId }]));
  assert.equal(large.code, Code.RESOURCE_EXHAUSTED);
  assert.match(large.message, /was not sent/);
  const answer = await failure(() => store.enqueue([{ input: 1 }]));
  assert.equal(answer.code, Code.RESOURCE_EXHAUSTED);
  assert.match(answer.message, /has taken effect/);
  store.close();
});

test("text is cut at the end of a character", () => {
  const cases = { abcdef: "abcd", abcé: "abc", "a😀": "a", "a\ud800b": "a\ufffd", "": "" };
  for (const [text, want] of Object.entries(cases)) assert.equal(cut(text, 4), want);
});
