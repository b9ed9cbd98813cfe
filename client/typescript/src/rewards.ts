/** Rewards of attempts, as spans. */

import { context, TraceFlags, type Attributes, type Tracer } from "@opentelemetry/api";
import { unsuppressTracing } from "@opentelemetry/core";

import { currentAttempt } from "./context.js";

/** Name of spans that hold a reward. */
export const ANNOTATION = "agentlightning.annotation";
const REWARD = "agentlightning.reward";

const VALUE = /^agentlightning\.reward\.(\d{1,9})\.value$/;

/** Returns whether an attribute is a reward, which is stored as a double even if it is a whole number. */
export function isRewardValue(key: string): boolean {
  return VALUE.test(key);
}

/**
 * Records a reward of the attempt: a number, or several by the names of their dimensions, of which the first
 * is the primary one.
 *
 * @param tracer Default: the tracer of the attempt whose function is running.
 * @throws TypeError for a value that is not a number.
 * @throws RangeError for a number that is not finite, and for a reward without dimensions.
 * @throws Error outside of a function without a tracer, and if the tracer does not record the span.
 */
export function emitReward(
  reward: number | Readonly<Record<string, number>>,
  tracer?: Tracer,
): void {
  const target = tracer ?? currentAttempt.getStore()?.tracer;
  if (!target) throw new Error("no attempt is running here: pass a tracer");
  const dimensions = Object.entries(typeof reward === "number" ? { primary: reward } : reward);
  if (dimensions.length === 0) throw new RangeError("a reward needs at least one dimension");
  const attributes: Attributes = {};
  dimensions.forEach(([name, value], index) => {
    if (typeof value !== "number") throw new TypeError(`reward "${name}": must be a number`);
    if (!Number.isFinite(value)) {
      throw new RangeError(`reward "${name}": must be a finite number, not ${value}`);
    }
    attributes[`${REWARD}.${index}.name`] = name;
    attributes[`${REWARD}.${index}.value`] = value;
  });
  const span = target.startSpan(ANNOTATION, { attributes }, unsuppressTracing(context.active()));
  const isRecorded =
    span.isRecording() && (span.spanContext().traceFlags & TraceFlags.SAMPLED) !== 0;
  span.end();
  if (!isRecorded) {
    throw new Error(
      "the reward is lost, because the tracer does not record: pass a tracer of a recording provider",
    );
  }
}

/** The fields of a span that determine its reward and position; a StoredSpan has them. */
export interface RewardSpan {
  readonly name?: string;
  readonly sequenceId?: bigint;
  readonly spanId?: string;
  readonly otlp?: { readonly startTimeUnixNano: bigint };
  readonly attributes: Readonly<Record<string, unknown>>;
}

/**
 * Returns the primary reward of the last span that has a reward, by sequence id; undefined if no span has
 * one. Without sequence ids, the order of the argument decides.
 */
export function findFinalReward(spans: Iterable<RewardSpan>): number | undefined {
  let last: RewardSpan | undefined;
  let final: number | undefined;
  for (const span of spans) {
    if (last && isBefore(span, last)) continue;
    const reward = spanReward(span);
    if (reward !== undefined) [last, final] = [span, reward];
  }
  return final;
}

function isBefore(span: RewardSpan, other: RewardSpan): boolean {
  const [a, b] = [span.sequenceId ?? 0n, other.sequenceId ?? 0n];
  if (a !== b) return a < b;
  const [c, d] = [span.otlp?.startTimeUnixNano ?? 0n, other.otlp?.startTimeUnixNano ?? 0n];
  return c === d ? (span.spanId ?? "") < (other.spanId ?? "") : c < d;
}

/** Returns the primary reward of a span, in any of the supported forms. */
function spanReward({ name, attributes }: RewardSpan): number | undefined {
  const indexes = Object.keys(attributes).flatMap((key) => VALUE.exec(key)?.[1] ?? []);
  if (indexes.length > 0) {
    const [first] = indexes.sort((a, b) => Number(a) - Number(b));
    return finite(attributes[`${REWARD}.${first}.value`]);
  }
  if (attributes[REWARD] !== undefined) return oneReward(attributes[REWARD]);
  for (const key of ["agentops.task.output", "agentops.entity.output"]) {
    const output = parsed(attributes[key]);
    if (member(output, "type") === "reward") return oneReward(member(output, "value"));
  }
  if (name === ANNOTATION || name === REWARD) return oneReward(attributes["reward"]);
  return undefined;
}

/** Parses a reward given as one value: a number, a list of named rewards, or the JSON text of either. */
function oneReward(given: unknown): number | undefined {
  const value = parsed(given);
  const first: unknown = Array.isArray(value) ? value[0] : value;
  return finite(typeof first === "object" ? member(first, "value") : first);
}

function finite(value: unknown): number | undefined {
  const number = typeof value === "bigint" ? Number(value) : value;
  return typeof number === "number" && Number.isFinite(number) ? number : undefined;
}

function member(value: unknown, name: string): unknown {
  return typeof value === "object" && value !== null ? (value as never)[name] : undefined;
}

/** Returns the parsed JSON of a text, undefined if the text is not JSON, and any other value unchanged. */
function parsed(value: unknown): unknown {
  if (typeof value !== "string") return value;
  try {
    return JSON.parse(value);
  } catch {
    return undefined;
  }
}
