// The series of the training page, of one namespace.
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { Store } from "../api/client.js";
import { toMs } from "../format.js";
import { type Group } from "../gen/lightningstore/v1/group_pb.js";
import { RolloutMode, RolloutStatus } from "../gen/lightningstore/v1/rollout_pb.js";
import {
  SeriesAxis,
  SeriesMeasure,
  type SeriesBucket,
} from "../gen/lightningstore/v1/series_pb.js";
import type { Point } from "../parts/chart.js";

export type Axis = "publish" | "time" | "finish";

export interface Choice {
  readonly axis: Axis;
  /** Only the last part of the time, in minutes. 0: all. With the axis "time". */
  readonly minutes: number;
  readonly mode: RolloutMode | undefined;
}

const AXES = {
  publish: SeriesAxis.PUBLISH_NUMBER,
  time: SeriesAxis.COMPLETION_TIME,
  finish: SeriesAxis.COMPLETION_NUMBER,
} as const;

const BUCKETS = 100;
/** Groups that are looked at, the last ones, and the parts that they are divided into. */
const GROUPS = 400n;
const GROUP_BUCKETS = 20;

export interface TrainingData {
  readonly reward: Point[];
  readonly duration: Point[];
  readonly queueTime: Point[];
  readonly lag: Point[];
  readonly success: Point[];
  readonly equalGroups: Point[];
}

/** Loads all series of a namespace. */
export async function loadTraining(
  store: Store,
  choice: Choice,
  signal: AbortSignal,
): Promise<TrainingData> {
  const request = {
    axis: AXES[choice.axis],
    bucketCount: BUCKETS,
    modes: choice.mode === undefined ? [] : [choice.mode],
    ...(choice.axis === "time" && choice.minutes
      ? { startTime: timestampFromMs(Date.now() - choice.minutes * 60_000) }
      : {}),
  };
  const series = async (measure: SeriesMeasure) =>
    (await store.getSeries({ ...request, measure }, { signal })).buckets;
  const [reward, duration, queueTime, lag, all, groups] = await Promise.all([
    series(SeriesMeasure.REWARD),
    series(SeriesMeasure.DURATION),
    series(SeriesMeasure.QUEUE_TIME),
    series(SeriesMeasure.LAG),
    series(SeriesMeasure.ATTEMPTS),
    lastGroups(store, signal),
  ]);
  return {
    reward: points(reward, choice.axis),
    duration: points(duration, choice.axis),
    queueTime: points(queueTime, choice.axis),
    lag: points(lag, choice.axis),
    success: await successes(store, request, all, choice.axis, signal),
    equalGroups: equalShares(groups, choice),
  };
}

function points(buckets: readonly SeriesBucket[], axis: Axis): Point[] {
  return buckets.map((bucket) => ({
    x: placeOf(bucket, axis),
    y: bucket.mean,
    low: bucket.p10,
    high: bucket.p90,
  }));
}

function placeOf(bucket: SeriesBucket, axis: Axis): number {
  if (axis !== "time") return Number(bucket.lastNumber);
  return bucket.endTime ? toMs(bucket.endTime) / 1000 : 0;
}

/** Returns the share of rollouts that succeeded, in the same buckets as `all`. */
async function successes(
  store: Store,
  request: object,
  all: readonly SeriesBucket[],
  axis: Axis,
  signal: AbortSignal,
): Promise<Point[]> {
  const [first, last] = [all[0], all.at(-1)];
  if (!first || !last) return [];
  const range =
    axis === "time"
      ? {
          ...(first.startTime ? { startTime: first.startTime } : {}),
          ...(last.endTime ? { endTime: last.endTime } : {}),
        }
      : { firstNumber: first.firstNumber, lastNumber: last.lastNumber };
  const both = { ...request, ...range, measure: SeriesMeasure.ATTEMPTS };
  const [whole, succeeded] = await Promise.all([
    store.getSeries(both, { signal }),
    store.getSeries({ ...both, statuses: [RolloutStatus.SUCCEEDED] }, { signal }),
  ]);
  const counts = new Map(succeeded.buckets.map(({ index, count }) => [index, Number(count)]));
  return whole.buckets.map((bucket) => ({
    x: placeOf(bucket, axis),
    y: (counts.get(bucket.index) ?? 0) / Number(bucket.count),
  }));
}

/** Returns the groups that were completed last, in that order. */
async function lastGroups(store: Store, signal: AbortSignal): Promise<Group[]> {
  let end = 0n;
  // The first message tells the position of the end.
  for await (const { throughCompletionNumber } of store.watchGroups({}, { signal })) {
    end = throughCompletionNumber;
    break;
  }
  if (!end) return [];
  const afterCompletionNumber = end > GROUPS ? end - GROUPS : 0n;
  const groups: Group[] = [];
  for await (const answer of store.watchGroups({ afterCompletionNumber }, { signal })) {
    groups.push(...answer.groups);
    if (answer.throughCompletionNumber >= end) break;
  }
  return groups;
}

/** Returns the share of groups whose rewards are all equal: they teach nothing where rewards are compared. */
function equalShares(groups: readonly Group[], { axis, minutes }: Choice): Point[] {
  const earliest = axis === "time" && minutes ? Date.now() - minutes * 60_000 : 0;
  const rewarded = groups.filter(
    ({ rewards, endTime }) => rewards && rewards.count > 1 && endTime && toMs(endTime) >= earliest,
  );
  const size = Math.max(1, Math.ceil(rewarded.length / GROUP_BUCKETS));
  const shares: Point[] = [];
  for (let at = 0; at < rewarded.length; at += size) {
    const part = rewarded.slice(at, at + size);
    const equal = part.filter(({ rewards }) => rewards?.min === rewards?.max).length;
    const last = part.at(-1);
    if (last) shares.push({ x: groupPlace(last, axis), y: equal / part.length });
  }
  // Of several at one place, for example of one publish number, the last one counts.
  return [...new Map(shares.map((point) => [point.x, point])).values()];
}

function groupPlace(group: Group, axis: Axis): number {
  if (axis === "publish") return Number(group.maxPublishNumber);
  if (axis === "finish") return Number(group.completionNumber);
  return group.endTime ? toMs(group.endTime) / 1000 : 0;
}
