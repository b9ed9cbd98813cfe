// The series of the training page, of one namespace.
import { timestampFromMs, type Timestamp } from "@bufbuild/protobuf/wkt";
import type { Store } from "../api/client.js";
import { toMs } from "../format.js";
import { type Group } from "../gen/lightningstore/v1/group_pb.js";
import { RolloutMode, RolloutStatus } from "../gen/lightningstore/v1/rollout_pb.js";
import {
  SeriesAxis,
  SeriesMeasure,
  type SeriesBucket,
} from "../gen/lightningstore/v1/series_pb.js";
import type { GetStatisticsResponse } from "../gen/lightningstore/v1/statistics_pb.js";
import type { Point } from "../parts/chart.js";

export type Axis = "publish" | "time" | "finish";

export interface Choice {
  readonly axis: Axis;
  /** How much is looked at: "all", a number of minutes with the axis "time", or "": as much as is quick. */
  readonly range: string;
  readonly mode: RolloutMode | undefined;
}

const AXES = {
  publish: SeriesAxis.PUBLISH_NUMBER,
  time: SeriesAxis.COMPLETION_TIME,
  finish: SeriesAxis.COMPLETION_NUMBER,
} as const;

const BUCKETS = 100;
/** A store with more finished rollouts than this is not read as a whole, unless it is chosen. */
const QUICK_FINISHES = 20_000n;
/** What is read of it: the last finishes, publish numbers and minutes. */
const LAST_FINISHES = 10_000n;
const LAST_PUBLISHED = 100n;
const LAST_MINUTES = 60;
/** Groups that are looked at, the last ones, and the parts that they are divided into, at most. */
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
  const range = rangeOf(choice, await store.getStatistics({}, { signal }));
  const request = {
    axis: AXES[choice.axis],
    bucketCount: BUCKETS,
    modes: choice.mode === undefined ? [] : [choice.mode],
    ...range,
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
    equalGroups: equalShares(groups, choice.axis, range.startTime),
  };
}

interface Range {
  readonly startTime?: Timestamp;
  readonly firstNumber?: bigint;
}

/** Returns where the series begin. */
function rangeOf({ axis, range }: Choice, counters: GetStatisticsResponse): Range {
  const { lastCompletionNumber: finished, latestPublishNumber: published } = counters;
  const isLarge = finished > QUICK_FINISHES;
  if (range === "all" || (!range && !isLarge)) return {};
  if (axis === "time") {
    const minutes = Number(range) || LAST_MINUTES;
    return { startTime: timestampFromMs(Date.now() - minutes * 60_000) };
  }
  if (axis === "finish") return { firstNumber: finished - LAST_FINISHES + 1n };
  return published > LAST_PUBLISHED ? { firstNumber: published - LAST_PUBLISHED + 1n } : {};
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
  const whole =
    axis === "time"
      ? {
          ...(first.startTime ? { startTime: first.startTime } : {}),
          ...(last.endTime ? { endTime: last.endTime } : {}),
        }
      : { firstNumber: first.firstNumber, lastNumber: last.lastNumber };
  const both = { ...request, ...whole, measure: SeriesMeasure.ATTEMPTS };
  const [ended, succeeded] = await Promise.all([
    store.getSeries(both, { signal }),
    store.getSeries({ ...both, statuses: [RolloutStatus.SUCCEEDED] }, { signal }),
  ]);
  const counts = new Map(succeeded.buckets.map(({ index, count }) => [index, Number(count)]));
  return ended.buckets.map((bucket) => ({
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
function equalShares(groups: readonly Group[], axis: Axis, from: Timestamp | undefined): Point[] {
  const earliest = from ? toMs(from) : 0;
  const rewarded = groups.filter(
    ({ rewards, endTime }) => rewards && rewards.count > 1 && endTime && toMs(endTime) >= earliest,
  );
  const placed = rewarded.map((group) => ({ group, x: groupPlace(group, axis) }));
  placed.sort((one, other) => one.x - other.x);
  const size = Math.max(1, Math.ceil(placed.length / GROUP_BUCKETS));
  const shares: Point[] = [];
  let [number, equal] = [0, 0];
  placed.forEach(({ group: { rewards }, x }, at) => {
    number += 1;
    if (rewards?.min === rewards?.max) equal += 1;
    // Groups at one place, for example of one publish number, belong together.
    const next = placed[at + 1]?.x;
    if (next === x || (number < size && next !== undefined)) return;
    shares.push({ x, y: equal / number });
    [number, equal] = [0, 0];
  });
  return shares;
}

function groupPlace(group: Group, axis: Axis): number {
  if (axis === "publish") return Number(group.maxPublishNumber);
  if (axis === "finish") return Number(group.completionNumber);
  return group.endTime ? toMs(group.endTime) / 1000 : 0;
}
