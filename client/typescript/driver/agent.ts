/** The scripted agent, controlled by the rollout's input. */

import { setTimeout as sleep } from "node:timers/promises";

import type { Tracer } from "@opentelemetry/api";

import { NonRetryable, type AgentResources, type Resource, type RunContext } from "../src/index.js";

interface Script {
  readonly spans?: readonly string[];
  readonly resource?: string;
  readonly wait?: boolean;
  readonly fail?: {
    readonly message: string;
    readonly retryable?: boolean;
    readonly attempts?: readonly number[];
  };
  readonly reward?: number;
}

/** Performs the actions of the input, in their order. */
export async function agent(
  input: unknown,
  resources: AgentResources,
  tracer: Tracer,
  context: RunContext,
): Promise<number | undefined> {
  const { spans = [], resource, wait, fail, reward } = (input ?? {}) as Script;
  for (const name of spans) tracer.startSpan(name).end();
  if (resource !== undefined) {
    const value = shown(resources[resource]);
    tracer.startSpan("resource", { attributes: { value } }).end();
  }
  if (wait) {
    await sleep(60_000, undefined, { signal: context.signal }).catch(() => undefined);
    tracer.startSpan("cancelled").end();
    context.throwIfCancelled();
  }
  if (fail && (fail.attempts?.includes(context.sequenceNumber) ?? true)) {
    throw fail.retryable === false ? new NonRetryable(fail.message) : new Error(fail.message);
  }
  return reward;
}

function shown(resource: Resource | undefined): string {
  switch (resource?.kind) {
    case "llm":
    case "proxyLlm":
      return resource.endpoint;
    case "promptTemplate":
      return resource.template;
    case "custom":
      return resource.json.text;
    default:
      return "";
  }
}
