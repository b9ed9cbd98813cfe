/**
 * Validates text before it is sent. UTF-8 cannot represent half of a surrogate pair, which a JavaScript
 * string may contain.
 */

import { ScalarType, type DescField, type DescMessage, type Message } from "@bufbuild/protobuf";

const encoder = new TextEncoder();

/**
 * Types whose invalid text is replaced by U+FFFD on encoding, because it only describes something. This also
 * holds for all of OTLP.
 */
const DESCRIPTIONS: ReadonlySet<string> = new Set([
  "lightningstore.v1.Failure.type",
  "lightningstore.v1.Failure.message",
  "lightningstore.v1.PromptTemplate.template",
  "lightningstore.v1.SpanBatch.schema_url",
  "lightningstore.v1.SpanBatch.resource_schema_url",
]);

/**
 * Returns the path from a value to the first invalid text in it, "" if it is one itself, undefined if there
 * is none. Paths are built on the way back, so that valid values cost none.
 */
type Check = (value: unknown) => string | undefined;

/** Checks by message type; undefined if no text of the type can be invalid. */
const checks = new Map<string, Check | undefined>();

/**
 * Returns the path of the first text that names something, such as an id, and is not well formed. A repaired
 * name would name something else. Undefined if there is none.
 */
export function malformedName(schema: DescMessage, message: Message): string | undefined {
  const wrong = checkOf(schema)?.(message);
  return wrong?.slice(1); // without the dot before the first field
}

function checkOf(schema: DescMessage): Check | undefined {
  if (!checks.has(schema.typeName)) {
    checks.set(schema.typeName, undefined); // for messages that hold themselves
    checks.set(schema.typeName, makeCheck(schema));
  }
  return checks.get(schema.typeName);
}

function makeCheck(schema: DescMessage): Check | undefined {
  if (!schema.typeName.startsWith("lightningstore.")) return undefined;
  const fields = schema.fields.flatMap((field) => {
    const check = fieldCheck(field);
    return check ? [{ field, check }] : [];
  });
  if (fields.length === 0) return undefined;
  return (message) => {
    for (const { field, check } of fields) {
      const value = valueOf(message as Record<string, unknown>, field);
      const wrong = value === undefined ? undefined : check(value);
      if (wrong !== undefined) return `.${field.name}${wrong}`;
    }
    return undefined;
  };
}

function valueOf(message: Record<string, unknown>, field: DescField): unknown {
  if (!field.oneof) return message[field.localName];
  const chosen = message[field.oneof.localName] as { case?: string; value?: unknown };
  return chosen.case === field.localName ? chosen.value : undefined;
}

function fieldCheck(field: DescField): Check | undefined {
  const isText = !DESCRIPTIONS.has(`${field.parent.typeName}.${field.name}`);
  switch (field.fieldKind) {
    case "list": {
      const check = field.message ? checkOf(field.message) : isString(field) && textCheck;
      return check ? (list) => first((list as unknown[]).entries(), check) : undefined;
    }
    case "map": {
      const check = field.message ? checkOf(field.message) : isString(field) && textCheck;
      return (map) => first(Object.entries(map as object), check || undefined, textCheck);
    }
    case "message":
      return checkOf(field.message);
    case "scalar":
      return isString(field) && isText ? textCheck : undefined;
    case "enum":
      return undefined;
  }
}

function isString({ scalar }: DescField): boolean {
  return scalar === ScalarType.STRING;
}

const textCheck: Check = (text) => ((text as string).isWellFormed() ? undefined : "");

/** Searches the entries of a list or a map. */
function first(
  entries: Iterable<[string | number, unknown]>,
  check: Check | undefined,
  keyCheck?: Check,
): string | undefined {
  for (const [key, value] of entries) {
    const wrong = keyCheck?.(key) ?? check?.(value);
    if (wrong !== undefined) return `[${JSON.stringify(key)}]${wrong}`;
  }
  return undefined;
}

/** Returns the beginning of a text, well formed and with at most `bytes` bytes in UTF-8. */
export function cut(text: string, bytes: number): string {
  const { read } = encoder.encodeInto(text, new Uint8Array(bytes));
  return text.slice(0, read).toWellFormed();
}
