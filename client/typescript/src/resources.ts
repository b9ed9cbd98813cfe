/** Resources of agents: endpoints, prompts, any other value. */

import { create } from "@bufbuild/protobuf";

import {
  ResourceSchema,
  TemplateEngine,
  type LLM as LlmMessage,
  type Resource as ResourceMessage,
} from "./gen/lightningstore/v1/resources_pb.js";
import { decodeJson, encodeJson, RawJson } from "./json.js";

/** Fields of a language model endpoint. */
export interface LlmFields {
  /** Base URL, for example "http://host:8000/v1". */
  readonly endpoint: string;
  /** Name of the model at the endpoint. */
  readonly model: string;
  /** API key of the endpoint. Empty if none is needed. */
  readonly apiKey: string;
  /** Sampling parameters, a JSON object. */
  readonly samplingParameters: Readonly<Record<string, unknown>>;
}

/** A language model endpoint. */
export interface Llm extends LlmFields {
  readonly kind: "llm";
}

/** A language model endpoint behind a proxy that assigns each call to its attempt. */
export interface ProxyLlm extends LlmFields {
  readonly kind: "proxyLlm";
}

/** A template that agents fill in. */
export interface PromptTemplate {
  readonly kind: "promptTemplate";
  readonly template: string;
  /** Syntax of the template. "unknown": a syntax that this client does not know. */
  readonly engine: "f-string" | "jinja" | "poml" | "unknown";
}

/** A resource of a kind defined by the caller: weights, a checkpoint, or any other value. */
export interface CustomResource {
  readonly kind: "custom";
  /** Kind of the resource, chosen by the caller. May be empty. */
  readonly type: string;
  /** Any JSON value. */
  readonly value: unknown;
  /** The value as JSON, byte for byte as stored. */
  readonly json: RawJson;
}

/** A resource of a kind that this client does not know. */
export interface UnknownResource {
  readonly kind: "unknown";
  readonly message: ResourceMessage;
}

/** A resource; `kind` tells which. */
export type Resource = Llm | ProxyLlm | PromptTemplate | CustomResource | UnknownResource;

type LlmInit = Pick<LlmFields, "endpoint"> & Partial<LlmFields>;

const DEFAULTS = { model: "", apiKey: "", samplingParameters: {} };

/** Returns a language model endpoint. Only the URL is required. */
export function llm(fields: LlmInit): Llm {
  return { ...DEFAULTS, ...fields, kind: "llm" };
}

/** Returns an endpoint whose URL is routed per attempt. Only the URL is required. */
export function proxyLlm(fields: LlmInit): ProxyLlm {
  return { ...DEFAULTS, ...fields, kind: "proxyLlm" };
}

/** Returns a prompt template, by default in the syntax of Python's str.format. */
export function promptTemplate(
  template: string,
  engine: "f-string" | "jinja" | "poml" = "f-string",
): PromptTemplate {
  return { kind: "promptTemplate", template, engine };
}

/**
 * Returns a resource with any JSON value, or a RawJson.
 *
 * @throws TypeError for a value that JSON cannot represent.
 */
export function custom(value: unknown, type = ""): CustomResource {
  const json = new RawJson(encodeJson(value));
  return { kind: "custom", type, value: decodeJson(json.bytes), json };
}

/**
 * Returns the base URL of a proxy for the calls of one attempt: the endpoint with
 * "/rollout/{rolloutId}/attempt/{attemptId}" before a trailing "/v1", or at its end if there is none. Without
 * ids it returns the endpoint unchanged.
 *
 * @throws TypeError for one id without the other.
 */
export function baseUrl(
  { endpoint }: Pick<ProxyLlm, "endpoint">,
  rolloutId = "",
  attemptId = "",
): string {
  if (!rolloutId && !attemptId) return endpoint;
  if (!rolloutId || !attemptId) {
    throw new TypeError("set both the rollout id and the attempt id, or neither");
  }
  const base = endpoint.replace(/\/+$/, "");
  const tail = base.endsWith("/v1") ? "/v1" : "";
  const head = base.slice(0, base.length - tail.length);
  return `${head}/rollout/${escaped(rolloutId)}/attempt/${escaped(attemptId)}${tail}`;
}

/** Escapes every character that is not unreserved: encodeURIComponent keeps some that proxies interpret. */
function escaped(id: string): string {
  return encodeURIComponent(id).replace(
    /[!'()*]/g,
    (mark) => `%${mark.charCodeAt(0).toString(16).toUpperCase()}`,
  );
}

/**
 * Returns the endpoint of one attempt, see `baseUrl`.
 *
 * @throws TypeError for an empty id.
 */
export function routed(proxy: ProxyLlm, rolloutId: string, attemptId: string): Llm {
  if (!rolloutId || !attemptId) throw new TypeError("a rollout id and an attempt id are required");
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

/** Returns a resource as a message of the contract. */
export function toMessage(resource: Resource): ResourceMessage {
  switch (resource.kind) {
    case "llm":
      return create(ResourceSchema, { kind: { case: "llm", value: llmInit(resource) } });
    case "proxyLlm":
      return create(ResourceSchema, {
        kind: { case: "proxyLlm", value: { llm: llmInit(resource) } },
      });
    case "promptTemplate": {
      if (resource.engine === "unknown")
        throw new TypeError("the template engine is unknown: set f-string, jinja or poml");
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

/** Returns a resource from a message of the contract. */
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
