/** The work of a runner on one claim: resources, function, spans, report. */

import { randomUUID } from "node:crypto";
import { setMaxListeners } from "node:events";

import { create } from "@bufbuild/protobuf";
import { FieldMaskSchema } from "@bufbuild/protobuf/wkt";
import { context as otel, type Tracer } from "@opentelemetry/api";

import { unsuppressTracing } from "@opentelemetry/core";

import { Backoff, pause, warn } from "./backoff.js";
import type { LightningStore, Resources } from "./client.js";
import { AttemptCancelled, currentAttempt, type RunContext } from "./context.js";
import { toStoreError } from "./errors.js";
import type { SpanExporter } from "./exporter.js";
import { failureOf, isRefusal, isUnknownPath, refusedFailure } from "./failures.js";
import {
  AttemptSchema,
  AttemptStatus,
  FailureSchema,
  StopReason,
  type Failure,
  type UpdateAttemptResponse,
} from "./gen/lightningstore/v1/attempt_pb.js";
import type { Rollout } from "./gen/lightningstore/v1/rollout_pb.js";
import { decodeJson } from "./json.js";
import { routed, type Resource } from "./resources.js";
import { emitReward } from "./rewards.js";
import { attemptTracer } from "./tracing.js";

/** Timeout in milliseconds of one try of a call that is retried. */
const TRY_MS = 5_000;
/** Number of cached resources, so that a batch of rollouts loads them once. */
const KEPT_RESOURCES = 4;

/** The resources of an attempt by name. A ProxyLlm is an Llm with the URL of the attempt. */
export type AgentResources = Readonly<Record<string, Resource>>;

/** Result of a function: the reward, or nothing. */
// "void" admits functions without a return statement.
// eslint-disable-next-line @typescript-eslint/no-invalid-void-type
export type Reward = number | null | undefined | void;

/**
 * Works on one rollout. The arguments are its input (parsed JSON; integers beyond 2^53 are bigints), its
 * resources, a tracer for spans of the attempt, and a RunContext. Returns nothing, or a number: the reward.
 */
export type Agent<Input = unknown> = (
  input: Input,
  resources: AgentResources,
  tracer: Tracer,
  context: RunContext,
) => Reward | Promise<Reward>;

interface Outcome {
  readonly status: AttemptStatus;
  readonly failure?: Failure;
  /** What the function returned, if that is a number. */
  readonly reward?: number;
}

/** Works on the claims of a runner. */
export class Work {
  readonly #store: LightningStore;
  readonly #agent: Agent;
  readonly #exporter: SpanExporter;
  readonly #outageMs: number;
  /** Publish number of the resources that the function was called with last. Undefined: none. */
  publishNumber: bigint | undefined;
  readonly #resources = new Map<string, Resources>();
  /** Whether the server has rejected the field of the reward, as those of earlier versions do. */
  #isWithoutRewards = false;
  /** Aborted when the runner no longer waits for a server that is down. */
  readonly #hurried = new AbortController();
  /** Aborted when the runner no longer waits for functions. */
  readonly #abandoned = new AbortController();

  /** `outageMs` is the maximum time in milliseconds to retry while the server is down. */
  constructor(store: LightningStore, agent: Agent, exporter: SpanExporter, outageMs: number) {
    this.#store = store;
    this.#agent = agent;
    this.#exporter = exporter;
    this.#outageMs = outageMs;
    // Each attempt adds a listener; Node.js would report more than ten as a leak.
    setMaxListeners(0, this.#hurried.signal, this.#abandoned.signal);
  }

  /** Stops waiting for a server that is down. */
  hurry(): void {
    this.#hurried.abort();
  }

  /** Stops waiting for functions that do not return. */
  abandon(): void {
    this.#abandoned.abort();
  }

  /** Works on a claim, from its resources to its report. `onReturn` is called before the report. */
  async do(context: RunContext, onReturn: () => void): Promise<void> {
    const outcome = await this.#outcome(context);
    onReturn();
    try {
      // The outcome must not be stored before the spans.
      await this.#patiently(() => this.#exporter.forceFlush(1_000));
    } catch (error) {
      warn("reporting before all spans are stored", error);
    }
    try {
      await this.#report(context, outcome);
    } catch (error) {
      warn(`attempt ${context.attemptId} of rollout ${context.rolloutId} not reported`, error);
    }
  }

  async #outcome(context: RunContext): Promise<Outcome> {
    let error: unknown;
    try {
      const tracer = attemptTracer(context, this.#exporter);
      await this.#fill(context.rollout);
      const resources = await this.#getResources(context);
      const before = cancelledOutcome(context);
      if (before) return before;
      const reward = await this.#call(context, resources, tracer);
      const after = cancelledOutcome(context);
      if (after) return after; // its outcome no longer counts
      if (reward === undefined || reward === null) return { status: AttemptStatus.SUCCEEDED };
      emitReward(asReward(reward), tracer);
      return { status: AttemptStatus.SUCCEEDED, reward: asReward(reward) };
    } catch (thrown) {
      error = thrown;
    }
    const stopped = cancelledOutcome(context);
    if (stopped) return stopped;
    const failure = failureOf(error);
    warn(`attempt ${context.attemptId} of rollout ${context.rolloutId} failed`, error);
    return { status: AttemptStatus.FAILED, failure };
  }

  /** Runs the function; rejects if it is abandoned. */
  async #call(context: RunContext, resources: AgentResources, tracer: Tracer): Promise<unknown> {
    const { signal } = this.#abandoned;
    // If the runner was started with tracing suppressed, no span of the attempt would be recorded.
    const recording = unsuppressTracing(otel.active());
    const result = currentAttempt.run({ context, tracer }, async () =>
      otel.with(recording, () =>
        this.#agent(decodeJson(context.rollout.inputJson), resources, tracer, context),
      ),
    );
    let leave: () => void = () => undefined;
    const left = new Promise<never>((_resolve, reject) => {
      leave = () => {
        warn(`attempt ${context.attemptId} did not return after its cancellation; abandoned`);
        reject(new AttemptCancelled(undefined));
      };
      signal.addEventListener("abort", leave, { once: true });
    });
    try {
      return await Promise.race([result, left]);
    } finally {
      signal.removeEventListener("abort", leave);
    }
  }

  /** Loads the payloads of a claim that were omitted from its response, as in repeated responses. */
  async #fill(rollout: Rollout): Promise<void> {
    if (!rollout.payloadsOmitted) return;
    const whole = await this.#patiently(() =>
      this.#store.getRollout(rollout.rolloutId, { timeoutMs: TRY_MS }),
    );
    rollout.inputJson = whole.inputJson;
    rollout.metadataJson = whole.metadataJson;
    rollout.payloadsOmitted = false;
  }

  async #getResources(context: RunContext): Promise<AgentResources> {
    const { resourcesId, resourcesVersion } = context.attempt;
    if (!resourcesId) return {};
    const key = (id: string, version: number): string => `${version} ${id}`;
    let found = this.#resources.get(key(resourcesId, resourcesVersion));
    if (!found) {
      found = await this.#patiently(() =>
        this.#store.getResources(resourcesId, { version: resourcesVersion, timeoutMs: TRY_MS }),
      );
      // Servers without kept versions return the current one.
      this.#resources.set(key(resourcesId, found.version), found);
      const oldest = this.#resources.keys().next().value;
      if (this.#resources.size > KEPT_RESOURCES && oldest) this.#resources.delete(oldest);
    }
    this.publishNumber = found.publishNumber || undefined;
    const { rolloutId, attemptId } = context;
    return Object.fromEntries(
      Object.entries(found.resources).map(([name, resource]) => [
        name,
        resource.kind === "proxyLlm" ? routed(resource, rolloutId, attemptId) : resource,
      ]),
    );
  }

  async #report(context: RunContext, outcome: Outcome): Promise<void> {
    const { cancellation } = context;
    const final = cancelledOutcome(context) ?? outcome;
    if (cancellation && !(await this.#isLive(context, cancellation))) return;
    const { rolloutId, attemptId } = context;
    let answer: UpdateAttemptResponse;
    try {
      answer = await this.#updateWithReward(context, final);
    } catch (error) {
      const refusal = toStoreError(error);
      if (!isRefusal(refusal)) throw refusal;
      // Without a report the attempt would stay live.
      warn(`report of attempt ${attemptId} rejected, reporting a minimal failure instead`, refusal);
      const plain = refusedFailure(refusal, final.failure);
      answer = await this.#update(context, { status: AttemptStatus.FAILED, failure: plain });
    }
    if (answer.missingSpanCount) {
      warn(
        `attempt ${attemptId} of ${rolloutId} has ${String(answer.missingSpanCount)} missing span(s)`,
      );
    }
  }

  /** Reports an outcome; without its reward, which is in a span too, if the server does not know that field. */
  async #updateWithReward(context: RunContext, outcome: Outcome): Promise<UpdateAttemptResponse> {
    const { reward, ...plain } = outcome;
    if (reward === undefined || this.#isWithoutRewards) return this.#update(context, plain);
    try {
      return await this.#update(context, outcome);
    } catch (error) {
      const refusal = toStoreError(error);
      if (!isUnknownPath(refusal)) throw refusal;
      warn("the server knows no rewards in reports, so they are in spans only", refusal);
      this.#isWithoutRewards = true;
      return this.#update(context, plain);
    }
  }

  #update(context: RunContext, outcome: Outcome): Promise<UpdateAttemptResponse> {
    const { status, failure, reward } = outcome;
    const { rolloutId, attemptId } = context;
    const attempt = create(AttemptSchema, { rolloutId, attemptId, status });
    const paths = ["status"];
    if (failure) {
      attempt.failure = failure;
      paths.push("failure");
    }
    if (reward !== undefined) {
      attempt.reward = reward;
      paths.push("reward");
    }
    const request = {
      attempt,
      updateMask: create(FieldMaskSchema, { paths }),
      sentSpanCount: BigInt(this.#exporter.sentCount(rolloutId, attemptId)),
      requestId: randomUUID(),
    };
    return this.#patiently(() => this.#store.rpc.updateAttempt(request, { timeoutMs: TRY_MS }));
  }

  /** Returns whether a cancelled attempt must still be ended. An expiry set by the watchdog is kept. */
  async #isLive(context: RunContext, cancellation: AttemptCancelled): Promise<boolean> {
    if (cancellation.stopReason === StopReason.UNKNOWN_ATTEMPT) return false;
    const { rolloutId, attemptId } = context;
    const { attempt } = await this.#patiently(() =>
      this.#store.rpc.getAttempt({ rolloutId, attemptId }, { timeoutMs: TRY_MS }),
    );
    const status = attempt?.status;
    return status === AttemptStatus.PREPARING || status === AttemptStatus.RUNNING;
  }

  /** Repeats a call while the server is down. */
  async #patiently<T>(ask: () => Promise<T>): Promise<T> {
    const until = performance.now() + this.#outageMs;
    const backoff = new Backoff(50, 1_000);
    for (;;) {
      try {
        return await ask();
      } catch (error) {
        const failure = toStoreError(error);
        const isOver = this.#hurried.signal.aborted || performance.now() >= until;
        if (!failure.isTemporary || isOver) throw failure;
        await pause(backoff.next(failure.retryDelayMs), this.#hurried.signal);
      }
    }
  }
}

/** Returns the outcome to report for an attempt that must stop; undefined if it need not. */
function cancelledOutcome({ cancellation }: RunContext): Outcome | undefined {
  if (!cancellation) return undefined;
  const failure = create(FailureSchema, { type: "Cancelled", message: cancellation.message });
  return { status: AttemptStatus.FAILED, failure };
}

function asReward(value: unknown): number {
  if (typeof value === "number") return value;
  throw new TypeError(`the reward must be a number or nothing, not ${typeof value}`);
}
