// All namespaces at a glance, and what needs attention.
import { storeOf } from "../api/client.js";
import { useLive } from "../api/live.js";
import { listNamespaces } from "../api/namespaces.js";
import { bytes, count, measure } from "../format.js";
import type { Namespace } from "../gen/lightningstore/v1/namespace_pb.js";
import {
  SeriesAxis,
  SeriesMeasure,
  type SeriesBucket,
} from "../gen/lightningstore/v1/series_pb.js";
import type { GetStatisticsResponse } from "../gen/lightningstore/v1/statistics_pb.js";
import { WorkerStatus } from "../gen/lightningstore/v1/worker_pb.js";
import { server, statistics } from "../api/pulse.js";
import { Action } from "../parts/action.js";
import { Command, Empty, ErrorNote, Loading, Page } from "../parts/basics.js";
import { enqueue, inNamespace } from "../parts/commands.js";
import { Sparkline } from "../parts/chart.js";
import { Table, type Column } from "../parts/table.js";
import { href, namespace } from "../router.js";
import { attentionOf, type Attention } from "./attention.js";

const SHOWN = 20;
const SPARK_FINISHES = 1000n;
const SPARK_BUCKETS = 40;
/** Rewards and consumers cost more than counters, which follow each change by themselves. */
const REWARDS_PAUSE_MS = 2_000;

interface Row {
  readonly name: string;
  readonly counters: GetStatisticsResponse;
  readonly rewards: readonly SeriesBucket[];
  readonly attention: readonly Attention[];
}

/** Returns the counters of a namespace. Those of the shown one are there already: they are what tells of changes. */
async function countersOf(name: string, signal: AbortSignal): Promise<GetStatisticsResponse> {
  const known = name === namespace.peek() ? statistics.peek() : undefined;
  return known ?? (await storeOf(name).getStatistics({}, { signal }));
}

async function loadRow(
  name: string,
  settings: Namespace | undefined,
  signal: AbortSignal,
): Promise<Row> {
  const store = storeOf(name);
  const counters = await countersOf(name, signal);
  const last = counters.lastCompletionNumber;
  const [rewards, consumers] = await Promise.all([
    store.getSeries(
      {
        measure: SeriesMeasure.REWARD,
        axis: SeriesAxis.COMPLETION_NUMBER,
        bucketCount: SPARK_BUCKETS,
        firstNumber: last > SPARK_FINISHES ? last - SPARK_FINISHES + 1n : 1n,
      },
      { signal },
    ),
    store.listConsumers({}, { signal }),
  ]);
  return {
    name,
    counters,
    rewards: rewards.buckets,
    attention: await attentionOf(store, settings, counters, consumers.consumers, signal),
  };
}

/** Loads the namespaces that the token may list, else the one that is shown. */
async function loadOverview(signal: AbortSignal): Promise<{ rows: Row[]; more: boolean }> {
  const listed = await listNamespaces(SHOWN, signal);
  const settings = listed?.namespaces ?? [];
  const names = listed ? settings.map(({ name }) => name) : [namespace.value];
  if (!names.includes(namespace.value)) names.unshift(namespace.value);
  const rows = await Promise.all(
    names.map((name) =>
      loadRow(
        name,
        settings.find((entry) => entry.name === name),
        signal,
      ),
    ),
  );
  return { rows, more: listed?.more ?? false };
}

async function loadCounters(
  names: readonly string[],
  signal: AbortSignal,
): Promise<ReadonlyMap<string, GetStatisticsResponse>> {
  const counters = await Promise.all(names.map((name) => countersOf(name, signal)));
  return new Map(names.map((name, i) => [name, counters[i] as GetStatisticsResponse]));
}

const COLUMNS: readonly Column<Row>[] = [
  {
    title: "Namespace",
    cell: ({ name }) => <a href={href("rollouts", "", { namespace: name })}>{name}</a>,
  },
  { title: "Queue", number: true, cell: ({ counters }) => count(counters.queueDepth) },
  { title: "Running", number: true, cell: ({ counters }) => count(counters.runningAttemptCount) },
  {
    title: "Finished a minute",
    number: true,
    cell: ({ counters }) => count(counters.finishedLastMinuteCount),
  },
  {
    title: "Finished",
    number: true,
    wide: true,
    cell: ({ counters }) => count(counters.lastCompletionNumber),
  },
  { title: "Reward", cell: (row) => <Reward row={row} /> },
  { title: "Workers", cell: ({ counters }) => workersText(counters) },
  {
    title: "Spans",
    number: true,
    wide: true,
    cell: ({ counters }) => `${count(counters.spanCount)} (${bytes(counters.spanBytes)})`,
  },
  {
    title: "File",
    number: true,
    wide: true,
    cell: ({ counters }) => (counters.fileBytes ? bytes(counters.fileBytes) : ""),
  },
];

function Reward({ row: { name, rewards } }: { row: Row }) {
  const last = rewards.at(-1);
  if (!last) return null;
  const means = rewards.map(({ mean }) => mean);
  return (
    <a class="reward" href={href("training", "", { namespace: name })}>
      <Sparkline values={means} label={`Rewards of ${name}, the latest ${measure(last.mean)}`} />
      <span>{measure(last.mean)}</span>
    </a>
  );
}

function workersText({ workers }: GetStatisticsResponse): string {
  const of = (status: WorkerStatus) =>
    workers.find((entry) => entry.status === status)?.count ?? 0n;
  const parts = [
    of(WorkerStatus.BUSY) && `${count(of(WorkerStatus.BUSY))} busy`,
    of(WorkerStatus.IDLE) && `${count(of(WorkerStatus.IDLE))} idle`,
    of(WorkerStatus.UNKNOWN) && `${count(of(WorkerStatus.UNKNOWN))} unknown`,
  ];
  return parts.filter(Boolean).join(", ") || "none";
}

export function Overview() {
  const { data, error, reload } = useLive("", (_, signal) => loadOverview(signal), {
    everyMs: 2_000,
    pauseMs: REWARDS_PAUSE_MS,
  });
  const names = data?.rows.map(({ name }) => name) ?? [];
  const { data: counters } = useLive(names.join(), (_, signal) => loadCounters(names, signal), {
    everyMs: 2_000,
  });
  const rows =
    data?.rows.map((row) => ({ ...row, counters: counters?.get(row.name) ?? row.counters })) ?? [];
  return (
    <Page title="Overview">
      <ErrorNote error={error} />
      {!data && !error && <Loading />}
      {data && (
        <>
          <AttentionList rows={rows} reload={reload} />
          <h2>Namespaces</h2>
          <Table label="Namespaces" columns={COLUMNS} rows={rows} keyOf={({ name }) => name} />
          {data.more && (
            <p class="quiet">
              The first {SHOWN} namespaces by name. The switch above opens any other.
            </p>
          )}
          {rows.every(({ counters }) => !counters.rollouts.length) && (
            <Empty command={enqueue()}>Nothing has been enqueued yet. This adds a rollout:</Empty>
          )}
        </>
      )}
      <ServerNote />
    </Page>
  );
}

function AttentionList({ rows, reload }: { rows: readonly Row[]; reload: () => void }) {
  const all = rows.flatMap(({ name, attention }) => attention.map((item) => ({ name, item })));
  return (
    <section aria-label="Needs attention">
      <h2>Needs attention</h2>
      {!all.length && <p class="quiet">Nothing needs attention.</p>}
      <ul class="attention">
        {all.map(({ name, item }) => (
          <li key={`${name} ${item.text}`} class="note">
            {rows.length > 1 && <b>{name}: </b>}
            {item.text}
            {item.page && (
              <>
                {" "}
                <a href={href(item.page[0], "", { ...item.page[1], namespace: name })}>Show</a>
              </>
            )}
            {item.command && <Command text={inNamespace(item.command, name)} />}
            {item.paused && (
              <Action
                label="Resume claims"
                question={`Workers get rollouts of ${name} again.`}
                run={(requestId) => storeOf(name).resumeClaims({ requestId })}
                done={reload}
              />
            )}
          </li>
        ))}
      </ul>
    </section>
  );
}

function ServerNote() {
  const info = server.value;
  if (!info) return null;
  return (
    <p class="quiet">
      lightningstore {info.version}, {info.backend}
      {info.owner && `, served by ${info.owner}`}
    </p>
  );
}
