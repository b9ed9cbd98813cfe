// Resources: the versions of an id, what changed between two, and which workers run which.
import type { Store } from "../api/client.js";
import { reasonOf } from "../api/errors.js";
import { useLive } from "../api/live.js";
import { server, statistics } from "../api/pulse.js";
import { count } from "../format.js";
import {
  TemplateEngine,
  type Resource,
  type Resources,
} from "../gen/lightningstore/v1/resources_pb.js";
import type { Worker } from "../gen/lightningstore/v1/worker_pb.js";
import { Age, Empty, ErrorNote, Loading, Page } from "../parts/basics.js";
import { diffLines } from "../parts/diff.js";
import { pretty } from "../parts/json.js";
import { Pages } from "../parts/pages.js";
import { Table, type Column } from "../parts/table.js";
import { visible } from "../rollout/text.js";
import { href, namespace, route, setParams } from "../router.js";

const PAGE_SIZE = 50;
/** Versions of an id that are offered: the newest ones, and those that the link names. */
const MAX_VERSIONS = 12;
const MAX_WORKERS = 1000;
const add = () => `python -c '
from lightningstore.client import LightningStore
LightningStore(namespace="${namespace.value}").add_resources({"prompt": "Answer in one word."}, resources_id="policy")'`;

const COLUMNS: readonly Column<Resources>[] = [
  {
    title: "Resources",
    cell: ({ resourcesId }) => (
      <a class="id" href={href("resources", resourcesId)}>
        {resourcesId}
      </a>
    ),
  },
  { title: "Version", number: true, cell: ({ version }) => version },
  {
    title: "Publish number",
    number: true,
    cell: ({ publishNumber }) => (
      <>
        {count(publishNumber)}
        {publishNumber === statistics.value?.latestPublishNumber && " (latest)"}
      </>
    ),
  },
  { title: "Published", cell: ({ updateTime }) => <Age time={updateTime} /> },
  { title: "Created", wide: true, cell: ({ createTime }) => <Age time={createTime} /> },
  {
    title: "Contents",
    cell: ({ resources }) => <span class="cut">{Object.keys(resources).sort().join(", ")}</span>,
  },
];

export function ResourcesPage() {
  return route.value.id ? <Versions id={route.value.id} /> : <ResourcesList />;
}

function ResourcesList() {
  const pageToken = route.value.params.get("page") ?? "";
  const { data, error, stale } = useLive(pageToken, (store, signal) =>
    store.listResources({ pageSize: PAGE_SIZE, pageToken }, { signal }),
  );
  return (
    <Page title="Resources">
      <ErrorNote error={error} />
      {!data && !error && <Loading />}
      {data && data.resources.length > 0 && (
        <Table
          label="Resources"
          columns={COLUMNS}
          rows={data.resources}
          keyOf={({ resourcesId }) => resourcesId}
          stale={stale}
        />
      )}
      {data?.resources.length === 0 && (
        <Empty command={add()}>
          There are no resources. They are the prompts, weights and endpoints that agents use:
        </Empty>
      )}
      {data && <Pages next={data.nextPageToken} current={pageToken} stale={stale} />}
    </Page>
  );
}

interface Loaded {
  /** The versions that are kept, the newest first. */
  readonly versions: readonly Resources[];
  readonly workers: readonly Worker[];
}

async function loadVersions(
  store: Store,
  id: string,
  named: readonly number[],
  signal: AbortSignal,
): Promise<Loaded> {
  const [current, { workers }] = await Promise.all([
    store.getResources({ resourcesId: id }, { signal }),
    store.listWorkers({ minPublishNumber: 1n, pageSize: MAX_WORKERS }, { signal }),
  ]);
  const latest = current.resources;
  if (!latest) return { versions: [], workers };
  const versions = [latest];
  // The newest ones are kept: before the first that was removed, there are hardly any.
  while (versions.length < Math.min(latest.version, MAX_VERSIONS)) {
    const version = await earlierVersion(store, id, latest.version - versions.length, signal);
    if (!version) break;
    versions.push(version);
  }
  for (const number of [...new Set(named)].sort((a, b) => b - a)) {
    if (number < 1 || number >= (versions.at(-1)?.version ?? 0)) continue;
    const version = await earlierVersion(store, id, number, signal);
    if (version) versions.push(version);
  }
  return { versions, workers };
}

/** Versions never change: what was loaded once is kept, by store, id and version. */
const known = new WeakMap<Store, Map<string, Resources | undefined>>();

async function earlierVersion(store: Store, id: string, version: number, signal: AbortSignal) {
  const kept = known.get(store) ?? new Map<string, Resources | undefined>();
  known.set(store, kept);
  const key = `${server.value?.storeId ?? ""} ${version} ${id}`;
  if (!kept.has(key)) kept.set(key, await keptVersion(store, id, version, signal));
  return kept.get(key);
}

async function keptVersion(store: Store, id: string, version: number, signal: AbortSignal) {
  try {
    return (await store.getResources({ resourcesId: id, version }, { signal })).resources;
  } catch (error) {
    if (reasonOf(error) === "RESOURCES_VERSION_REMOVED") return undefined;
    throw error;
  }
}

function Versions({ id }: { id: string }) {
  const { params } = route.value;
  const number = (name: string) => Number(params.get(name)) || 0;
  const [chosen, other] = [number("version"), number("with")];
  const { data, error, stale } = useLive(`${id} ${chosen} ${other}`, (store, signal) =>
    // The version before the one that is shown is what it is compared with.
    loadVersions(store, id, [chosen, chosen - 1, other], signal),
  );
  const versions = data?.versions ?? [];
  const find = (wanted: number) => versions.find(({ version }) => version === wanted);
  const shown = chosen ? find(chosen) : versions[0];
  const base = other ? find(other) : shown && find(shown.version - 1);
  const missing = stale || !data ? [] : [chosen, other].filter((n) => n && !find(n));
  return (
    <Page title={`Resources ${id}`}>
      <p>
        <a href={href("resources")}>All resources</a>
      </p>
      <ErrorNote error={error} />
      {!data && !error && <Loading />}
      {data && versions.length > 0 && (
        <Table
          label="Versions"
          columns={versionColumns(id, data.workers)}
          rows={versions}
          keyOf={({ version }) => String(version)}
          stale={stale}
        />
      )}
      {missing.map((version) => (
        <p key={version} class="note">
          {version > (versions[0]?.version ?? 0)
            ? `There is no version ${version}.`
            : `Version ${version} is not kept any more.`}
        </p>
      ))}
      {shown && (
        <>
          <h2>
            {base && base !== shown
              ? `From version ${base.version} to version ${shown.version}`
              : `Version ${shown.version}`}
          </h2>
          <Choice versions={versions} shown={shown} base={base} />
          <Changes before={base} after={shown} />
        </>
      )}
    </Page>
  );
}

function versionColumns(id: string, workers: readonly Worker[]): readonly Column<Resources>[] {
  const running = (publishNumber: bigint) =>
    workers.filter((worker) => worker.publishNumber === publishNumber);
  return [
    {
      title: "Version",
      cell: ({ version }) => (
        <a href={href("resources", id, { version: `${version}` })}>{version}</a>
      ),
    },
    { title: "Publish number", number: true, cell: (entry) => count(entry.publishNumber) },
    { title: "Published", cell: ({ updateTime }) => <Age time={updateTime} /> },
    {
      title: "Workers",
      cell: ({ publishNumber }) => {
        const names = running(publishNumber).map(({ workerId }) => workerId);
        if (!names.length) return <span class="quiet">none</span>;
        return (
          <span class="cut" title={names.join(", ")}>
            {names.length > 3 ? `${names.length}: ` : ""}
            {names.join(", ")}
          </span>
        );
      },
    },
    { title: "Contents", cell: ({ resources }) => Object.keys(resources).sort().join(", ") },
  ];
}

function Choice(props: {
  versions: readonly Resources[];
  shown: Resources;
  base: Resources | undefined;
}) {
  const { versions, shown, base } = props;
  if (versions.length < 2) return null;
  const select = (title: string, name: string, value: number | undefined) => (
    <label>
      <span>{title}</span>
      <select
        value={value ?? ""}
        onChange={(event) => setParams({ [name]: event.currentTarget.value })}
      >
        {value === undefined && <option value="">none</option>}
        {versions.map(({ version }) => (
          <option key={version}>{version}</option>
        ))}
      </select>
    </label>
  );
  return (
    <form class="filters" onSubmit={(event) => event.preventDefault()}>
      {select("From version", "with", base?.version)}
      {select("to version", "version", shown.version)}
    </form>
  );
}

function Changes({ before, after }: { before: Resources | undefined; after: Resources }) {
  const old = (before ?? after).resources;
  const names = [...new Set([...Object.keys(old), ...Object.keys(after.resources)])];
  const order = after.names;
  names.sort((a, b) => order.indexOf(a) - order.indexOf(b) || (a < b ? -1 : 1));
  return (
    <>
      {names.map((name) => (
        <Change
          key={name}
          name={name}
          before={textOf(old[name])}
          after={textOf(after.resources[name])}
          change={before && changeOf(old[name], after.resources[name])}
        />
      ))}
    </>
  );
}

const MARKS = { same: " ", added: "+", removed: "−" };

/** Returns the word for how a resource has changed. Keys of language models are not compared. */
function changeOf(before: Resource | undefined, after: Resource | undefined): string {
  if (!before) return "added";
  if (!after) return "removed";
  return textOf(before) === textOf(after) ? "unchanged" : "changed";
}

function Change(props: {
  name: string;
  before: string;
  after: string;
  /** Absent where nothing is compared. */
  change: string | undefined;
}) {
  const { name, before, after, change } = props;
  const lines = diffLines(before, after);
  // What follows the last line break is not a line.
  if (lines.at(-1)?.kind === "same" && !lines.at(-1)?.text) lines.pop();
  return (
    <section class="change">
      <h3>
        {visible(name)} {change && <span class="quiet">{change}</span>}
      </h3>
      <pre class="block diff" tabIndex={0} aria-label={`Text of ${name}`}>
        {lines.map((line, index) => (
          <span key={index} class={line.kind}>
            {`${MARKS[line.kind]} ${visible(line.text)}\n`}
          </span>
        ))}
      </pre>
    </section>
  );
}

/** Returns a resource as text. Keys of language models are not part of it. */
function textOf(resource: Resource | undefined): string {
  const kind = resource?.kind;
  switch (kind?.case) {
    case undefined:
      return "";
    case "promptTemplate":
      return `template in ${TemplateEngine[kind.value.engine].toLowerCase()}\n${kind.value.template}`;
    case "llm":
      return modelText(kind.value);
    case "proxyLlm":
      return kind.value.llm ? modelText(kind.value.llm) : "";
    case "custom": {
      const shown = lined(kind.value.valueJson);
      return kind.value.type ? `${kind.value.type}\n${shown}` : shown;
    }
  }
}

/** Returns JSON as text; a JSON text by its own lines, which are easier to compare. */
function lined(bytes: Uint8Array): string {
  const text = pretty(bytes);
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "string" ? value : text;
  } catch {
    return text;
  }
}

function modelText(model: { endpoint: string; model: string; samplingParametersJson: Uint8Array }) {
  const parts = [`model ${model.model}`, `endpoint ${model.endpoint}`];
  const parameters = pretty(model.samplingParametersJson);
  return [...parts, ...(parameters ? [parameters] : [])].join("\n");
}
