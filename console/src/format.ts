// Numbers, times and enums as text.
import { signal } from "@preact/signals";
import type { Duration, Timestamp } from "@bufbuild/protobuf/wkt";

/** The time of this machine in milliseconds, once a second, for ages that grow while they are looked at. */
export const now = signal(Date.now());
setInterval(() => {
  if (document.visibilityState === "visible") now.value = Date.now();
}, 1000);

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const count = (value: bigint | number): string => whole.format(value);

/** Returns a reward or another measure with four digits that count, and all digits before the point. */
export function measure(value: number | undefined): string {
  if (value === undefined) return "";
  if (!Number.isFinite(value)) return String(value);
  const digits = value === 0 ? 1 : Math.floor(Math.log10(Math.abs(value))) + 1;
  return Number(value.toPrecision(Math.min(21, Math.max(4, digits)))).toString();
}

export function percent(share: number): string {
  return `${Number((100 * share).toPrecision(3))} %`;
}

export const toMs = (time: Timestamp): number => Number(time.seconds) * 1000 + time.nanos / 1e6;

export const durationMs = (time: Duration): number =>
  Number(time.seconds) * 1000 + time.nanos / 1e6;

const UNITS = [
  [86_400, "d"],
  [3_600, "h"],
  [60, "min"],
  [1, "s"],
] as const;

/** Returns a span of time with two units at most: "3 min 20 s". */
export function span(seconds: number): string {
  const ms = Math.max(0, seconds * 1000);
  if (ms < 9.5) return `${Number(ms.toPrecision(2))} ms`;
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  let rest = Math.round(seconds);
  const parts: string[] = [];
  for (const [size, unit] of UNITS) {
    const number = Math.floor(rest / size);
    if (number || parts.length) parts.push(number ? `${number} ${unit}` : "");
    rest -= number * size;
    if (parts.length === 2) break;
  }
  return parts.filter(Boolean).join(" ");
}

export function bytes(value: bigint | number): string {
  let size = Number(value);
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    // From 1000 on, three digits would not do.
    if (size < (unit === "B" ? 1024 : 999.5))
      return `${unit === "B" ? size : size.toPrecision(3)} ${unit}`;
    size /= 1024;
  }
  return `${Number(size.toPrecision(3))} TiB`;
}

const moment = new Intl.DateTimeFormat("sv", { dateStyle: "short", timeStyle: "long" });

/** Returns milliseconds since 1970 as "2026-11-30 14:01:02 CET", in the zone of the browser. */
export const momentText = (ms: number): string => moment.format(ms);

export const timeText = (time: Timestamp): string => momentText(toMs(time));

/** Returns the word of an enum's value: "succeeded" for SUCCEEDED. Values of newer servers are numbers. */
export function word(names: Record<number, string>, value: number): string {
  return (names[value] ?? String(value)).toLowerCase().replaceAll("_", "-");
}

/** Returns the words that people choose from; UNSPECIFIED is not among them. */
export function words(names: Record<number | string, string | number>): string[] {
  return Object.keys(names)
    .filter((name) => Number.isNaN(Number(name)) && name !== "UNSPECIFIED")
    .map((name) => name.toLowerCase().replaceAll("_", "-"));
}

/** Returns the number of a word; undefined if no value has it. */
export function numberOf(
  names: Record<number | string, string | number>,
  text: string,
): number | undefined {
  const value = names[text.toUpperCase().replaceAll("-", "_")];
  return typeof value === "number" ? value : undefined;
}
