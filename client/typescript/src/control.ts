/** What an algorithm says about groups, attempts and series. */

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { FieldMaskSchema, timestampFromDate } from "@bufbuild/protobuf/wkt";

import {
  AttemptSchema,
  AttemptStatus,
  FailureSchema,
  type UpdateAttemptRequestSchema,
} from "./gen/lightningstore/v1/attempt_pb.js";
import { GroupStatus } from "./gen/lightningstore/v1/group_pb.js";
import {
  GroupDeadlineAction,
  GroupSpecSchema,
  type GroupSpec as GroupMessage,
} from "./gen/lightningstore/v1/rollout_pb.js";
import {
  SeriesAxis,
  SeriesMeasure,
  type GetSeriesRequestSchema,
} from "./gen/lightningstore/v1/series_pb.js";
import { toFilters, type RolloutFilters } from "./lists.js";
import { toDuration } from "./rollouts.js";

/** A group to create: the rollouts with its id complete together. */
export interface GroupSpec {
  readonly groupId: string;
  /** Maximum number of members, and the number that must finish. */
  readonly size: number;
  /** Milliseconds after the first claim of a member at which the group closes. Default: none. */
  readonly deadlineMs?: number;
  /** What happens then to members that have not finished. Default: "cancel-rest". */
  readonly onDeadline?: "cancel-rest" | "keep-waiting";
}

/** The fields of an attempt that can be changed. Absent ones stay as they are. */
export interface AttemptChanges {
  readonly status?: "running" | "succeeded" | "failed" | "timeout" | "unresponsive";
  /** Why it failed; null clears it. */
  readonly failure?: {
    readonly type?: string;
    readonly message?: string;
    readonly retryable?: boolean;
  } | null;
  /** A finite number. Null removes the reported reward; it is then that of the spans, if they have one. */
  readonly reward?: number | null;
  /** Finite numbers by name; null removes a score. Other scores stay. */
  readonly scores?: Readonly<Record<string, number | null>>;
}

/** Which series of finished rollouts to compute. */
export interface SeriesQuery extends RolloutFilters {
  /** What is measured. Durations are in seconds. */
  readonly measure: "reward" | "score" | "duration" | "queue-time" | "attempts";
  /** Name of the score, if the measure is "score". */
  readonly scoreName?: string;
  /** What the buckets divide. Default "completion-number". */
  readonly axis?: "completion-number" | "completion-time";
  /** Number of buckets, from 1 to 500. Default 100. */
  readonly bucketCount?: number;
  /** Start of the range of completion times. Default: the first. */
  readonly startTime?: Date;
  /** End of the range of completion times, which is not part of it. Default: after the last. */
  readonly endTime?: Date;
  /** First number of the range. Default: the first. */
  readonly firstNumber?: bigint | number;
  /** Last number of the range. Default: the last. */
  readonly lastNumber?: bigint | number;
}

const STATUSES = {
  running: AttemptStatus.RUNNING,
  succeeded: AttemptStatus.SUCCEEDED,
  failed: AttemptStatus.FAILED,
  timeout: AttemptStatus.TIMEOUT,
  unresponsive: AttemptStatus.UNRESPONSIVE,
} as const;

const ACTIONS = {
  "cancel-rest": GroupDeadlineAction.CANCEL_REST,
  "keep-waiting": GroupDeadlineAction.KEEP_WAITING,
} as const;

const GROUP_STATUSES = { open: GroupStatus.OPEN, complete: GroupStatus.COMPLETE } as const;

const MEASURES = {
  reward: SeriesMeasure.REWARD,
  score: SeriesMeasure.SCORE,
  duration: SeriesMeasure.DURATION,
  "queue-time": SeriesMeasure.QUEUE_TIME,
  attempts: SeriesMeasure.ATTEMPTS,
} as const;

const AXES = {
  "completion-number": SeriesAxis.COMPLETION_NUMBER,
  "completion-time": SeriesAxis.COMPLETION_TIME,
} as const;

/** Returns a group to create as a message of the contract. */
export function toGroup(spec: GroupSpec): GroupMessage {
  const { groupId, size, deadlineMs, onDeadline } = spec;
  const message = create(GroupSpecSchema, { groupId, size });
  if (deadlineMs !== undefined) message.deadline = toDuration(deadlineMs);
  if (onDeadline) message.onDeadline = ACTIONS[onDeadline];
  return message;
}

/** Returns the contract's numbers of statuses of groups. */
export function toGroupStatuses(words: readonly (keyof typeof GROUP_STATUSES)[]): GroupStatus[] {
  return words.map((word) => GROUP_STATUSES[word]);
}

/** Returns the attempt and the mask of an update. */
export function toUpdate(rolloutId: string, attemptId: string, changes: AttemptChanges) {
  const { status, failure, reward, scores = {} } = changes;
  const attempt = create(AttemptSchema, { rolloutId, attemptId });
  const paths: string[] = [];
  if (status) {
    attempt.status = STATUSES[status];
    paths.push("status");
  }
  if (failure !== undefined) {
    if (failure) attempt.failure = create(FailureSchema, failure);
    paths.push("failure");
  }
  if (reward !== undefined) {
    if (reward !== null) attempt.reward = reward;
    paths.push("reward");
  }
  for (const [name, value] of Object.entries(scores)) {
    if (value !== null) attempt.scores[name] = value;
    paths.push(`scores.${name}`);
  }
  // Without a mask the server changes the fields that have a value: none.
  const updateMask = paths.length > 0 && { updateMask: create(FieldMaskSchema, { paths }) };
  return { attempt, ...updateMask } satisfies MessageInitShape<typeof UpdateAttemptRequestSchema>;
}

/** Returns the request of a series. */
export function toSeries(query: SeriesQuery) {
  const { measure, axis = "completion-number", startTime, endTime } = query;
  return {
    ...toFilters(query),
    measure: MEASURES[measure],
    scoreName: query.scoreName ?? "",
    axis: AXES[axis],
    bucketCount: query.bucketCount ?? 100,
    ...(startTime && { startTime: timestampFromDate(startTime) }),
    ...(endTime && { endTime: timestampFromDate(endTime) }),
    firstNumber: BigInt(query.firstNumber ?? 0),
    lastNumber: BigInt(query.lastNumber ?? 0),
  } satisfies MessageInitShape<typeof GetSeriesRequestSchema>;
}
