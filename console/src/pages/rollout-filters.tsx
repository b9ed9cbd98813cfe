// The filters of the list of rollouts: in the link, as request, and as fields.
import type { MessageInitShape } from "@bufbuild/protobuf";
import { useEffect, useRef } from "preact/hooks";
import { statistics } from "../api/pulse.js";
import { numberOf, words } from "../format.js";
import {
  RolloutMode,
  RolloutStatus,
  type ListRolloutsRequestSchema,
} from "../gen/lightningstore/v1/rollout_pb.js";
import { route, setParams } from "../router.js";

/** How the default queue, whose name is empty, is written. No name of a queue has brackets. */
const DEFAULT_QUEUE = "(default)";

/** Names of the filters in the link. */
const NAMES = ["status", "mode", "queue", "group", "label", "min", "max", "failure", "id"];

/** Time after the last key after which a filter is applied. */
const TYPING_MS = 500;

type Filters = MessageInitShape<typeof ListRolloutsRequestSchema>;

/** Returns the filters of a link. Throws an Error that says what is wrong with one. */
export function filtersOf(params: URLSearchParams): Filters {
  const given = (name: string) => params.get(name)?.trim() ?? "";
  const filters: Filters = {
    statuses: choices(given("status"), RolloutStatus, "status"),
    modes: choices(given("mode"), RolloutMode, "mode"),
    rolloutIdContains: given("id"),
    failureContains: given("failure"),
    groupIds: given("group") ? [given("group")] : [],
    queues: given("queue") ? [given("queue") === DEFAULT_QUEUE ? "" : given("queue")] : [],
    labels: labelsOf(given("label")),
  };
  if (given("min")) filters.minReward = rewardOf(given("min"), "lowest reward");
  if (given("max")) filters.maxReward = rewardOf(given("max"), "highest reward");
  return filters;
}

/** Whether the link of the page has any filter. */
export function isFiltered(params: URLSearchParams): boolean {
  return NAMES.some((name) => params.get(name));
}

function choices(
  text: string,
  names: Record<number | string, string | number>,
  what: string,
): number[] {
  return text
    .split(",")
    .filter(Boolean)
    .map((choice) => {
      const number = choice === "none" ? 0 : numberOf(names, choice);
      if (number === undefined) throw new Error(`“${choice}” is not a ${what}`);
      return number;
    });
}

/** Returns the labels of "key=value, key2=value2". A value may contain commas. */
function labelsOf(text: string): Record<string, string> {
  const pairs = text.split(/,\s*(?=[\w./-]+=)/).filter(Boolean);
  return Object.fromEntries(
    pairs.map((pair) => {
      const at = pair.indexOf("=");
      if (at < 1) throw new Error(`label “${pair}” must be KEY=VALUE`);
      return [pair.slice(0, at).trim(), pair.slice(at + 1).trim()];
    }),
  );
}

function rewardOf(text: string, what: string): number {
  const value = Number(text);
  if (!Number.isFinite(value)) throw new Error(`${what} “${text}” must be a number`);
  return value;
}

/** Changes filters, and returns to the first page. */
function change(changes: Record<string, string | undefined>): void {
  setParams({ ...changes, page: undefined });
}

export function FilterForm() {
  const { params } = route.value;
  const queues = statistics.value?.queues.map(({ queue }) => queue || DEFAULT_QUEUE) ?? [];
  return (
    <form class="filters" role="search" aria-label="Filters" onSubmit={(e) => e.preventDefault()}>
      <Statuses />
      <label>
        <span>Mode</span>
        <select
          value={params.get("mode") ?? ""}
          onChange={(event) => change({ mode: event.currentTarget.value })}
        >
          <option value="">any</option>
          {[...words(RolloutMode), "none"].map((name) => (
            <option key={name}>{name}</option>
          ))}
        </select>
      </label>
      <Field name="queue" title="Queue" options={[...new Set([DEFAULT_QUEUE, ...queues])]} />
      <Field name="group" title="Group" hint="id" />
      <Field name="label" title="Label" hint="key=value" />
      <Field name="min" title="Reward from" hint="lowest" numeric />
      <Field name="max" title="to" hint="highest" numeric />
      <Field name="failure" title="Failure" hint="part of its text" />
      <Field name="id" title="Rollout" hint="part of its id" />
      {isFiltered(params) && (
        <button
          type="button"
          onClick={() => change(Object.fromEntries(NAMES.map((name) => [name, undefined])))}
        >
          Clear filters
        </button>
      )}
    </form>
  );
}

function Statuses() {
  const chosen = (route.value.params.get("status") ?? "").split(",").filter(Boolean);
  const toggle = (name: string) => {
    const next = chosen.includes(name) ? chosen.filter((s) => s !== name) : [...chosen, name];
    change({ status: next.join(",") });
  };
  return (
    <fieldset class="choices">
      <legend>Status</legend>
      {words(RolloutStatus).map((name) => (
        <label key={name} class="choice">
          <input type="checkbox" checked={chosen.includes(name)} onChange={() => toggle(name)} />
          <span>{name}</span>
        </label>
      ))}
    </fieldset>
  );
}

/** A filter that is typed. The link follows half a second after the last key. */
export function Field(props: {
  name: string;
  title: string;
  hint?: string;
  options?: readonly string[];
  numeric?: boolean;
}) {
  const { name, title, hint, options, numeric } = props;
  const inLink = route.value.params.get(name) ?? "";
  const input = useRef<HTMLInputElement>(null);
  const timer = useRef<number | undefined>(undefined);
  const list = options && `${name}-options`;
  const forget = () => {
    clearTimeout(timer.current);
    timer.current = undefined;
  };
  const apply = () => {
    forget();
    change({ [name]: input.current?.value.trim() });
  };
  // The link may change by itself, for example by the browser's back button. What is being typed is newer.
  useEffect(() => {
    const element = input.current;
    if (element && timer.current === undefined && element.value.trim() !== inLink)
      element.value = inLink;
  }, [inLink]);
  // What was not applied yet is no filter of the page that is opened next.
  useEffect(() => forget, []);
  return (
    <label class="field">
      <span>{title}</span>
      <input
        ref={input}
        defaultValue={inLink}
        name={name}
        placeholder={hint}
        list={list}
        inputMode={numeric ? "decimal" : "text"}
        spellcheck={false}
        autoComplete="off"
        onInput={() => {
          clearTimeout(timer.current);
          timer.current = window.setTimeout(apply, TYPING_MS);
        }}
        onChange={apply}
      />
      {options && (
        <datalist id={list}>
          {options.map((option) => (
            <option key={option} value={option} />
          ))}
        </datalist>
      )}
    </label>
  );
}
