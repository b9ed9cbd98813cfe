// The spans of an attempt as a tree with bars on an axis of time. Only the rows in view are rendered.
import { useSignal } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { useLive } from "../api/live.js";
import { count, span as duration } from "../format.js";
import type { Attempt } from "../gen/lightningstore/v1/attempt_pb.js";
import { ErrorNote, Loading } from "../parts/basics.js";
import { route, setParams } from "../router.js";
import { Axis, clamped, type View } from "./axis.js";
import { SpanDetails } from "./span-details.js";
import { loadTrace, NoSpans, useSpanReload, type Row, type Trace } from "./spans.js";
import { visible } from "./text.js";

const ROW_PX = 28;
const BEYOND = 12;
const MAX_ROWS = 22;

export function Waterfall({ attempt }: { attempt: Attempt }) {
  const live = useLive(
    `waterfall/${attempt.rolloutId}/${attempt.attemptId}`,
    (store, signal) => loadTrace(store, attempt, signal),
    { follows: false },
  );
  useSpanReload(live, attempt);
  const { data, error } = live;
  if (!data) return error === undefined ? <Loading /> : <ErrorNote error={error} />;
  if (!data.rows.length) return <NoSpans attempt={attempt} />;
  return (
    <>
      <ErrorNote error={error} />
      <Chart trace={data} />
    </>
  );
}

function Chart({ trace }: { trace: Trace }) {
  const zoomed = useSignal<View | undefined>(undefined);
  const folded = useSignal<ReadonlySet<string>>(new Set());
  const rows = useMemo(() => unfolded(trace.rows, folded.value), [trace, folded.value]);
  const whole: View = { from: 0, to: Math.max(trace.length, 0.001) };
  const view = zoomed.value ?? whole;
  const chosen = route.value.params.get("span") ?? "";
  const at = rows.findIndex(({ id }) => id === chosen);
  const row = trace.rows.find(({ id }) => id === chosen);
  const zoom = (next: View) => {
    const within = clamped(next, whole);
    zoomed.value = within.to - within.from >= whole.to ? undefined : within;
  };
  const scale = (factor: number) => {
    const middle = row ? (row.start + row.end) / 2 : (view.from + view.to) / 2;
    const half = ((view.to - view.from) * factor) / 2;
    zoom({ from: middle - half, to: middle + half });
  };
  const fold = (id: string, fold: boolean) => {
    const next = new Set(folded.value);
    if (fold) next.add(id);
    else next.delete(id);
    folded.value = next;
  };
  const choose = (index: number) => {
    const next = rows[Math.min(rows.length - 1, Math.max(0, index))];
    if (next) setParams({ span: next.id });
  };
  const onKey = (event: KeyboardEvent) => {
    const keys: Record<string, () => void> = {
      ArrowDown: () => choose(at + 1),
      ArrowUp: () => choose(at - 1),
      PageDown: () => choose(at + MAX_ROWS),
      PageUp: () => choose(at - MAX_ROWS),
      Home: () => choose(0),
      End: () => choose(rows.length - 1),
      ArrowLeft: () => row && fold(row.id, true),
      ArrowRight: () => row && fold(row.id, false),
      Escape: () => setParams({ span: undefined }),
      "+": () => scale(0.5),
      "=": () => scale(0.5),
      "-": () => scale(2),
      "0": () => (zoomed.value = undefined),
    };
    const action = event.ctrlKey || event.metaKey || event.altKey ? undefined : keys[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  };
  return (
    <div class="waterfall">
      <Summary
        trace={trace}
        zoomed={zoomed.value !== undefined}
        scale={scale}
        onWhole={() => (zoomed.value = undefined)}
      />
      <div class="spans">
        <Axis view={view} onZoom={zoom} />
        <Rows rows={rows} at={at} view={view} folded={folded.value} fold={fold} onKey={onKey} />
      </div>
      {row && <SpanDetails row={row} trace={trace} />}
    </div>
  );
}

function Summary(props: {
  trace: Trace;
  zoomed: boolean;
  scale: (factor: number) => void;
  onWhole: () => void;
}) {
  const { trace, zoomed, scale, onWhole } = props;
  const failed = trace.rows.filter((row) => row.failed);
  const next = () => {
    const chosen = route.value.params.get("span") ?? "";
    const at = failed.findIndex(({ id }) => id === chosen);
    setParams({ span: failed[(at + 1) % failed.length]?.id });
  };
  return (
    <div class="bar">
      <span class="quiet">
        {count(trace.rows.length)} {trace.rows.length === 1 ? "span" : "spans"} in{" "}
        {duration(trace.length / 1000)}
      </span>
      {failed.length > 0 && (
        <button type="button" class="failed" onClick={next}>
          ✗ {count(failed.length)} with errors: next
        </button>
      )}
      <span class="zoom" role="group" aria-label="Zoom">
        <button type="button" aria-label="Zoom in" title="Zoom in (+)" onClick={() => scale(0.5)}>
          +
        </button>
        <button
          type="button"
          aria-label="Zoom out"
          title="Zoom out (-)"
          disabled={!zoomed}
          onClick={() => scale(2)}
        >
          −
        </button>
        <button type="button" title="Show the whole time (0)" disabled={!zoomed} onClick={onWhole}>
          Whole
        </button>
      </span>
    </div>
  );
}

/** Returns the rows that are not below a folded one. */
function unfolded(rows: readonly Row[], folded: ReadonlySet<string>): readonly Row[] {
  if (!folded.size) return rows;
  const shown: Row[] = [];
  let hidden = Infinity;
  for (const row of rows) {
    if (row.level > hidden) continue;
    hidden = folded.has(row.id) ? row.level : Infinity;
    shown.push(row);
  }
  return shown;
}

function Rows(props: {
  rows: readonly Row[];
  at: number;
  view: View;
  folded: ReadonlySet<string>;
  fold: (id: string, fold: boolean) => void;
  onKey: (event: KeyboardEvent) => void;
}) {
  const { rows, at, view, folded, fold, onKey } = props;
  const box = useRef<HTMLDivElement>(null);
  const top = useSignal(0);
  const height = Math.min(rows.length, MAX_ROWS) * ROW_PX;
  // What is chosen by a key or a link is scrolled into view.
  useEffect(() => {
    const element = box.current;
    if (!element || at < 0) return;
    const edge = at * ROW_PX;
    if (edge < element.scrollTop) element.scrollTop = edge;
    else if (edge + ROW_PX > element.scrollTop + height) element.scrollTop = edge + ROW_PX - height;
  }, [at]);
  const first = Math.max(0, Math.floor(top.value / ROW_PX) - BEYOND);
  const last = Math.min(rows.length, Math.ceil((top.value + height) / ROW_PX) + BEYOND);
  return (
    <div
      ref={box}
      class="rows"
      role="tree"
      aria-label="Spans"
      aria-activedescendant={at >= first && at < last ? `span-${at}` : undefined}
      tabIndex={0}
      style={{ height: `${height}px` }}
      onScroll={(event) => (top.value = event.currentTarget.scrollTop)}
      onKeyDown={onKey}
    >
      <div role="none" class="filler" style={{ height: `${rows.length * ROW_PX}px` }}>
        {rows.slice(first, last).map((row, index) => (
          <SpanRow
            key={row.id}
            row={row}
            index={first + index}
            chosen={first + index === at}
            view={view}
            folded={folded.has(row.id)}
            fold={fold}
          />
        ))}
      </div>
    </div>
  );
}

function SpanRow(props: {
  row: Row;
  index: number;
  chosen: boolean;
  view: View;
  folded: boolean;
  fold: (id: string, fold: boolean) => void;
}) {
  const { row, index, chosen, view, folded, fold } = props;
  const length = view.to - view.from;
  const left = Math.min(100, Math.max(0, (100 * (row.start - view.from)) / length));
  const right = Math.min(100, Math.max(0, (100 * (row.end - view.from)) / length));
  const within = row.end >= view.from && row.start <= view.to;
  const time = duration((row.end - row.start) / 1000);
  const parent = row.children.length > 0;
  const onClick = (event: MouseEvent) => {
    if (parent && (event.target as HTMLElement).classList.contains("twist")) fold(row.id, !folded);
    else setParams({ span: chosen ? undefined : row.id });
  };
  return (
    <div
      id={`span-${index}`}
      class={`row ${chosen ? "chosen" : ""} ${row.failed ? "failed" : ""}`}
      role="treeitem"
      aria-level={row.level}
      aria-selected={chosen}
      aria-expanded={parent ? !folded : undefined}
      style={{ top: `${index * ROW_PX}px` }}
      onClick={onClick}
    >
      <span class="name" style={{ paddingLeft: `${Math.min(row.level - 1, 12) * 0.8}rem` }}>
        <span class="twist" aria-hidden="true">
          {parent ? (folded ? "▸" : "▾") : ""}
        </span>
        {row.failed && (
          <>
            <span class="mark" aria-hidden="true">
              ✗{" "}
            </span>
            <span class="hidden">error: </span>
          </>
        )}
        <bdi title={visible(row.span.name.slice(0, 500))}>
          {visible(row.span.name.slice(0, 200)) || "(no name)"}
        </bdi>
      </span>{" "}
      <span class="track">
        {within && (
          <span
            class="bar-of-span"
            style={{ left: `${left}%`, width: `max(2px, ${right - left}%)` }}
          />
        )}
        {within && <Length text={time} left={left} right={right} />}
      </span>
    </div>
  );
}

/** The duration: after the bar where there is space, else before it, else on it. */
function Length({ text, left, right }: { text: string; left: number; right: number }) {
  if (right <= 80)
    return (
      <span class="length" style={{ left: `${right}%` }}>
        {text}
      </span>
    );
  if (left > 25)
    return (
      <span class="length" style={{ right: `${100 - left}%` }}>
        {text}
      </span>
    );
  return (
    <span class="length inside" style={{ left: `${left}%` }}>
      {text}
    </span>
  );
}
