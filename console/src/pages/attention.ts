// What needs attention in a namespace, in words. Pure, except for the calls that the counters give a reason for.
import type { Store } from "../api/client.js";
import { bytes, count, percent, span, toMs } from "../format.js";
import { AttemptStatus } from "../gen/lightningstore/v1/attempt_pb.js";
import type { Consumer } from "../gen/lightningstore/v1/consumer_pb.js";
import type { Namespace } from "../gen/lightningstore/v1/namespace_pb.js";
import type { GetStatisticsResponse } from "../gen/lightningstore/v1/statistics_pb.js";

export interface Attention {
  readonly text: string;
  /** A command that changes it. */
  readonly command?: string;
  /** Whether claims are paused, which can be ended. */
  readonly paused?: boolean;
  /** The page that shows more, with its state. */
  readonly page?: readonly [page: string, state: Record<string, string>];
}

/** A worker that has not asked for work for this long does not claim. */
const IDLE_MS = 60_000;
/** Items that wait for longer than this show that a consumer falls behind. */
const BEHIND_MS = 60_000;
/** Share of expired attempts that is worth a look, and the number of attempts that it takes to say so. */
const EXPIRED_SHARE = 0.05;
const FULL_SHARE = 0.9;
/** A disk with less than this share free, and less than these bytes, is worth a word. */
const LOW_DISK_SHARE = 0.1;
const LOW_DISK_BYTES = 10 * 2 ** 30;

export async function attentionOf(
  store: Store,
  settings: Namespace | undefined,
  counters: GetStatisticsResponse,
  consumers: readonly Consumer[],
  signal: AbortSignal,
): Promise<Attention[]> {
  return [
    ...pauseOf(counters),
    ...(await unclaimed(store, counters, signal)),
    ...consumers.flatMap(consumerProblems),
    ...expirations(counters),
    ...space(counters, settings),
  ];
}

function pauseOf({ claimPause }: GetStatisticsResponse): Attention[] {
  if (!claimPause) return [];
  const since = claimPause.startTime ? ` for ${ago(toMs(claimPause.startTime))}` : "";
  const reason = claimPause.reason ? `: ${claimPause.reason}` : "";
  const text = `Claims have been paused${since}${reason}.`;
  return [{ text, command: "lightningstore resume", paused: true }];
}

async function unclaimed(
  store: Store,
  counters: GetStatisticsResponse,
  signal: AbortSignal,
): Promise<Attention[]> {
  const { queueDepth, runningAttemptCount, claimPause } = counters;
  if (!queueDepth || runningAttemptCount || claimPause) return [];
  const { workers } = await store.listWorkers(
    { orderBy: "last_dequeue_time desc", pageSize: 1 },
    { signal },
  );
  const last = workers[0]?.lastDequeueTime;
  if (last && Date.now() - toMs(last) < IDLE_MS) return [];
  const since = last
    ? `no worker has asked for work for ${ago(toMs(last))}`
    : "no worker has ever asked for work";
  return [
    {
      text: `${many(queueDepth, "rollout waits", "rollouts wait")}, and ${since}. Start a runner, or claim one by hand.`,
      command: "lightningstore claim --worker me",
      page: ["workers", {}],
    },
  ];
}

function consumerProblems(consumer: Consumer): Attention[] {
  const { name, oldestItemTime, backlogCount, setAsideCount } = consumer;
  const found: Attention[] = [];
  const page = ["consumers", {}] as const;
  if (oldestItemTime && backlogCount && Date.now() - toMs(oldestItemTime) > BEHIND_MS) {
    const items = `${many(backlogCount, "item waits", "items wait")}, the oldest for ${ago(toMs(oldestItemTime))}`;
    found.push({ text: `Consumer ${name} falls behind: ${items}.`, page });
  }
  if (consumer.maxOutstanding && consumer.outstandingCount >= consumer.maxOutstanding) {
    const limit = `${count(consumer.outstandingCount)} of ${count(consumer.maxOutstanding)} rollouts`;
    found.push({
      text: `Consumer ${name} holds back claims: ${limit} are outstanding until it acknowledges some.`,
      page,
    });
  }
  if (setAsideCount) {
    const items = `${many(setAsideCount, "item is", "items are")} set aside after too many deliveries`;
    found.push({ text: `Consumer ${name}: ${items}.`, page });
  }
  return found;
}

function expirations({ attempts }: GetStatisticsResponse): Attention[] {
  const of = (status: AttemptStatus) =>
    Number(attempts.find((entry) => entry.status === status)?.count ?? 0n);
  const [late, silent] = [of(AttemptStatus.TIMEOUT), of(AttemptStatus.UNRESPONSIVE)];
  const ended = late + silent + of(AttemptStatus.SUCCEEDED) + of(AttemptStatus.FAILED);
  if (late + silent < EXPIRED_SHARE * ended || late + silent === 0) return [];
  const parts = [
    late && `${count(late)} over their time limit`,
    silent && `${count(silent)} without a heartbeat`,
  ].filter(Boolean);
  const share = percent((late + silent) / ended);
  return [
    {
      text: `${share} of all attempts expired: ${parts.join(", ")}.`,
      page: ["rollouts", { status: "failed" }],
    },
  ];
}

function space(counters: GetStatisticsResponse, settings: Namespace | undefined): Attention[] {
  const found: Attention[] = [];
  if (counters.evictedSpanCount)
    found.push({
      text: `${count(counters.evictedSpanCount)} spans were evicted, because memory ran short.`,
    });
  const limit = settings?.maxBytes;
  if (limit && Number(counters.fileBytes) > FULL_SHARE * Number(limit))
    found.push({
      text: `The data file uses ${percent(Number(counters.fileBytes) / Number(limit))} of its limit. The oldest finished rollouts are removed.`,
    });
  const [free, disk] = [Number(counters.diskFreeBytes), Number(counters.diskBytes)];
  if (free < Math.min(LOW_DISK_SHARE * disk, LOW_DISK_BYTES))
    found.push({
      text: `Only ${bytes(free)} of ${bytes(disk)} are free on the disk of the data file. Writes fail once it is full.`,
    });
  const queueLimit = settings?.maxQueueLength;
  if (queueLimit && Number(counters.queueDepth) > FULL_SHARE * Number(queueLimit))
    found.push({
      text: `The queue holds ${count(counters.queueDepth)} of at most ${count(queueLimit)} rollouts.`,
    });
  return found;
}

const many = (number: bigint, one: string, more: string) =>
  `${count(number)} ${number === 1n ? one : more}`;

const ago = (ms: number) => span(Math.max(1, (Date.now() - ms) / 1000));
