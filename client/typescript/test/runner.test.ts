import assert from "node:assert/strict";
import { once } from "node:events";
import { test, type TestContext } from "node:test";

import { trace } from "@opentelemetry/api";

import {
  AttemptStatus,
  emitReward,
  findFinalReward,
  LightningStore,
  llm,
  NonRetryable,
  proxyLlm,
  RolloutStatus,
  Runner,
  type Resource,
  type Reward,
  type Rollout,
  type RunContext,
  type StoredSpan,
} from "../src/index.js";
import { TestServer } from "./server.js";

async function spansOf(store: LightningStore, rollout: Rollout): Promise<StoredSpan[]> {
  const spans: StoredSpan[] = [];
  for await (const span of store.querySpans(rollout.rolloutId)) spans.push(span);
  return spans;
}

function quiet(t: TestContext): void {
  t.mock.method(process, "emitWarning", () => undefined);
}

async function finished(store: LightningStore, rollouts: Rollout[]): Promise<Map<string, Rollout>> {
  const got = new Map<string, Rollout>();
  const rolloutIds = rollouts.map(({ rolloutId }) => rolloutId);
  for await (const rollout of store.waitForRollouts({ rolloutIds })) {
    got.set(rollout.rolloutId, rollout);
  }
  return got;
}

test("rollouts are worked on, several at a time, and reported with their rewards", async (t) => {
  const warnings = t.mock.method(process, "emitWarning", () => undefined);
  await using server = await TestServer.start();
  const store = new LightningStore(server.address);
  await store.addResources({
    plain: llm({ endpoint: "http://h/v1", model: "q" }),
    proxy: proxyLlm({ endpoint: "http://p/v1" }),
  });
  const inputs = Array.from({ length: 30 }, (_, n) => ({ n: 2n ** 60n + BigInt(n) }));
  const rollouts = await store.enqueue(inputs.map((input) => ({ input })));
  const seen: Record<string, Resource>[] = [];
  let most = 0;
  let atWork = 0;
  const all: (() => void)[] = [];
  const agent = async (
    input: unknown,
    resources: Readonly<Record<string, Resource>>,
  ): Promise<number> => {
    most = Math.max(most, ++atWork);
    seen.push(resources);
    // No function continues before fifteen are running.
    await new Promise<void>((resolve) => {
      all.push(resolve);
      if (all.length % 15 === 0) for (const go of all) go();
    });
    atWork--;
    return Number((input as { n: bigint }).n - 2n ** 60n);
  };
  const options = { address: server.address, concurrency: 15, maxRollouts: 30, workerId: "me" };
  await new Runner(agent, options).run();
  assert.equal(most, 15);
  assert.deepEqual(warnings.mock.calls, []);
  const done = await finished(store, rollouts);
  for (const [n, rollout] of rollouts.entries()) {
    const { status, latestAttempt } = done.get(rollout.rolloutId) ?? {};
    assert.equal(status, RolloutStatus.SUCCEEDED);
    assert.equal(latestAttempt?.workerId, "me");
    const [span] = await spansOf(store, rollout);
    assert.equal(span?.name, "agentlightning.annotation");
    assert.deepEqual(span.attributes, {
      "agentlightning.reward.0.name": "primary",
      "agentlightning.reward.0.value": n,
    });
    assert.equal(span.otlp.attributes[1]?.value?.value.case, "doubleValue");
  }
  assert(seen[0]?.plain?.kind === "llm" && seen[0].plain.endpoint === "http://h/v1");
  assert(seen[0].proxy?.kind === "llm");
  assert.match(seen[0].proxy.endpoint, /^http:\/\/p\/rollout\/ro-\w+\/attempt\/at-\w+\/v1$/);
  const { worker } = await store.rpc.getWorker({ workerId: "me" });
  assert(worker?.lastHeartbeatTime);
  store.close();
});

test("spans nest across awaits, and rewards may have dimensions", async () => {
  await using server = await TestServer.start();
  const store = new LightningStore(server.address);
  const [rollout] = await store.enqueue([{ input: null }]);
  assert(rollout);
  const agent = async (
    _input: unknown,
    _resources: unknown,
    tracer: ReturnType<typeof trace.getTracer>,
  ) => {
    await tracer.startActiveSpan("outer", async (outer) => {
      await Promise.resolve();
      tracer.startSpan("inner").end();
      outer.end();
    });
    emitReward({ accuracy: 1, style: 0.5 });
  };
  await new Runner(agent, { store, maxRollouts: 1 }).run();
  const spans = await spansOf(store, rollout);
  const [outer, inner] = ["outer", "inner"].map((name) => spans.find((span) => span.name === name));
  assert.equal(inner?.parentSpanId, outer?.spanId);
  assert.equal(inner?.traceId, outer?.traceId);
  const reward = spans.find(({ name }) => name === "agentlightning.annotation");
  assert.deepEqual(reward?.attributes, {
    "agentlightning.reward.0.name": "accuracy",
    "agentlightning.reward.0.value": 1,
    "agentlightning.reward.1.name": "style",
    "agentlightning.reward.1.value": 0.5,
  });
  assert.equal(findFinalReward(spans), 1);
  assert.equal(findFinalReward([]), undefined);
  assert.throws(() => {
    emitReward(1);
  }, /no attempt/);
  store.close();
});

class OutOfTea extends Error {}

test("what the function throws is a failure, retried unless it says otherwise", async (t) => {
  quiet(t);
  await using server = await TestServer.start();
  const store = new LightningStore(server.address);
  const config = { maxAttempts: 2, retryCondition: ["failed" as const] };
  const inputs = ["tea", "final", "cause", "text", "second", "wrong"];
  const rollouts = await store.enqueue(inputs.map((input) => ({ input, config })));
  const numbers: number[] = [];
  const agent = (input: unknown, _1: unknown, _2: unknown, context: RunContext): Reward => {
    switch (input) {
      case "tea":
        throw new OutOfTea("no tea");
      case "final":
        throw new NonRetryable("never");
      case "cause":
        throw new NonRetryable("never", { cause: new RangeError("x") });
      case "text":
        // eslint-disable-next-line @typescript-eslint/only-throw-error
        throw "text";
      case "second":
        numbers.push(context.sequenceNumber);
        if (context.sequenceNumber === 1) throw new Error();
        return null;
      default:
        return "much" as unknown as number;
    }
  };
  await new Runner(agent, { store, maxRollouts: 10 }).run();
  const done = await finished(store, rollouts);
  const told = rollouts.map(({ rolloutId }) => {
    const { status = 0, attemptCount, latestAttempt } = done.get(rolloutId) ?? {};
    const { type, message, retryable } = latestAttempt?.failure ?? {};
    return [RolloutStatus[status], attemptCount, type, message, retryable];
  });
  assert.deepEqual(told, [
    ["FAILED", 2, "OutOfTea", "no tea", undefined],
    ["FAILED", 1, "NonRetryable", "never", false],
    ["FAILED", 1, "RangeError", "never", false],
    ["FAILED", 2, "string", "text", undefined],
    ["SUCCEEDED", 2, undefined, undefined, undefined],
    ["FAILED", 2, "TypeError", "the reward must be a number or nothing, not string", undefined],
  ]);
  assert.deepEqual(numbers, [1, 2]);
  store.close();
});

/** A function that waits for the end of its attempt, and a promise of its first call. */
function waiting(end: (context: RunContext) => Reward) {
  let begin: (context: RunContext) => void = () => undefined;
  const begun = new Promise<RunContext>((resolve) => (begin = resolve));
  const agent = async (_0: unknown, _1: unknown, _2: unknown, context: RunContext) => {
    begin(context);
    if (!context.signal.aborted) await once(context.signal, "abort");
    return end(context);
  };
  return { agent, begun };
}

for (const [how, end] of [
  ["returns", () => 1],
  [
    "throws",
    (context: RunContext) => {
      context.throwIfCancelled();
    },
  ],
] as const) {
  test(`a cancelled attempt whose function ${how} is never reported as succeeded`, async () => {
    await using server = await TestServer.start();
    const store = new LightningStore(server.address);
    const [rollout] = await store.enqueue([{ input: 1 }]);
    assert(rollout);
    const { agent, begun } = waiting(end);
    const runner = new Runner(agent, { store, maxRollouts: 1, heartbeatPeriodMs: 20 });
    const running = runner.run();
    const context = await begun;
    await store.cancelRollouts([rollout.rolloutId]);
    await running;
    assert.equal(context.cancellation?.message, "rollout_cancelled");
    const { attempt } = await store.rpc.getAttempt({
      rolloutId: rollout.rolloutId,
      attemptId: "latest",
    });
    assert.equal(attempt?.status, AttemptStatus.FAILED);
    assert.equal(attempt.failure?.type, "Cancelled");
    assert.deepEqual(await spansOf(store, rollout), []);
    store.close();
  });
}

test("a cancellation arrives without waiting for the next heartbeat", async () => {
  await using server = await TestServer.start();
  const store = new LightningStore(server.address);
  const [rollout] = await store.enqueue([{ input: 1 }]);
  assert(rollout);
  const { agent, begun } = waiting(() => 1); // sends no span
  const runner = new Runner(agent, { store, maxRollouts: 1, heartbeatPeriodMs: 1_000_000 });
  const running = runner.run();
  const context = await begun;
  await store.cancelRollouts([rollout.rolloutId]);
  await running;
  assert.equal(context.cancellation?.message, "rollout_cancelled");
  store.close();
});

test("a superseded attempt is stopped by what its spans are answered", async () => {
  await using server = await TestServer.start();
  const store = new LightningStore(server.address);
  const [rollout] = await store.enqueue([{ input: 1 }]);
  assert(rollout);
  const { rolloutId } = rollout;
  const agent = async (
    _0: unknown,
    _1: unknown,
    tracer: ReturnType<typeof trace.getTracer>,
    context: RunContext,
  ) => {
    await store.rpc.startAttempt({ rolloutId });
    tracer.startSpan("late").end();
    await once(context.signal, "abort");
    return 1;
  };
  await new Runner(agent, { store, maxRollouts: 1 }).run();
  const { attempts } = await store.rpc.listAttempts({ rolloutId });
  assert.deepEqual(
    attempts.map(({ status }) => AttemptStatus[status]),
    ["FAILED", "PREPARING"],
  );
  assert.equal(attempts[0]?.failure?.message, "superseded");
  store.close();
});

test("the first stop lets what runs finish, the second cancels it", async () => {
  await using server = await TestServer.start();
  const store = new LightningStore(server.address);
  const [first] = await store.enqueue([{ input: 1 }, { input: 2 }]);
  const { agent, begun } = waiting(() => 1);
  const runner = new Runner(agent, { store });
  const controller = new AbortController();
  const running = runner.run({ signal: controller.signal });
  const context = await begun;
  controller.abort();
  assert.equal(context.signal.aborted, false);
  runner.stop();
  await running;
  const { attempt } = await store.rpc.getAttempt({
    rolloutId: first?.rolloutId ?? "",
    attemptId: "latest",
  });
  assert.equal(attempt?.failure?.message, "the runner is stopping");
  const { queueDepth } = await store.rpc.getStatistics({});
  assert.equal(queueDepth, 1n);
  store.close();
});

test("a runner that is stopped while it waits for work ends at once", async () => {
  await using server = await TestServer.start();
  const store = new LightningStore(server.address);
  const runner = new Runner(() => undefined, { store, workerId: "idle" });
  const running = runner.run();
  for (;;) {
    const { waiterCount } = await store.rpc.getStatistics({});
    if (waiterCount > 0n) break;
  }
  process.emit("SIGTERM");
  await running;
  await assert.rejects(runner.run(), /once/);
  store.close();
});

test("a function that ignores its cancellation is abandoned", async (t) => {
  quiet(t);
  await using server = await TestServer.start();
  const store = new LightningStore(server.address);
  const [rollout] = await store.enqueue([{ input: 1 }]);
  let begin: () => void = () => undefined;
  const begun = new Promise<void>((resolve) => (begin = resolve));
  const agent = (): Promise<never> => {
    begin();
    return new Promise(() => undefined);
  };
  const runner = new Runner(agent, { store, graceMs: 10 });
  const running = runner.run();
  await begun;
  runner.stop();
  runner.stop();
  await running;
  const { status } = await store.getRollout(rollout?.rolloutId ?? "");
  assert.equal(status, RolloutStatus.FAILED);
  store.close();
});
