// Who works, on what, and with which resources.
import { useLive } from "../api/live.js";
import { statistics } from "../api/pulse.js";
import { count, numberOf, word, words } from "../format.js";
import { WorkerStatus, type Worker } from "../gen/lightningstore/v1/worker_pb.js";
import { Age, Empty, ErrorNote, Loading, Page, Status } from "../parts/basics.js";
import { claim } from "../parts/commands.js";
import { Json } from "../parts/json.js";
import { Pages } from "../parts/pages.js";
import { Table, type Column } from "../parts/table.js";
import { href, route, setParams } from "../router.js";
import { visible } from "../rollout/text.js";
import { Field } from "./rollout-filters.js";

const BY_NAME = "worker_id asc";
const PAGE_SIZE = 100;

const COLUMNS: readonly Column<Worker>[] = [
  {
    title: "Worker",
    field: "worker_id",
    cell: ({ workerId }) => <span class="id">{visible(workerId)}</span>,
  },
  {
    title: "Status",
    field: "status",
    cell: ({ status }) => <Status name={word(WorkerStatus, status)} />,
  },
  {
    title: "Works on",
    cell: ({ currentRolloutId }) =>
      currentRolloutId && (
        <a class="id" href={href("rollout", currentRolloutId)}>
          {visible(currentRolloutId)}
        </a>
      ),
  },
  {
    title: "Last heartbeat",
    field: "last_heartbeat_time",
    cell: ({ lastHeartbeatTime }) => <Age time={lastHeartbeatTime} />,
  },
  {
    title: "Asked for work",
    field: "last_dequeue_time",
    cell: ({ lastDequeueTime }) => <Age time={lastDequeueTime} />,
  },
  {
    title: "Idle since",
    wide: true,
    cell: ({ status, lastIdleTime }) => status === WorkerStatus.IDLE && <Age time={lastIdleTime} />,
  },
  {
    title: "Publish number",
    field: "publish_number",
    number: true,
    cell: (worker) => <Loaded worker={worker} />,
  },
  { title: "Statistics", wide: true, cell: ({ statsJson }) => <Json bytes={statsJson} short /> },
];

/** The publish number that a worker has loaded, and how far it is behind the latest. */
function Loaded({ worker: { publishNumber } }: { worker: Worker }) {
  if (!publishNumber) return null;
  const behind = (statistics.value?.latestPublishNumber ?? 0n) - publishNumber;
  return (
    <>
      {count(publishNumber)}
      {behind > 0n && <span class="quiet"> ({count(behind)} behind)</span>}
    </>
  );
}

export function Workers() {
  const { params } = route.value;
  const orderBy = params.get("sort") ?? BY_NAME;
  const pageToken = params.get("page") ?? "";
  const chosen = params.get("status") ?? "";
  const status = numberOf(WorkerStatus, chosen);
  const contains = params.get("id") ?? "";
  const { data, error, stale } = useLive(
    params.toString(),
    (store, signal) =>
      store.listWorkers(
        {
          orderBy,
          pageToken,
          pageSize: PAGE_SIZE,
          statuses: status === undefined ? [] : [status],
          workerIdContains: contains,
        },
        { signal },
      ),
    { everyMs: 2_000 },
  );
  return (
    <Page title="Workers">
      <form class="filters" role="search" onSubmit={(event) => event.preventDefault()}>
        <label>
          <span>Status</span>
          <select
            value={chosen}
            onChange={(event) => setParams({ status: event.currentTarget.value, page: "" })}
          >
            <option value="">any</option>
            {words(WorkerStatus).map((name) => (
              <option key={name}>{name}</option>
            ))}
          </select>
        </label>
        <Field name="id" title="Worker" hint="part of its id" />
      </form>
      <ErrorNote error={error} />
      {!data && !error && <Loading />}
      {data && data.workers.length > 0 && (
        <Table
          label="Workers"
          columns={COLUMNS}
          rows={data.workers}
          keyOf={({ workerId }) => workerId}
          order={{
            by: orderBy,
            change: (by) => setParams({ sort: by === BY_NAME ? "" : by, page: "" }),
          }}
          stale={stale}
        />
      )}
      {data?.workers.length === 0 &&
        !stale &&
        (chosen || contains ? (
          <Empty>No worker matches these filters.</Empty>
        ) : (
          <Empty command={claim()}>
            There are no workers yet. A runner is one, and so is whoever claims a rollout by hand:
          </Empty>
        ))}
      {data && <Pages next={data.nextPageToken} current={pageToken} stale={stale} />}
    </Page>
  );
}
