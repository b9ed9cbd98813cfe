// How training develops: rewards, times, lag and success, of several namespaces in one picture.
import { storeOf } from "../api/client.js";
import { useLive } from "../api/live.js";
import { listNamespaces } from "../api/namespaces.js";
import { numberOf, words } from "../format.js";
import { RolloutMode } from "../gen/lightningstore/v1/rollout_pb.js";
import { Empty, ErrorNote, Loading, Page } from "../parts/basics.js";
import { claim, enqueue } from "../parts/commands.js";
import { Chart, type ChartProps } from "../parts/chart.js";
import { namespace, route, setParams } from "../router.js";
import { loadTraining, type Axis, type Choice, type TrainingData } from "./training-data.js";

const AXES: Record<Axis, string> = {
  publish: "publish number",
  time: "time",
  finish: "completion number",
};
/** Groups are counted on their own, as they complete. */
const GROUP_AXES: Record<Axis, string> = { ...AXES, finish: "completion number of the group" };
const RANGES = { "": "automatic", all: "all" };
const TIMES = { "15": "last 15 minutes", "60": "last hour", "1440": "last day" };
const MAX_COMPARED = 6;
/** Series of large stores take seconds. */
const SHARE_OF_TIME = 1 / 20;

type Measure = Pick<ChartProps, "title" | "unit" | "range"> & { of: keyof TrainingData };

const SHARE = { unit: "share from 0 to 1", range: [0, 1] } as const;
const MEASURES: readonly Measure[] = [
  { of: "reward", title: "Reward", unit: "mean, and the band from p10 to p90" },
  { of: "success", title: "Succeeded", ...SHARE },
  { of: "duration", title: "Duration", unit: "seconds from claim to end" },
  { of: "queueTime", title: "Queue time", unit: "seconds from enqueueing to the first claim" },
  { of: "lag", title: "Lag", unit: "publications behind at the end" },
  {
    of: "equalGroups",
    title: "Groups with equal rewards",
    ...SHARE,
    unit: "share of complete groups of all modes, from 0 to 1",
  },
];

function choiceOf(params: URLSearchParams): Choice {
  const axis = params.get("axis") ?? "";
  return {
    axis: axis in AXES ? (axis as Axis) : "publish",
    range: params.get("range") ?? "",
    mode: numberOf(RolloutMode, params.get("mode") ?? ""),
  };
}

/** The namespaces of the picture: the one that is shown, and those that it is compared with. */
function comparedIn(params: URLSearchParams): string[] {
  const others = (params.get("with") ?? "").split(",").filter(Boolean);
  return [...new Set([namespace.value, ...others])].slice(0, MAX_COMPARED);
}

export function Training() {
  const { params } = route.value;
  const choice = choiceOf(params);
  const compared = comparedIn(params);
  const { data, error, stale } = useLive(
    params.toString(),
    async (_, signal) =>
      Promise.all(
        compared.map(async (name) => ({
          name,
          axis: choice.axis,
          data: await loadTraining(storeOf(name), choice, signal),
        })),
      ),
    { share: SHARE_OF_TIME },
  );
  const axis = data?.[0]?.axis ?? choice.axis;
  const isEmpty = data?.every((entry) => MEASURES.every(({ of }) => !entry.data[of].length));
  return (
    <Page title="Training">
      <Controls choice={choice} compared={compared} />
      <ErrorNote error={error} />
      {!data && !error && <Loading />}
      {isEmpty && <Nothing axis={choice.axis} />}
      {data && !isEmpty && (
        <div class="charts" aria-busy={stale}>
          {MEASURES.map(({ of, ...measure }) => (
            <Chart
              key={of}
              {...measure}
              xTitle={(of === "equalGroups" ? GROUP_AXES : AXES)[axis]}
              xIsTime={axis === "time"}
              lines={data.map((entry) => ({ label: entry.name, points: entry.data[of] }))}
            />
          ))}
        </div>
      )}
    </Page>
  );
}

function Nothing({ axis }: { axis: Axis }) {
  if (axis === "publish")
    return (
      <Empty>
        No rollout that has finished ran with published resources.{" "}
        <button type="button" class="link" onClick={() => setParams({ axis: "time" })}>
          Show by time
        </button>
      </Empty>
    );
  return (
    <Empty command={`${enqueue()}\n${claim()}`}>
      No rollout has finished yet. Enqueue some, and start a runner:
    </Empty>
  );
}

function Controls({ choice, compared }: { choice: Choice; compared: string[] }) {
  const { params } = route.value;
  return (
    <form class="filters" aria-label="What is shown" onSubmit={(event) => event.preventDefault()}>
      <label>
        <span>By</span>
        <select
          value={choice.axis}
          onChange={(event) => setParams({ axis: event.currentTarget.value, range: "" })}
        >
          {Object.entries(AXES).map(([name, title]) => (
            <option key={name} value={name}>
              {title}
            </option>
          ))}
        </select>
      </label>
      <label>
        <span>Range</span>
        <select
          value={choice.range}
          onChange={(event) => setParams({ range: event.currentTarget.value })}
        >
          {Object.entries({ ...RANGES, ...(choice.axis === "time" ? TIMES : {}) }).map(
            ([range, title]) => (
              <option key={range} value={range}>
                {title}
              </option>
            ),
          )}
        </select>
      </label>
      <label>
        <span>Mode</span>
        <select
          value={params.get("mode") ?? ""}
          onChange={(event) => setParams({ mode: event.currentTarget.value })}
        >
          <option value="">any</option>
          {words(RolloutMode).map((name) => (
            <option key={name}>{name}</option>
          ))}
        </select>
      </label>
      <Compare compared={compared} />
    </form>
  );
}

function Compare({ compared }: { compared: string[] }) {
  const { data } = useLive("compare", (_, signal) => listNamespaces(20, signal), {
    follows: false,
  });
  const others = compared.slice(1);
  const names = (data?.namespaces ?? []).map(({ name }) => name);
  const offered = [...new Set([...others, ...names])].filter((name) => name !== namespace.value);
  const toggle = (name: string) => {
    const next = others.includes(name) ? others.filter((n) => n !== name) : [...others, name];
    setParams({ with: next.join(",") });
  };
  if (!offered.length) return null;
  return (
    <fieldset class="choices">
      <legend>Compare with</legend>
      {offered.map((name) => (
        <label key={name} class="choice">
          <input
            type="checkbox"
            checked={others.includes(name)}
            disabled={!others.includes(name) && compared.length >= MAX_COMPARED}
            onChange={() => toggle(name)}
          />
          <span>{name}</span>
        </label>
      ))}
    </fieldset>
  );
}
