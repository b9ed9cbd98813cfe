// A chart of one measure: a line for each namespace, and the band of its 10th to 90th percentile.
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { measure, momentText } from "../format.js";
import { shown } from "../theme.js";

export interface Point {
  /** Publish number, completion number, or seconds since 1970. */
  readonly x: number;
  readonly y: number;
  readonly low?: number;
  readonly high?: number;
}

export interface Line {
  readonly label: string;
  readonly points: readonly Point[];
}

export interface ChartProps {
  readonly title: string;
  /** What the values are, for example "seconds". */
  readonly unit?: string;
  readonly xTitle: string;
  readonly xIsTime?: boolean;
  readonly lines: readonly Line[];
  /** Range of the values, where it is known, for example [0, 1] for shares. */
  readonly range?: readonly [number, number];
}

const HEIGHT = 210;
const COLOURS = 6;
/** Width of the axis of values: of its labels, and of what is around them. */
const MIN_AXIS = 56;
const DIGIT = 7.5;

const colourOf = (index: number) => css(`--series-${(index % COLOURS) + 1}`);

function css(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Puts the points of all lines over one axis, as the library takes them: x, then mean, low and high of each line. */
function columns(lines: readonly Line[]): uPlot.AlignedData {
  const xs = [...new Set(lines.flatMap(({ points }) => points.map(({ x }) => x)))];
  xs.sort((a, b) => a - b);
  const place = new Map(xs.map((x, index) => [x, index]));
  const data: (number | null)[][] = [];
  for (const { points } of lines) {
    const [mean, low, high] = [0, 1, 2].map(() => new Array<number | null>(xs.length).fill(null));
    for (const point of points) {
      const index = place.get(point.x) ?? 0;
      if (mean) mean[index] = point.y;
      if (low) low[index] = point.low ?? null;
      if (high) high[index] = point.high ?? null;
    }
    if (mean && low && high) data.push(mean, low, high);
  }
  return [xs, ...data] as uPlot.AlignedData;
}

function options(props: ChartProps, width: number, onCursor: (index: number | undefined) => void) {
  const { lines, xTitle, xIsTime, range } = props;
  const axis: uPlot.Axis = {
    stroke: css("--quiet"),
    grid: { stroke: css("--line"), width: 1 },
    ticks: { stroke: css("--line"), width: 1 },
    font: "12px system-ui, sans-serif",
  };
  const series: uPlot.Series[] = [{}];
  const bands: uPlot.Band[] = [];
  lines.forEach((_, index) => {
    const stroke = colourOf(index);
    const edge = { stroke: `${stroke}55`, width: 1, points: { show: false }, spanGaps: true };
    series.push(
      { stroke, width: 2, spanGaps: true, points: { size: 5, fill: stroke } },
      edge,
      edge,
    );
    const at = 1 + 3 * index;
    bands.push({ series: [at + 2, at + 1], fill: `${stroke}22` });
  });
  return {
    width,
    height: HEIGHT,
    series,
    bands,
    legend: { show: false },
    // Charts with the same axis show the same place of it when one of them is pointed at.
    cursor: { sync: { key: xTitle }, drag: { x: true, y: false } },
    scales: {
      x: { time: xIsTime ?? false },
      y: { range: range ? [range[0], range[1]] : spread },
    },
    axes: [
      { ...axis, space: 80, ...(xIsTime ? { values: timeLabels } : {}) },
      { ...axis, size: widthOf },
    ],
    hooks: { setCursor: [(plot) => onCursor(plot.cursor.idx ?? undefined)] },
  } satisfies uPlot.Options;
}

/** Returns the width that the labels of an axis need. */
const widthOf = (_: uPlot, labels: string[] | null) =>
  Math.max(MIN_AXIS, 20 + DIGIT * Math.max(0, ...(labels ?? []).map(({ length }) => length)));

/** Returns times of the day, and below them the date where it is another one than before. */
const timeLabels: uPlot.Axis.DynamicValues = (_, splits, _axis, _space, step) => {
  let before = "";
  return splits.map((seconds) => {
    const [date = "", time = ""] = momentText(seconds * 1000).split(" ");
    const ms = String(Math.round(seconds * 1000) % 1000).padStart(3, "0");
    const shown = step < 1 ? `${time}.${ms}` : step < 60 ? time : time.slice(0, 5);
    const label = date === before ? shown : `${shown}\n${date}`;
    before = date;
    return label;
  });
};

/** Whether a part of the axis was chosen, which new data does not change. */
function isZoomed({ data: [xs], scales }: uPlot): boolean {
  const { min, max } = scales["x"] ?? {};
  const [first, last] = [xs[0], xs.at(-1)];
  if (min == null || max == null || first === undefined || last === undefined) return false;
  return min > first || max < last;
}

/** Range of values that are not known to have one: equal values are in its middle, zeros at its bottom. */
const spread: uPlot.Range.Function = (_, low, high) => {
  if (low === high) return low === 0 ? [0, 1] : [Math.min(0, 2 * low), Math.max(0, 2 * low)];
  return uPlot.rangeNum(low, high, 0.1, true);
};

export function Chart(props: ChartProps) {
  const { title, unit, lines } = props;
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | undefined>(undefined);
  const pointed = useSignal<number | undefined>(undefined);
  const theme = shown.value;
  const data = columns(lines);
  const latest = useRef(data);
  latest.current = data;
  const labels = lines.map(({ label }) => label).join("\n");

  useEffect(() => {
    const element = place.current;
    if (!element) return;
    const made = new uPlot(
      options(props, element.clientWidth, (index) => (pointed.value = index)),
      latest.current,
      element,
    );
    plot.current = made;
    const observer = new ResizeObserver(() =>
      made.setSize({ width: element.clientWidth, height: HEIGHT }),
    );
    observer.observe(element);
    return () => {
      observer.disconnect();
      made.destroy();
      plot.current = undefined;
    };
  }, [theme, labels, props.xTitle, title]);

  const version = JSON.stringify(data);
  useEffect(() => {
    const made = plot.current;
    if (!made || made.data === latest.current) return;
    const zoomed = isZoomed(made);
    made.setData(latest.current, !zoomed);
    if (zoomed) made.redraw();
  }, [version]);

  const index = pointed.value;
  const x = index === undefined ? undefined : data[0][index];
  return (
    <figure class="chart">
      <figcaption>
        <strong>{title}</strong>
        {unit && <span class="quiet"> {unit}</span>}
      </figcaption>
      <div class="legend">
        {lines.map((line, at) => (
          <Value key={line.label} line={line} x={x} colour={at} alone={lines.length === 1} />
        ))}
        {x !== undefined && <span class="quiet">{xText(props, x)}</span>}
      </div>
      <div ref={place} aria-hidden="true" />
      <Numbers {...props} />
    </figure>
  );
}

/** The value of a line where it is pointed at, else the latest. */
function Value(props: { line: Line; x: number | undefined; colour: number; alone: boolean }) {
  const { line, x, colour, alone } = props;
  const point = x === undefined ? line.points.at(-1) : line.points.find((p) => p.x === x);
  const band =
    point?.low !== undefined && point.high !== undefined
      ? ` (${measure(point.low)} to ${measure(point.high)})`
      : "";
  return (
    <span class={`series series-${(colour % COLOURS) + 1}`}>
      {alone ? "" : `${line.label} `}
      <b>{point ? measure(point.y) : "–"}</b>
      {band}
    </span>
  );
}

function xText({ xTitle, xIsTime }: ChartProps, x: number): string {
  if (!xIsTime) return `${xTitle} ${x}`;
  return momentText(x * 1000);
}

/** The same as a table, for those who cannot see the picture, and to copy. */
function Numbers(props: ChartProps) {
  const open = useSignal(false);
  const rows = props.lines.flatMap(({ label, points }) =>
    points.slice(-100).map((point) => ({ label, point })),
  );
  return (
    <details onToggle={(event) => (open.value = event.currentTarget.open)}>
      <summary>Numbers</summary>
      {open.value && (
        <div class="scroll short" role="region" aria-label={`${props.title}: numbers`} tabIndex={0}>
          <table>
            <thead>
              <tr>
                <th scope="col">Namespace</th>
                <th scope="col">{props.xTitle}</th>
                <th scope="col" class="number">
                  {props.title}
                </th>
                <th scope="col" class="number">
                  p10
                </th>
                <th scope="col" class="number">
                  p90
                </th>
              </tr>
            </thead>
            <tbody>
              {rows.map(({ label, point }) => (
                <tr key={`${label} ${point.x}`}>
                  <td>{label}</td>
                  <td>{props.xIsTime ? xText(props, point.x) : point.x}</td>
                  <td class="number">{measure(point.y)}</td>
                  <td class="number">{measure(point.low)}</td>
                  <td class="number">{measure(point.high)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </details>
  );
}

/** A line without axes, for tables. */
export function Sparkline({ values, label }: { values: readonly number[]; label: string }) {
  if (values.length < 2) return null;
  const [width, height] = [110, 26];
  const low = Math.min(...values);
  const spread = Math.max(...values) - low || 1;
  const points = values.map((value, index) => {
    const x = (index / (values.length - 1)) * (width - 4) + 2;
    const y = height - 3 - ((value - low) / spread) * (height - 6);
    return `${x.toFixed(1)},${y.toFixed(1)}`;
  });
  return (
    <svg class="spark" width={width} height={height} role="img" aria-label={label}>
      <polyline points={points.join(" ")} fill="none" stroke="currentColor" stroke-width="1.5" />
    </svg>
  );
}
