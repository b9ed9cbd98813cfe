/** gRPC calls from the contract's descriptors, with promises, async iterators and AbortSignals. */

import { randomUUID } from "node:crypto";
import { once, setMaxListeners } from "node:events";

import {
  create,
  fromBinary,
  toBinary,
  type DescMessage,
  type DescMethod,
  type DescService,
  type Message,
  type MessageInitShape,
  type MessageShape,
} from "@bufbuild/protobuf";
import {
  Client,
  connectivityState,
  Metadata,
  type CallOptions as GrpcOptions,
  type StatusObject,
} from "@grpc/grpc-js";

import { Backoff, pause } from "./backoff.js";
import { channelOptions, NAMESPACE_KEY, resolveEndpoint, type ConnectOptions } from "./channel.js";
import { Contact } from "./contact.js";
import { Code, LightningStoreError, toStoreError } from "./errors.js";
import { messageOf } from "./failures.js";
import type { NamespaceService } from "./gen/lightningstore/v1/namespace_pb.js";
import { LightningStoreService } from "./gen/lightningstore/v1/service_pb.js";
import { Owner } from "./owner.js";
import { malformedName } from "./text.js";

/** Options of a single call. */
export interface CallOptions {
  /**
   * Cancels the call when it is aborted: the call fails with code CANCELLED and the signal's reason as cause.
   */
  readonly signal?: AbortSignal | undefined;
  /** Deadline in milliseconds. Default: the client's for unary calls, none for streams. */
  readonly timeoutMs?: number | undefined;
  /** Metadata to send with the call. */
  readonly metadata?: Readonly<Record<string, string>> | undefined;
  /** Called when the server has accepted the call, that is, when its initial metadata has arrived. */
  readonly onStarted?: (() => void) | undefined;
}

type Requests<I extends DescMessage> =
  Iterable<MessageInitShape<I>> | AsyncIterable<MessageInitShape<I>>;

interface Kinds<I extends DescMessage, O extends DescMessage> {
  unary: (request: MessageInitShape<I>, options?: CallOptions) => Promise<MessageShape<O>>;
  server_streaming: (
    request: MessageInitShape<I>,
    options?: CallOptions,
  ) => AsyncGenerator<MessageShape<O>, void, undefined>;
  client_streaming: (requests: Requests<I>, options?: CallOptions) => Promise<MessageShape<O>>;
}

interface Described<I, O> {
  readonly methodKind: string;
  readonly input: I;
  readonly output: O;
}

/** A typed function for each method of a service, by its name in lowerCamelCase. */
export type StubsOf<Service extends { readonly method: object }> = {
  readonly [Name in keyof Service["method"]]: Service["method"][Name] extends Described<
    infer I extends DescMessage,
    infer O extends DescMessage
  >
    ? Service["method"][Name]["methodKind"] extends keyof Kinds<I, O>
      ? Kinds<I, O>[Service["method"][Name]["methodKind"]]
      : never
    : never;
};

/** A typed function for each call of the store. */
export type Stubs = StubsOf<typeof LightningStoreService>;

/** A typed function for each call about namespaces. */
export type NamespaceStubs = StubsOf<typeof NamespaceService>;

/** Maximum number of tries of a call. */
const MAX_TRIES = 5;

interface Cancellable {
  cancel: () => void;
}

/** A connection, opened with the first call. */
export class Connection {
  readonly #client: Client;
  readonly #owner: Owner;
  readonly #contact: Contact;
  readonly #metadata: Readonly<Record<string, string>>;
  readonly #timeoutMs: number;
  readonly #open = new Set<Cancellable>();
  readonly #closing = new AbortController();

  /** `contact` replaces the one of the connection, for tests. */
  constructor(options: ConnectOptions, contact?: Contact) {
    const endpoint = resolveEndpoint(options);
    const connect = (target: string): Client =>
      new Client(target, endpoint.credentials, channelOptions());
    this.#client = connect(endpoint.target);
    this.#owner = new Owner(connect);
    const channel = this.#client.getChannel();
    const isConnected = (): boolean =>
      channel.getConnectivityState(false) === connectivityState.READY;
    this.#contact = contact ?? new Contact(endpoint.target, isConnected);
    this.#metadata = endpoint.metadata;
    this.#timeoutMs = options.timeoutMs ?? 30_000;
  }

  /** Closes the connection. Calls in progress fail with CANCELLED. No-op if closed already. */
  close(): void {
    this.#closing.abort();
    this.#contact.end();
    for (const call of this.#open) call.cancel();
    this.#owner.close();
    this.#client.close();
  }

  /** Returns a function for each call of the store. */
  stubs(): Stubs {
    return this.stubsOf(LightningStoreService);
  }

  /** Returns a function for each method of a service. */
  stubsOf<Service extends DescService>(service: Service): StubsOf<Service> {
    const stubs = service.methods.map((method) => [method.localName, this.#stub(method)] as const);
    return Object.fromEntries(stubs) as StubsOf<Service>;
  }

  #stub(method: DescMethod): unknown {
    switch (method.methodKind) {
      case "unary":
        return (request: MessageInitShape<DescMessage>, options: CallOptions = {}) =>
          this.#unary(method, request, options);
      case "server_streaming":
        return (request: MessageInitShape<DescMessage>, options: CallOptions = {}) =>
          this.#serverStream(method, request, options);
      case "client_streaming":
        return (requests: Requests<DescMessage>, options: CallOptions = {}) =>
          this.#clientStream(method, requests, options);
      default:
        return () => {
          throw new LightningStoreError(
            Code.UNIMPLEMENTED,
            `${method.name} streams in both directions, which is not supported`,
          );
        };
    }
  }

  /**
   * Makes a call, and retries it if the connection or the server was lost; gRPC's own retries depend on
   * status codes only, which are not sufficient. Retries are safe: reads change nothing, and the server
   * recognises repeated writes by their request id. Streams are resumed by their callers.
   */
  async #unary(
    method: DescMethod,
    init: MessageInitShape<DescMessage>,
    options: CallOptions,
  ): Promise<Message> {
    const request = encode(method, withRequestId(create(method.input, init)));
    const until = Date.now() + (options.timeoutMs ?? this.#timeoutMs);
    const ends = [this.#closing.signal, ...(options.signal ? [options.signal] : [])];
    const backoff = new Backoff(100, 2_000);
    for (let tries = 1; ; tries++) {
      const used = this.#ownerFor(options);
      try {
        return await this.#once(used, method, request, until, options);
      } catch (error) {
        const failure = toStoreError(error, options.signal);
        if (this.#owner.failed(used, failure)) continue;
        const delay = backoff.next(failure.retryDelayMs);
        const isLast = tries === MAX_TRIES || Date.now() + delay >= until;
        if (failure.code !== Code.UNAVAILABLE || isLast) throw failure;
        await pause(delay, AbortSignal.any(ends));
      }
    }
  }

  /** The connection to the owner of the namespace of a call. Undefined: use the first connection. */
  #ownerFor(options: CallOptions): Client | undefined {
    return options.metadata?.[NAMESPACE_KEY] === undefined ? this.#owner.current : undefined;
  }

  #once(
    used: Client | undefined,
    method: DescMethod,
    request: Buffer,
    until: number,
    options: CallOptions,
  ): Promise<Message> {
    return new Promise((resolve, reject) => {
      this.#check(options.signal);
      const call = (used ?? this.#client).makeUnaryRequest(
        path(method),
        asItIs,
        deserializer(method.output),
        request,
        this.#headers(options),
        { deadline: until },
        (error, answer) => {
          done();
          if (error || !answer) reject(toStoreError(error, options.signal));
          else resolve(answer);
        },
      );
      const done = this.#track(call, options);
      this.#look(used, call, options);
    });
  }

  /** Looks at the trailers of a call over the first connection. */
  #look(used: Client | undefined, call: NodeJS.EventEmitter, options: CallOptions): void {
    if (used !== undefined || options.metadata?.[NAMESPACE_KEY] !== undefined) return;
    call.once("status", (status: StatusObject) => {
      this.#owner.learn(status.metadata);
    });
  }

  async *#serverStream(
    method: DescMethod,
    init: MessageInitShape<DescMessage>,
    options: CallOptions,
  ): AsyncGenerator<Message, void, undefined> {
    this.#check(options.signal);
    const used = this.#ownerFor(options);
    const call = (used ?? this.#client).makeServerStreamRequest(
      path(method),
      asItIs,
      deserializer(method.output),
      encode(method, create(method.input, init)),
      this.#headers(options),
      deadline(options.timeoutMs),
    );
    const done = this.#track(call, options);
    // Errors after the reader has finished are ignored.
    call.on("error", () => undefined);
    try {
      for await (const answer of call) yield answer as Message;
    } catch (error) {
      const failure = toStoreError(error, options.signal);
      this.#owner.failed(used, failure); // the caller resumes over the first connection
      throw failure;
    } finally {
      done();
      call.cancel();
    }
  }

  #clientStream(
    method: DescMethod,
    requests: Requests<DescMessage>,
    options: CallOptions,
  ): Promise<Message> {
    return new Promise((resolve, reject) => {
      this.#check(options.signal);
      const used = this.#ownerFor(options);
      const call = (used ?? this.#client).makeClientStreamRequest(
        path(method),
        asItIs,
        deserializer(method.output),
        this.#headers(options),
        deadline(options.timeoutMs),
        (error, answer) => {
          done();
          if (!error && answer) {
            resolve(answer);
            return;
          }
          const failure = toStoreError(error, options.signal);
          this.#owner.failed(used, failure);
          reject(failure);
        },
      );
      const done = this.#track(call, options);
      this.#look(used, call, options);
      call.on("error", () => undefined);
      send(call, requests, (init) => encode(method, create(method.input, init))).catch(
        (error: unknown) => {
          reject(error instanceof Error ? error : new Error(String(error)));
          call.cancel();
        },
      );
    });
  }

  #check(signal: AbortSignal | undefined): void {
    if (this.#closing.signal.aborted) {
      throw new LightningStoreError(Code.CANCELLED, "the client is closed");
    }
    if (signal?.aborted) {
      throw new LightningStoreError(Code.CANCELLED, "aborted", { cause: signal.reason });
    }
  }

  /** Registers a running call, so that close and abort end it. Returns a function that unregisters it. */
  #track(call: Cancellable & NodeJS.EventEmitter, options: CallOptions): () => void {
    const cancel = (): void => {
      call.cancel();
    };
    this.#open.add(call);
    if (!this.#contact.isOver) {
      this.#contact.called();
      call.once("metadata", this.#contact.end);
    }
    if (options.signal) {
      setMaxListeners(0, options.signal); // one signal for many calls is no leak
      options.signal.addEventListener("abort", cancel, { once: true });
    }
    if (options.onStarted) call.once("metadata", options.onStarted);
    return () => {
      this.#open.delete(call);
      options.signal?.removeEventListener("abort", cancel);
    };
  }

  #headers(options: CallOptions): Metadata {
    const headers = new Metadata();
    for (const [key, value] of Object.entries({ ...this.#metadata, ...options.metadata })) {
      headers.set(key, value);
    }
    return headers;
  }
}

interface Writer extends NodeJS.EventEmitter {
  write: (message: Buffer) => boolean;
  end: () => void;
  readonly destroyed: boolean;
}

/**
 * Writes requests as fast as the server reads them. Returns early, without an error, if the call has ended.
 */
async function send<T>(
  call: Writer,
  requests: Iterable<T> | AsyncIterable<T>,
  make: (init: T) => Buffer,
): Promise<void> {
  const ended = new AbortController();
  call.once("status", () => {
    ended.abort();
  });
  for await (const request of requests) {
    if (ended.signal.aborted) return;
    if (!call.write(make(request))) {
      await once(call, "drain", { signal: ended.signal }).catch(() => undefined);
    }
  }
  call.end();
}

function path(method: DescMethod): string {
  return `/${method.parent.typeName}/${method.name}`;
}

/**
 * Returns the bytes of a request. Half of a surrogate pair becomes U+FFFD in text that only describes
 * something. In text that names something it is an error, as is a value that is invalid for its field.
 */
function encode({ input }: DescMethod, message: Message): Buffer {
  const field = malformedName(input, message);
  if (field !== undefined) {
    const description =
      "must not contain half of a surrogate pair, because it names something and is not repaired";
    throw new LightningStoreError(Code.INVALID_ARGUMENT, `${field} ${description}`, {
      fieldViolations: [{ field, description }],
    });
  }
  try {
    const bytes = toBinary(input, message);
    return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  } catch (error) {
    throw new LightningStoreError(Code.INVALID_ARGUMENT, messageOf(error), { cause: error });
  }
}

function asItIs(bytes: Buffer): Buffer {
  return bytes;
}

function deserializer(schema: DescMessage): (bytes: Buffer) => Message {
  return (bytes) => fromBinary(schema, bytes);
}

function deadline(timeoutMs: number | undefined): GrpcOptions {
  return timeoutMs === undefined ? {} : { deadline: Date.now() + timeoutMs };
}

/**
 * Adds a request id to a write, by which the server recognises a repeat, unless the caller set one. The id is
 * set on a copy, because the caller's message may be sent a second time as a second write.
 */
function withRequestId(message: Message): Message {
  if (!("requestId" in message) || message.requestId !== "") return message;
  const copy = Object.create(Object.getPrototypeOf(message) as object) as Message;
  return Object.assign(copy, message, { requestId: randomUUID() });
}
