/** What agents work with: endpoints, prompts, anything. */

import { create } from "@bufbuild/protobuf";

import {
  ResourceSchema,
  TemplateEngine,
  type LLM as LlmMessage,
  type Resource as ResourceMessage,
} from "./gen/lightningstore/v1/resources_pb.js";
import { decodeJson, encodeJson, RawJson } from "./json.js";

/** What is known of a language model endpoint. */
export interface LlmFields {
  /** Base URL, "http://host:8000/v1" for instance. */
  readonly endpoint: string;
  /** Name of the model at the endpoint. */
  readonly model: string;
  /** Key for the endpoint. Empty: none needed. */
  readonly apiKey: string;
  /** Sampling parameters, a JSON object. */
  readonly samplingParameters: Readonly<Record<string, unknown>>;
}

/** A language model endpoint. */
export interface Llm extends LlmFields {
  readonly kind: "llm";
}

/** A language model endpoint behind a proxy that files each call under its attempt. */
export interface ProxyLlm extends LlmFields {
  readonly kind: "proxyLlm";
}

/** A template that agents fill in. */
export interface PromptTemplate {
  readonly kind: "promptTemplate";
  readonly template: string;
  /** How it is filled in. "unknown": in a way that came after this client. */
  readonly engine: "f-string" | "jinja" | "poml" | "unknown";
}

/** A resource of the caller's own kind: weights, a checkpoint, anything. */
export interface CustomResource {
  readonly kind: "custom";
  /** What it is, in the caller's words. May be empty. */
  readonly type: string;
  /** Any JSON value. */
  readonly value: unknown;
  /** The same as JSON, byte for byte as it was given. */
  readonly json: RawJson;
}

/** A resource of a kind that came after this client. */
export interface UnknownResource {
  readonly kind: "unknown";
  readonly message: ResourceMessage;
}

/** A resource: tell them apart by `kind`. */
export type Resource = Llm | ProxyLlm | PromptTemplate | CustomResource | UnknownResource;

type LlmInit = Pick<LlmFields, "endpoint"> & Partial<LlmFields>;

const DEFAULTS = { model: "", apiKey: "", samplingParameters: {} };

/** Makes a language model endpoint; all but the URL may be left out. */
export function llm(fields: LlmInit): Llm {
  return { ...DEFAULTS, ...fields, kind: "llm" };
}

/** Makes an endpoint whose URL is routed per attempt; all but the URL may be left out. */
export function proxyLlm(fields: LlmInit): ProxyLlm {
  return { ...DEFAULTS, ...fields, kind: "proxyLlm" };
}

/** Makes a prompt template, by default one of Python's str.format. */
export function promptTemplate(
  template: string,
  engine: "f-string" | "jinja" | "poml" = "f-string",
): PromptTemplate {
  return { kind: "promptTemplate", template, engine };
}

/** Makes a resource of any JSON value, or of a RawJson. Throws a TypeError for what is no JSON. */
export function custom(value: unknown, type = ""): CustomResource {
  const json = new RawJson(encodeJson(value));
  return { kind: "custom", type, value: decodeJson(json.bytes), json };
}

/**
 * Returns the base URL of a proxy for the calls of one attempt: "/rollout/{rolloutId}/attempt/{attemptId}"
 * stands before a trailing "/v1" of the endpoint, or at its end where there is none. Without ids it is the
 * endpoint itself. Throws a TypeError for one id without the other.
 */
export function baseUrl(
  { endpoint }: Pick<ProxyLlm, "endpoint">,
  rolloutId = "",
  attemptId = "",
): string {
  if (!rolloutId && !attemptId) return endpoint;
  if (!rolloutId || !attemptId) {
    throw new TypeError("both a rollout id and an attempt id are wanted, or none");
  }
  const base = endpoint.replace(/\/+$/, "");
  const tail = base.endsWith("/v1") ? "/v1" : "";
  const head = base.slice(0, base.length - tail.length);
  return `${head}/rollout/${escaped(rolloutId)}/attempt/${escaped(attemptId)}${tail}`;
}

/** Escapes all that is not plain: some of what encodeURIComponent leaves means something to some proxies. */
function escaped(id: string): string {
  return encodeURIComponent(id).replace(
    /[!'()*]/g,
    (mark) => `%${mark.charCodeAt(0).toString(16).toUpperCase()}`,
  );
}

/** Returns the endpoint of one attempt, see `baseUrl`. Throws a TypeError for an id that is empty. */
export function routed(proxy: ProxyLlm, rolloutId: string, attemptId: string): Llm {
  if (!rolloutId || !attemptId) throw new TypeError("a rollout id and an attempt id are wanted");
  return { ...proxy, kind: "llm", endpoint: baseUrl(proxy, rolloutId, attemptId) };
}

const ENGINES = {
  "f-string": TemplateEngine.F_STRING,
  jinja: TemplateEngine.JINJA,
  poml: TemplateEngine.POML,
} as const;

const ENGINE_NAMES = new Map<TemplateEngine, PromptTemplate["engine"]>(
  Object.entries(ENGINES).map(([name, number]) => [number, name as PromptTemplate["engine"]]),
);

/** Returns a resource as message of the contract. */
export function toMessage(resource: Resource): ResourceMessage {
  switch (resource.kind) {
    case "llm":
      return create(ResourceSchema, { kind: { case: "llm", value: llmInit(resource) } });
    case "proxyLlm":
      return create(ResourceSchema, {
        kind: { case: "proxyLlm", value: { llm: llmInit(resource) } },
      });
    case "promptTemplate": {
      if (resource.engine === "unknown") throw new TypeError("a template engine is needed");
      const { template } = resource;
      const engine = ENGINES[resource.engine];
      return create(ResourceSchema, {
        kind: { case: "promptTemplate", value: { template, engine } },
      });
    }
    case "custom": {
      const { type, json } = resource;
      return create(ResourceSchema, {
        kind: { case: "custom", value: { type, valueJson: json.bytes } },
      });
    }
    case "unknown":
      return resource.message;
  }
}

function llmInit(fields: LlmFields) {
  const { endpoint, model, apiKey, samplingParameters } = fields;
  return { endpoint, model, apiKey, samplingParametersJson: encodeJson(samplingParameters) };
}

/** Reads a message of the contract. */
export function fromMessage(message: ResourceMessage): Resource {
  const { kind } = message;
  switch (kind.case) {
    case "llm":
      return llm(llmFields(kind.value));
    case "proxyLlm":
      return kind.value.llm ? proxyLlm(llmFields(kind.value.llm)) : { kind: "unknown", message };
    case "promptTemplate": {
      const engine = ENGINE_NAMES.get(kind.value.engine) ?? "unknown";
      return { kind: "promptTemplate", template: kind.value.template, engine };
    }
    case "custom":
      return custom(new RawJson(kind.value.valueJson), kind.value.type);
    default:
      return { kind: "unknown", message };
  }
}

function llmFields(message: LlmMessage): LlmFields {
  const { endpoint, model, apiKey } = message;
  const parameters = decodeJson(message.samplingParametersJson) ?? {};
  return { endpoint, model, apiKey, samplingParameters: parameters as Record<string, unknown> };
}
