/** Calls any method of the contract, from its descriptor. */

import {
  fromJson,
  toJson,
  type DescMessage,
  type DescMethod,
  type JsonValue,
  type Message,
} from "@bufbuild/protobuf";

import { Code, LightningStoreError, type CallOptions, type LightningStore } from "../src/index.js";
import { LightningStoreService, NamespaceService } from "../src/proto.js";
import { CALLS } from "./consumers.js";
import type { Command } from "./protocol.js";

type Unary = (request: Message, options: CallOptions) => Promise<Message>;
type ClientStream = (requests: Message[], options: CallOptions) => Promise<Message>;
type ServerStream = (request: Message, options: CallOptions) => AsyncIterable<Message>;

/** No two services have a method of the same name. */
const METHODS = [...LightningStoreService.methods, ...NamespaceService.methods];

/** Makes the call and returns the answer. */
export async function call(
  store: LightningStore,
  command: Command,
  signal: AbortSignal,
  onStarted: () => void,
): Promise<object> {
  const method = METHODS.find(({ name }) => name === command.method);
  if (!method) return { unsupported: `no method ${command.method ?? ""}` };
  const requests = (command.requests ?? []).map((json) => fromJson(method.input, json));
  const options = { signal, timeoutMs: (command.timeout ?? 30) * 1000, metadata: command.metadata };
  const responses: JsonValue[] = [];
  try {
    for await (const message of answers(store, method, requests, { ...options, onStarted })) {
      responses.push(toJson<DescMessage>(method.output, message));
    }
  } catch (error) {
    return { responses, error: errorOf(error) };
  }
  return { responses };
}

async function* answers(
  store: LightningStore,
  method: DescMethod,
  requests: Message[],
  options: CallOptions,
): AsyncGenerator<Message> {
  const stubs: Record<string, unknown> = { ...store.rpc, ...store.namespaceRpc };
  const stub = stubs[method.localName];
  const { onStarted, ...quiet } = options;
  if (method.methodKind === "client_streaming") {
    yield await (stub as ClientStream)(requests, quiet);
    return;
  }
  const [request] = requests;
  if (!request || requests.length !== 1) throw new Error(`${method.name} takes one request`);
  const made = CALLS[method.name];
  if (made) yield await made(store, request, quiet);
  else if (method.methodKind === "unary") yield await (stub as Unary)(request, quiet);
  else yield* (stub as ServerStream)(request, { ...quiet, onStarted });
}

/** Returns an error in the form of the driver protocol. */
export function errorOf(error: unknown): object {
  if (!(error instanceof LightningStoreError)) {
    return { code: Code[Code.UNKNOWN], message: String(error) };
  }
  const fields = error.fieldViolations.map(({ field }) => field);
  return {
    code: error.codeName,
    message: error.details,
    ...(error.reason && { reason: error.reason, domain: error.domain, metadata: error.metadata }),
    ...(fields.length > 0 && { fields }),
    ...(error.retryDelayMs !== undefined && { retry_delay: error.retryDelayMs / 1000 }),
  };
}
