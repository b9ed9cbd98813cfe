/** Filling in prompt templates. */

import * as library from "@huggingface/jinja";

import { decodeJson, encodeJson } from "./json.js";
import type { PromptTemplate } from "./resources.js";

/**
 * Why a template cannot be filled in: a value is missing, the text is not a valid template of its engine, it
 * does something forbidden, or this client does not support the engine.
 */
export type TemplateErrorKind = "missing" | "malformed" | "refused" | "engine";

/** A template that cannot be filled in. */
export class TemplateError extends Error {
  override readonly name = "TemplateError";

  constructor(
    readonly kind: TemplateErrorKind,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/**
 * Fills in a template and returns the text. Templates come from the store and are not trusted: an f-string
 * may only name values, and Jinja is interpreted without access to objects, functions or files of the
 * program.
 *
 * @param values Values that JSON can represent.
 * @throws TemplateError also for POML, which has no library here.
 * @throws TypeError for values that JSON cannot represent.
 */
export function formatPrompt(
  { template, engine }: PromptTemplate,
  values: Readonly<Record<string, unknown>> = {},
): string {
  if (engine === "f-string") return fillFString(template, values);
  if (engine === "jinja") return fillJinja(template, values);
  throw new TemplateError("engine", `this client supports f-strings and Jinja, not ${engine}`);
}

/** A doubled brace, a placeholder, or a single brace. */
const PLACES = /\{\{|\}\}|\{([^}]*)\}|[{}]/g;

function fillFString(template: string, values: Readonly<Record<string, unknown>>): string {
  return template.replace(PLACES, (found: string, name: string | undefined) => {
    if (found === "{{" || found === "}}") return found.charAt(0);
    if (name === undefined) throw new TemplateError("malformed", `unmatched ${found}`);
    if (/[.[\]:!{]/.test(name)) {
      throw new TemplateError("refused", `${found}: only names of values are supported`);
    }
    if (/^\d*$/.test(name))
      throw new TemplateError("malformed", `${found} is not the name of a value`);
    if (!Object.hasOwn(values, name)) {
      throw new TemplateError("missing", `missing value: ${name}`);
    }
    return String(values[name]);
  });
}

/** The parts of the library's nodes that are read here. */
interface Shape {
  readonly type?: string;
  readonly value?: unknown;
  readonly operand?: unknown;
  readonly filter?: Shape;
  readonly test?: Shape;
  readonly callee?: Shape;
  readonly property?: Shape;
}

/** The library's type of evaluated values. */
interface Value {
  readonly type: string;
  readonly value: unknown;
}

interface Scope {
  set(name: string, value: unknown): unknown;
}

// Node's module resolution cannot resolve the library's types. These are the parts that are used.
const { Environment, Interpreter, parse, tokenize } = library as unknown as {
  Environment: new () => Scope;
  Interpreter: new (scope: Scope) => {
    evaluate(node: Shape | undefined, scope: Scope): Value;
    run(program: unknown): Value;
  };
  parse: (tokens: unknown) => unknown;
  tokenize: (text: string, options: Readonly<Record<string, boolean>>) => unknown;
};

/** A Jinja interpreter in which a missing value is an error, unless the template tests for it. */
class Strict extends Interpreter {
  readonly #mayMiss: ReadonlySet<unknown>;

  constructor(scope: Scope, mayMiss: ReadonlySet<unknown>) {
    super(scope);
    this.#mayMiss = mayMiss;
  }

  override evaluate(node: Shape | undefined, scope: Scope): Value {
    const value = super.evaluate(node, scope);
    const isName = node?.type === "Identifier" || node?.type === "MemberExpression";
    if (isName && value.type === "UndefinedValue" && !this.#mayMiss.has(node)) {
      throw new TemplateError("missing", `missing value: ${nameOf(node)}`);
    }
    return value;
  }
}

function nameOf(node: Shape): string {
  return String(node.property ? node.property.value : node.value);
}

/** Adds the names that a template tests for existence: `x is defined`, `x | default(…)`. */
function collectMayMiss(node: unknown, found: Set<unknown>): void {
  if (typeof node !== "object" || node === null) return;
  const { type, operand, filter, test } = node as Shape;
  const asks =
    (type === "TestExpression" && /^(un)?defined$/.test(String(test?.value))) ||
    (type === "FilterExpression" && (filter?.callee ?? filter)?.value === "default");
  if (asks) found.add(operand);
  for (const child of Object.values(node)) collectMayMiss(child, found);
}

/** Maximum number of items of a range, as in Python's sandbox. */
const MAX_ITEMS = 100_000;

function range(start: number, stop?: number, step = 1): number[] {
  const [from, to] = typeof stop === "number" ? [start, stop] : [0, start];
  const length = Math.max(0, Math.ceil((to - from) / step));
  if (!(length <= MAX_ITEMS)) {
    throw new TemplateError("refused", `a range has at most ${MAX_ITEMS} items`);
  }
  return Array.from({ length }, (_, i) => from + i * step);
}

function fillJinja(template: string, values: Readonly<Record<string, unknown>>): string {
  // Conversion to JSON and back removes functions.
  const plain = decodeJson(encodeJson(values)) as Record<string, unknown>;
  let program: unknown;
  try {
    // The library removes the last line break.
    const tokens = tokenize(`${template}\n`, { lstrip_blocks: false, trim_blocks: false });
    program = parse(tokens);
  } catch (error) {
    throw new TemplateError("malformed", `not valid Jinja: ${String(error)}`, { cause: error });
  }
  const mayMiss = new Set<unknown>();
  collectMayMiss(program, mayMiss);
  const scope = new Environment();
  const names = { true: true, false: false, none: null, True: true, False: false, None: null };
  for (const [name, value] of Object.entries({ ...names, range, ...plain })) {
    scope.set(name, withoutBig(value));
  }
  try {
    return String(new Strict(scope, mayMiss).run(program).value);
  } catch (error) {
    if (error instanceof TemplateError) throw error;
    throw new TemplateError("malformed", `Jinja failed: ${String(error)}`, { cause: error });
  }
}

/** The library does not support bigint; they become text. */
function withoutBig(value: unknown): unknown {
  if (typeof value === "bigint") return String(value);
  if (Array.isArray(value)) return value.map(withoutBig);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, withoutBig(item)]));
}
