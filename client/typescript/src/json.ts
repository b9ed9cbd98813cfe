/**
 * JSON whose integers stay unharmed: beyond 2^53 they are bigints, in both directions. All other numbers are
 * doubles, as everywhere in JavaScript.
 */

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true });

/** A text that no JSON holds by accident: stands for a big integer while JSON is read or written. */
const MARK = `bigint:${crypto.randomUUID()}:`;
const WRITTEN = new RegExp(`"${MARK}(-?\\d+)"`, "g");
const LONG_INTEGER = /\d{16}/;

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
 * Returns a value as JSON in UTF-8. A RawJson stays as it is; bigints become integers at any depth. Throws a
 * TypeError for what is no JSON: undefined, functions, NaN and infinities,
 * and for bytes: JSON that is bytes already is a RawJson.
 */
export function encodeJson(value: unknown): Uint8Array {
  if (value instanceof RawJson) return value.bytes;
  if (value instanceof Uint8Array)
    throw new TypeError("give JSON that is bytes already as RawJson");
  const found = { big: false };
  const text = JSON.stringify(value, (_key, part: unknown) => {
    if (typeof part === "bigint") {
      found.big = true;
      return MARK + part.toString();
    }
    if (typeof part === "number" && !Number.isFinite(part)) {
      throw new TypeError(`${part} has no place in JSON`);
    }
    return part;
  }) as string | undefined;
  if (text === undefined) throw new TypeError(`${typeof value} has no place in JSON`);
  return encoder.encode(found.big ? text.replace(WRITTEN, "$1") : text);
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
