// The list of rollouts: filters, order and page are in the link.
import { useLive } from "../api/live.js";
import { now, measure, span, toMs, word } from "../format.js";
import { RolloutMode, RolloutStatus, type Rollout } from "../gen/lightningstore/v1/rollout_pb.js";
import { Age, Empty, ErrorNote, Loading, Page, Status } from "../parts/basics.js";
import { enqueue } from "../parts/commands.js";
import { Pages } from "../parts/pages.js";
import { Table, type Column } from "../parts/table.js";
import { href, route, setParams } from "../router.js";
import { visible } from "../rollout/text.js";
import { FilterForm, filtersOf, isFiltered } from "./rollout-filters.js";

const NEWEST = "start_time desc";
const PAGE_SIZE = 50;

const COLUMNS: readonly Column<Rollout>[] = [
  {
    title: "Rollout",
    field: "rollout_id",
    cell: ({ rolloutId }) => (
      <a class="id" href={href("rollout", rolloutId)}>
        {visible(rolloutId)}
      </a>
    ),
  },
  {
    title: "Status",
    field: "status",
    cell: ({ status }) => <Status name={word(RolloutStatus, status)} />,
  },
  {
    title: "Reward",
    field: "reward",
    number: true,
    cell: ({ latestAttempt }) => measure(latestAttempt?.reward),
  },
  { title: "Enqueued", field: "start_time", cell: ({ startTime }) => <Age time={startTime} /> },
  { title: "Run time", number: true, cell: (rollout) => <RunTime rollout={rollout} /> },
  { title: "Attempts", number: true, wide: true, cell: ({ attemptCount }) => attemptCount || "" },
  { title: "Mode", wide: true, cell: ({ mode }) => (mode ? word(RolloutMode, mode) : "") },
  { title: "Queue", wide: true, cell: ({ queue }) => queue },
  {
    title: "Group",
    wide: true,
    cell: ({ groupId }) =>
      groupId && (
        <a class="id" href={href("group", groupId)}>
          {visible(groupId)}
        </a>
      ),
  },
  {
    title: "Worker",
    wide: true,
    cell: ({ latestAttempt }) => visible(latestAttempt?.workerId ?? ""),
  },
  { title: "Failure", cell: ({ latestAttempt }) => <Failure text={failureText(latestAttempt)} /> },
];

function failureText(attempt: Rollout["latestAttempt"]): string {
  const failure = attempt?.failure;
  return visible([failure?.type, failure?.message].filter(Boolean).join(": "));
}

function Failure({ text }: { text: string }) {
  return (
    <span class="cut" title={text}>
      {text}
    </span>
  );
}

/** How long the latest attempt has been running, or ran. */
function RunTime({ rollout }: { rollout: Rollout }) {
  const { startTime, endTime } = rollout.latestAttempt ?? {};
  if (!startTime) return null;
  const end = endTime ? toMs(endTime) : now.value;
  return <>{span(Math.max(0, end - toMs(startTime)) / 1000)}</>;
}

export function Rollouts() {
  const { params } = route.value;
  const orderBy = params.get("sort") ?? NEWEST;
  const pageToken = params.get("page") ?? "";
  let filters: ReturnType<typeof filtersOf> | undefined;
  let problem: unknown;
  try {
    filters = filtersOf(params);
  } catch (error) {
    problem = error;
  }
  const { data, error, stale } = useLive(params.toString(), async (store, signal) => {
    if (!filters) return undefined;
    const page = { orderBy, pageToken, pageSize: PAGE_SIZE };
    return store.listRollouts({ ...filters, ...page, omitPayloads: true }, { signal });
  });
  const order = {
    by: orderBy,
    change: (by: string) => setParams({ sort: by === NEWEST ? "" : by, page: "" }),
  };
  return (
    <Page title="Rollouts">
      <FilterForm />
      <ErrorNote error={problem ?? error} />
      {!data && !problem && !error && <Loading />}
      {data && data.rollouts.length > 0 && (
        <Table
          label="Rollouts"
          columns={COLUMNS}
          rows={data.rollouts}
          keyOf={({ rolloutId }) => rolloutId}
          order={order}
          stale={stale}
        />
      )}
      {data?.rollouts.length === 0 &&
        !stale &&
        (isFiltered(params) ? (
          <Empty>No rollout matches these filters.</Empty>
        ) : (
          <Empty command={enqueue()}>There are no rollouts yet. This adds one to the queue:</Empty>
        ))}
      {data && <Pages next={data.nextPageToken} current={pageToken} stale={stale} />}
    </Page>
  );
}
