/**
 * JSON whose integers stay unharmed: beyond 2^53 they are bigints, in both directions. All other numbers are
 * doubles, as everywhere in JavaScript.
 */

import { messageOf } from "./failures.js";

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true });

/** A text that no JSON holds by accident: stands for a big integer while JSON is read or written. */
const MARK = `bigint:${crypto.randomUUID()}:`;
const WRITTEN = new RegExp(`"${MARK}(-?\\d+)"`, "g");
const LONG_INTEGER = /\d{16}/;
/** How JSON.stringify writes half a surrogate pair, after any number of escaped backslashes. */
const HALF_PAIR = /(?<!\\)((?:\\\\)*)\\ud[89a-f][0-9a-f]{2}/g;

/** JSON that is there already and goes to the server byte for byte. */
export class RawJson {
  readonly #bytes: Uint8Array;

  /** Takes JSON as text or as bytes in UTF-8; the server refuses what is no JSON. */
  constructor(json: string | Uint8Array) {
    this.#bytes = typeof json === "string" ? encoder.encode(json) : json;
  }

  /** The JSON in UTF-8. */
  get bytes(): Uint8Array {
    return this.#bytes;
  }

  /** The JSON as text. */
  get text(): string {
    return decoder.decode(this.#bytes);
  }
}

/**
 * Returns a value as JSON in UTF-8. A RawJson stays as it is; bigints become integers at any depth, and half a
 * surrogate pair becomes U+FFFD. Throws a TypeError for what is no JSON: undefined, functions, NaN and
 * infinities, what holds itself or cannot be read, and for bytes: JSON that is bytes already is a RawJson. The
 * error says where it was found; `name` is what the value is called there.
 */
export function encodeJson(value: unknown, name = "value"): Uint8Array {
  if (value instanceof RawJson) return value.bytes;
  if (value instanceof Uint8Array)
    throw new TypeError(`${name}: give JSON that is bytes already as RawJson`);
  const found = { big: false };
  const replace = (_key: string, part: unknown): unknown => {
    if (typeof part === "bigint") {
      found.big = true;
      return MARK + part.toString();
    }
    if (typeof part === "number" && !Number.isFinite(part)) {
      throw new TypeError(`${part} has no place in JSON`);
    }
    return part;
  };
  let text = written(value, name, replace);
  if (text === undefined) throw new TypeError(`${name}: ${typeof value} has no place in JSON`);
  if (found.big) text = text.replace(WRITTEN, "$1");
  if (text.includes("\\ud")) text = text.replace(HALF_PAIR, "$1\ufffd");
  return encoder.encode(text);
}

function written(
  value: unknown,
  name: string,
  replace: (key: string, part: unknown) => unknown,
): string | undefined {
  try {
    return JSON.stringify(value, replace);
  } catch (error) {
    throw new TypeError(`${culprit(value, name) ?? name}: ${messageOf(error)}`, { cause: error });
  }
}

/** Levels of a value in which the part that is no JSON is looked for. */
const MOST_LEVELS = 1_000;

/** Returns the path of the first part of a value that cannot be written; undefined if none is found. */
function culprit(value: unknown, path: string, above: readonly unknown[] = []): string | undefined {
  if (typeof value === "number") return Number.isFinite(value) ? undefined : path;
  if (typeof value !== "object" || value === null) return undefined;
  if (above.includes(value) || above.length > MOST_LEVELS) return path;
  const levels = [...above, value];
  try {
    const { toJSON } = value as { toJSON?: unknown };
    if (typeof toJSON === "function") return culprit(toJSON.call(value, ""), path, levels);
    for (const key of Object.keys(value)) {
      const place = Array.isArray(value) ? `${path}[${key}]` : `${path}.${key}`;
      const part = read(value, key);
      if (!part) return place;
      const found = culprit(part.value, place, levels);
      if (found !== undefined) return found;
    }
  } catch {
    return path;
  }
  return undefined;
}

/** Returns a property; undefined if its getter throws. */
function read(holder: object, key: string): { readonly value: unknown } | undefined {
  try {
    return { value: (holder as Record<string, unknown>)[key] };
  } catch {
    return undefined;
  }
}

/** Reads JSON in UTF-8; integers beyond 2^53 become bigints. Empty bytes: undefined. */
export function decodeJson(json: Uint8Array): unknown {
  if (json.length === 0) return undefined;
  const text = decoder.decode(json);
  if (!LONG_INTEGER.test(text)) return JSON.parse(text);
  return JSON.parse(markBigIntegers(text), (_key, part: unknown) =>
    typeof part === "string" && part.startsWith(MARK) ? BigInt(part.slice(MARK.length)) : part,
  );
}

/** Puts each integer that a double cannot hold into a marked string. Passes over strings. */
function markBigIntegers(text: string): string {
  const token = /"|-?\d[\d.eE+-]*/g;
  const parts: string[] = [];
  let copied = 0;
  for (let found = token.exec(text); found; found = token.exec(text)) {
    if (found[0] === '"') {
      token.lastIndex = endOfString(text, token.lastIndex);
    } else if (/^-?\d+$/.test(found[0]) && !Number.isSafeInteger(Number(found[0]))) {
      parts.push(text.slice(copied, found.index), `"${MARK}${found[0]}"`);
      copied = token.lastIndex;
    }
  }
  parts.push(text.slice(copied));
  return parts.join("");
}

/** Returns the place after the quote that ends the string whose content begins at `start`. */
function endOfString(text: string, start: number): number {
  let quote = text.indexOf('"', start);
  while (quote >= 0) {
    let backslashes = 0;
    while (text[quote - 1 - backslashes] === "\\") backslashes++;
    if (backslashes % 2 === 0) return quote + 1;
    quote = text.indexOf('"', quote + 1);
  }
  return text.length;
}
