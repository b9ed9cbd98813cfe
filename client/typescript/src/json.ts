/**
 * JSON with exact integers: beyond 2^53 they are bigints, in both directions. All other numbers are doubles,
 * as usual in JavaScript.
 */

import { messageOf } from "./failures.js";

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true });

/** A text that does not occur in JSON by accident. It marks a big integer while JSON is parsed or written. */
const MARK = `bigint:${crypto.randomUUID()}:`;
const WRITTEN = new RegExp(`"${MARK}(-?\\d+)"`, "g");
const LONG_INTEGER = /\d{16}/;
/** How JSON.stringify writes half of a surrogate pair, after any number of escaped backslashes. */
const HALF_PAIR = /(?<!\\)((?:\\\\)*)\\ud[89a-f][0-9a-f]{2}/g;

/** JSON text that is sent to the server byte for byte. */
export class RawJson {
  readonly #bytes: Uint8Array;

  /** @param json JSON as text or as UTF-8 bytes. The server rejects invalid JSON. */
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
 * Returns a value as JSON in UTF-8. A RawJson is returned unchanged. Bigints become integers at any depth,
 * and half of a surrogate pair becomes U+FFFD.
 *
 * @param name Name of the value in errors.
 * @throws TypeError with the path of the part that JSON cannot represent: undefined, functions, NaN,
 *     infinities, cyclic values, values that cannot be read. Also for bytes: pass JSON bytes as a RawJson.
 */
export function encodeJson(value: unknown, name = "value"): Uint8Array {
  if (value instanceof RawJson) return value.bytes;
  if (value instanceof Uint8Array) throw new TypeError(`${name}: pass JSON bytes as a RawJson`);
  const found = { big: false };
  const replace = (_key: string, part: unknown): unknown => {
    if (typeof part === "bigint") {
      found.big = true;
      return MARK + part.toString();
    }
    if (typeof part === "number" && !Number.isFinite(part)) {
      throw new TypeError(`${part} cannot be represented in JSON`);
    }
    return part;
  };
  let text = written(value, name, replace);
  if (text === undefined)
    throw new TypeError(`${name}: ${typeof value} cannot be represented in JSON`);
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

/** Maximum depth to which `culprit` searches a value. */
const MAX_LEVELS = 1_000;

/** Returns the path of the first part of a value that cannot be written; undefined if there is none. */
function culprit(value: unknown, path: string, above: readonly unknown[] = []): string | undefined {
  if (typeof value === "number") return Number.isFinite(value) ? undefined : path;
  if (typeof value !== "object" || value === null) return undefined;
  if (above.includes(value) || above.length > MAX_LEVELS) return path;
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

/** Parses JSON in UTF-8. Integers beyond 2^53 become bigints. Empty bytes give undefined. */
export function decodeJson(json: Uint8Array): unknown {
  if (json.length === 0) return undefined;
  const text = decoder.decode(json);
  if (!LONG_INTEGER.test(text)) return JSON.parse(text);
  return JSON.parse(markBigIntegers(text), (_key, part: unknown) =>
    typeof part === "string" && part.startsWith(MARK) ? BigInt(part.slice(MARK.length)) : part,
  );
}

/** Replaces each integer that a double cannot represent by a marked string. Skips strings. */
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

/** Returns the index after the closing quote of the string whose content begins at `start`. */
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
