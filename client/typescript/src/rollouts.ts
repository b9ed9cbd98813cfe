/** Rollouts as the algorithm's side writes them. */

import { create } from "@bufbuild/protobuf";
import type { Duration } from "@bufbuild/protobuf/wkt";
import { DurationSchema } from "@bufbuild/protobuf/wkt";

import { AttemptStatus } from "./gen/lightningstore/v1/attempt_pb.js";
import {
  RolloutConfigSchema,
  RolloutMode,
  RolloutSpecSchema,
  type RolloutConfig as ConfigMessage,
  type RolloutSpec as SpecMessage,
} from "./gen/lightningstore/v1/rollout_pb.js";
import { encodeJson } from "./json.js";

/** The ends of an attempt that can be retried. */
export type RetriedEnd = "failed" | "timeout" | "unresponsive";

/** When an attempt is given up, and whether the rollout is then tried again. */
export interface RolloutConfig {
  /** Longest time from an attempt's start to its end, in milliseconds. Absent: no limit. */
  readonly timeoutMs?: number;
  /** Longest silence of an attempt, in milliseconds. Absent: no limit. */
  readonly unresponsiveTimeoutMs?: number;
  /** Most attempts made by retrying. Default 1. */
  readonly maxAttempts?: number;
  /** The ends of an attempt that are retried. Default none. */
  readonly retryCondition?: readonly RetriedEnd[];
  /** How long a retry waits in the queue: initialDelayMs * factor^(n-1), at most maxDelayMs, give or take jitter. */
  readonly retryBackoff?: {
    readonly initialDelayMs?: number;
    /** Growth from one retry to the next, at least 1. Default 1. */
    readonly factor?: number;
    /** Default one hour. */
    readonly maxDelayMs?: number;
    /** Random share of the delay that is added or taken away, from 0 to 1. */
    readonly jitter?: number;
  };
}

/** A rollout to be made. */
export interface RolloutSpec {
  /** What the agent is to do: any JSON value, with bigints for integers beyond 2^53, or a RawJson. */
  readonly input: unknown;
  readonly mode?: "train" | "val" | "test";
  /** Higher is claimed first. Default 0. */
  readonly priority?: number;
  /** Names the rollouts that belong together. */
  readonly groupId?: string;
  /** The resources that the agent works with. Absent: the latest there are. */
  readonly resourcesId?: string;
  readonly config?: RolloutConfig;
  /** A JSON object of your own. */
  readonly metadata?: object;
  /** Absent: the server makes one. */
  readonly rolloutId?: string;
}

const MODES = { train: RolloutMode.TRAIN, val: RolloutMode.VAL, test: RolloutMode.TEST } as const;

const ENDS = {
  failed: AttemptStatus.FAILED,
  timeout: AttemptStatus.TIMEOUT,
  unresponsive: AttemptStatus.UNRESPONSIVE,
} as const;

/** Returns a mode as number of the contract; undefined: that of rollouts without one. */
export function toMode(mode: keyof typeof MODES | undefined): RolloutMode {
  return mode === undefined ? RolloutMode.UNSPECIFIED : MODES[mode];
}

/** Returns milliseconds as Duration, to the nanosecond. */
export function toDuration(ms: number): Duration {
  const whole = Math.trunc(ms / 1000);
  const nanos = Math.round((ms - whole * 1000) * 1e6);
  return create(DurationSchema, { seconds: BigInt(whole), nanos });
}

/** Returns a Duration in milliseconds. */
export function fromDuration(duration: Duration): number {
  return Number(duration.seconds) * 1000 + duration.nanos / 1e6;
}

/** Returns a config as message of the contract. */
export function toConfig(config: RolloutConfig): ConfigMessage {
  const message = create(RolloutConfigSchema, {
    maxAttempts: config.maxAttempts ?? 0,
    retryCondition: (config.retryCondition ?? []).map((end) => ENDS[end]),
  });
  if (config.timeoutMs !== undefined) message.timeout = toDuration(config.timeoutMs);
  if (config.unresponsiveTimeoutMs !== undefined) {
    message.unresponsiveTimeout = toDuration(config.unresponsiveTimeoutMs);
  }
  const backoff = config.retryBackoff;
  if (backoff) {
    message.retryBackoff = {
      $typeName: "lightningstore.v1.RetryBackoff",
      factor: backoff.factor ?? 0,
      jitter: backoff.jitter ?? 0,
      ...(backoff.initialDelayMs === undefined
        ? {}
        : { initialDelay: toDuration(backoff.initialDelayMs) }),
      ...(backoff.maxDelayMs === undefined ? {} : { maxDelay: toDuration(backoff.maxDelayMs) }),
    };
  }
  return message;
}

/**
 * Returns a rollout to be made as message of the contract, at its place in a request. Throws a TypeError for what
 * is no JSON.
 */
export function toSpec(spec: RolloutSpec, index: number): SpecMessage {
  const message = create(RolloutSpecSchema, {
    inputJson: encodeJson(spec.input, `rollouts[${index}].input`),
    mode: toMode(spec.mode),
    priority: spec.priority ?? 0,
    groupId: spec.groupId ?? "",
    resourcesId: spec.resourcesId ?? "",
    rolloutId: spec.rolloutId ?? "",
  });
  if (spec.metadata)
    message.metadataJson = encodeJson(spec.metadata, `rollouts[${index}].metadata`);
  if (spec.config) message.config = toConfig(spec.config);
  return message;
}
