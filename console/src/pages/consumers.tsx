// Consumers: how far behind they are, and the deliveries of one.
import { useLive } from "../api/live.js";
import { count, durationMs, numberOf, span, word, words } from "../format.js";
import {
  ConsumerUnit,
  DeliveryState,
  StaleAction,
  type Consumer,
  type Delivery,
} from "../gen/lightningstore/v1/consumer_pb.js";
import { RolloutMode, RolloutStatus } from "../gen/lightningstore/v1/rollout_pb.js";
import { Age, Empty, ErrorNote, Loading, Page } from "../parts/basics.js";
import { inNamespace } from "../parts/commands.js";
import { Pages } from "../parts/pages.js";
import { Table, type Column } from "../parts/table.js";
import { visible } from "../rollout/text.js";
import { href, route, setParams } from "../router.js";

const PAGE_SIZE = 100;
const CREATE = "lightningstore consumers create trainer --unit group";

const COLUMNS: readonly Column<Consumer>[] = [
  {
    title: "Consumer",
    cell: ({ name }) => (
      <a class="id" href={href("consumers", name)}>
        {name}
      </a>
    ),
  },
  { title: "Unit", cell: ({ unit }) => word(ConsumerUnit, unit) },
  { title: "Waiting", number: true, cell: ({ backlogCount }) => count(backlogCount) },
  { title: "Oldest", cell: ({ oldestItemTime }) => <Age time={oldestItemTime} /> },
  { title: "Delivered", number: true, cell: ({ deliveredCount }) => count(deliveredCount) },
  { title: "To redeliver", number: true, cell: (consumer) => count(consumer.redeliveryCount) },
  { title: "Set aside", number: true, cell: ({ setAsideCount }) => count(setAsideCount) },
  { title: "Consumed", number: true, cell: ({ consumedCount }) => count(consumedCount) },
  { title: "Dropped", number: true, wide: true, cell: (c) => count(c.droppedCount) },
  { title: "Skipped", number: true, wide: true, cell: (c) => count(c.skippedCount) },
  {
    title: "Outstanding",
    number: true,
    wide: true,
    cell: ({ outstandingCount, maxOutstanding }) =>
      count(outstandingCount) + (maxOutstanding ? ` of ${count(maxOutstanding)}` : ""),
  },
  { title: "Settings", wide: true, cell: (consumer) => settingsText(consumer) },
];

function settingsText(consumer: Consumer): string {
  const { filter, ackDeadline, maxLag, onStale, maxDeliveries } = consumer;
  const stale = onStale === StaleAction.DELIVER ? "delivered" : "skipped";
  const labels = Object.entries(filter?.labels ?? {}).map(([key, value]) => `${key}=${value}`);
  const parts = [
    ackDeadline && `${span(durationMs(ackDeadline) / 1000)} to acknowledge`,
    maxLag !== undefined && `lag above ${count(maxLag)} ${stale}`,
    maxDeliveries > 0 && `${maxDeliveries} deliveries`,
    filter?.statuses.map((status) => word(RolloutStatus, status)).join(", "),
    filter?.modes.map((mode) => word(RolloutMode, mode)).join(", "),
    filter?.queues.map((queue) => `queue ${queue || "(default)"}`).join(", "),
    labels.join(", "),
  ];
  return parts.filter(Boolean).join("; ");
}

export function Consumers() {
  return route.value.id ? <Deliveries name={route.value.id} /> : <ConsumerList />;
}

function ConsumerList() {
  const pageToken = route.value.params.get("page") ?? "";
  const { data, error, stale } = useLive(
    pageToken,
    (store, signal) => store.listConsumers({ pageSize: PAGE_SIZE, pageToken }, { signal }),
    { everyMs: 1_000 },
  );
  return (
    <Page title="Consumers">
      <ErrorNote error={error} />
      {!data && !error && <Loading />}
      {data && data.consumers.length > 0 && (
        <Table
          label="Consumers"
          columns={COLUMNS}
          rows={data.consumers}
          keyOf={({ name }) => name}
          stale={stale}
        />
      )}
      {data?.consumers.length === 0 && (
        <Empty command={inNamespace(CREATE)}>
          There are no consumers. One delivers finished rollouts or complete groups to a trainer:
        </Empty>
      )}
      {data && <Pages next={data.nextPageToken} current={pageToken} stale={stale} />}
    </Page>
  );
}

function deliveryColumns(unit: ConsumerUnit): readonly Column<Delivery>[] {
  const page = unit === ConsumerUnit.GROUP ? "group" : "rollout";
  return [
    {
      title: unit === ConsumerUnit.GROUP ? "Group" : "Rollout",
      cell: ({ itemId }) => (
        <a class="id" href={href(page, itemId)}>
          {visible(itemId)}
        </a>
      ),
    },
    { title: "State", cell: ({ state }) => word(DeliveryState, state) },
    { title: "Finished as number", number: true, cell: (d) => count(d.completionNumber) },
    { title: "Deliveries", number: true, cell: ({ deliveryCount }) => deliveryCount },
    { title: "Lag", number: true, cell: ({ lag }) => count(lag) },
    { title: "Deadline", cell: ({ ackDeadlineTime: time }) => <Age time={time} /> },
    {
      title: "Note",
      cell: ({ note }) => (
        <span class="cut" title={visible(note)}>
          {visible(note)}
        </span>
      ),
    },
  ];
}

function Deliveries({ name }: { name: string }) {
  const { params } = route.value;
  const pageToken = params.get("page") ?? "";
  const chosen = params.get("state") ?? "";
  const state = numberOf(DeliveryState, chosen);
  const { data, error, stale } = useLive(
    `${name} ${params.toString()}`,
    async (store, signal) => {
      const states = state === undefined ? [] : [state];
      const [{ consumer }, deliveries] = await Promise.all([
        store.getConsumer({ name }, { signal }),
        store.listDeliveries(
          { consumer: name, states, pageSize: PAGE_SIZE, pageToken },
          { signal },
        ),
      ]);
      return { consumer, deliveries };
    },
    { everyMs: 1_000 },
  );
  const consumer = data?.consumer;
  return (
    <Page title={`Consumer ${name}`}>
      <p>
        <a href={href("consumers")}>All consumers</a>
      </p>
      <ErrorNote error={error} />
      {!data && !error && <Loading />}
      {consumer && (
        <Table
          label="Consumer"
          columns={COLUMNS}
          rows={[consumer]}
          keyOf={({ name: key }) => key}
        />
      )}
      <h2>Deliveries that are not acknowledged</h2>
      <form class="filters" onSubmit={(event) => event.preventDefault()}>
        <label>
          <span>State</span>
          <select
            value={chosen}
            onChange={(event) => setParams({ state: event.currentTarget.value, page: "" })}
          >
            <option value="">any</option>
            {words(DeliveryState).map((option) => (
              <option key={option}>{option}</option>
            ))}
          </select>
        </label>
      </form>
      {data?.deliveries.deliveries.length === 0 && !stale && <Empty>There are none.</Empty>}
      {data && data.deliveries.deliveries.length > 0 && (
        <Table
          label="Deliveries"
          columns={deliveryColumns(consumer?.unit ?? ConsumerUnit.ROLLOUT)}
          rows={data.deliveries.deliveries}
          keyOf={({ deliveryId }) => deliveryId}
          stale={stale}
        />
      )}
      {data && <Pages next={data.deliveries.nextPageToken} current={pageToken} stale={stale} />}
    </Page>
  );
}
