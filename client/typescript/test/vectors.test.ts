/** The vectors of all clients, kept by this one: templates, a proxy's routes, rewards. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import {
  BasicTracerProvider,
  InMemorySpanExporter,
  SimpleSpanProcessor,
} from "@opentelemetry/sdk-trace-base";

import {
  baseUrl,
  emitReward,
  findFinalReward,
  formatPrompt,
  promptTemplate,
  proxyLlm,
  routed,
  TemplateError,
} from "../src/index.js";

interface Template {
  name: string;
  engine: "f_string" | "jinja" | "poml";
  template: string;
  variables: Record<string, unknown>;
  text?: string;
  error?: string;
  names?: string;
}

interface BaseUrl {
  name: string;
  endpoint: string;
  rollout_id: string | null;
  attempt_id: string | null;
  url?: string;
  error?: string;
}

interface Found {
  name: string;
  spans: { sequence_id: number; name: string; attributes: Record<string, unknown> }[];
  reward: number | null;
}

interface Emitted {
  name: string;
  reward: number | string | [string, number | string][];
  primary?: string;
  attributes?: Record<string, unknown>;
  error?: string;
}

/** Reads a file of cases; tests run from the client's folder. */
function vectors<T>(file: string, key = "cases"): T[] {
  const text = readFileSync(`../../tests/conformance/vectors/${file}`, "utf8");
  return (JSON.parse(text) as Record<string, T[]>)[key] ?? assert.fail(`${file} has no ${key}`);
}

const KINDS = {
  missing: "missing",
  malformed: "malformed",
  refused: "refused",
  no_library: "engine",
};

for (const one of vectors<Template>("templates.json")) {
  test(`${one.engine}: ${one.name}`, () => {
    const engine = one.engine === "f_string" ? "f-string" : one.engine;
    const format = () => formatPrompt(promptTemplate(one.template, engine), one.variables);
    if (one.text !== undefined) {
      assert.equal(format(), one.text);
      return;
    }
    assert.throws(format, (error) => {
      assert(error instanceof TemplateError, String(error));
      const anyError = engine === "jinja" && one.error !== "missing";
      if (!anyError) assert.equal(error.kind, KINDS[one.error as keyof typeof KINDS]);
      assert.match(error.message, new RegExp(one.names ?? ""));
      return true;
    });
  });
}

test("Jinja has no functions but its own, bounded ranges, and whole large numbers", () => {
  const jinja = (text: string, values = {}) => formatPrompt(promptTemplate(text, "jinja"), values);
  assert.throws(() => jinja("{{ f() }}", { f: () => "called" }));
  assert.equal(jinja("{% for i in range(1, 4) %}{{ i }}{% endfor %}"), "123");
  assert.throws(() => jinja("{{ range(1000000000) | length }}"), /100000 items/);
  assert.equal(jinja("{{ n }}", { n: 2n ** 60n }), "1152921504606846976");
  assert.throws(() => jinja("{% if nope %}{% endif %}"), /missing value: nope/);
});

for (const one of vectors<BaseUrl>("base_urls.json")) {
  test(`base URL: ${one.name}`, () => {
    const make = () =>
      baseUrl(proxyLlm(one), one.rollout_id ?? undefined, one.attempt_id ?? undefined);
    if (one.url === undefined) assert.throws(make, new RegExp(one.error ?? "."));
    else assert.equal(make(), one.url);
  });
}

test("an endpoint is routed to an attempt or to nothing", () => {
  const proxy = proxyLlm({ endpoint: "http://h/v1", model: "m" });
  const { kind, endpoint, model } = routed(proxy, "r", "a");
  assert.deepEqual([kind, endpoint, model], ["llm", "http://h/rollout/r/attempt/a/v1", "m"]);
  assert.throws(() => routed(proxy, "", ""), TypeError);
});

for (const one of vectors<Found>("rewards.json", "find_final_reward")) {
  test(`final reward: ${one.name}`, () => {
    const spans = one.spans.map(({ sequence_id, ...span }) => ({
      ...span,
      sequenceId: BigInt(sequence_id),
    }));
    assert.equal(findFinalReward(spans) ?? null, one.reward);
  });
}

for (const one of vectors<Emitted>("rewards.json", "emit_reward")) {
  test(`written reward: ${one.name}`, () => {
    const exporter = new InMemorySpanExporter();
    const provider = new BasicTracerProvider({
      spanProcessors: [new SimpleSpanProcessor(exporter)],
    });
    const { primary } = one;
    const reward = Array.isArray(one.reward)
      ? Object.fromEntries(
          one.reward
            .map(([name, value]) => [name, Number(value)] as const)
            .sort(([a], [b]) => Number(b === primary) - Number(a === primary)),
        )
      : Number(one.reward);
    const emit = () => {
      emitReward(reward, provider.getTracer("t"));
    };
    if (one.error !== undefined) {
      assert.throws(emit, new RegExp(one.error));
      assert.equal(exporter.getFinishedSpans().length, 0);
      return;
    }
    emit();
    const [span, ...more] = exporter.getFinishedSpans();
    assert.deepEqual([span?.name, more.length], ["agentlightning.annotation", 0]);
    assert.deepEqual(span?.attributes, one.attributes);
  });
}
