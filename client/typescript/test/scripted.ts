/** A server of gRPC in this process that answers as a test says. */

import {
  create,
  fromBinary,
  toBinary,
  type DescMessage,
  type Message,
  type MessageInitShape,
  type MessageShape,
} from "@bufbuild/protobuf";
import type { Any } from "@bufbuild/protobuf/wkt";
import {
  Metadata,
  Server,
  ServerCredentials,
  status as Code,
  type sendUnaryData,
  type ServerReadableStream,
  type ServerUnaryCall,
  type ServerWritableStream,
} from "@grpc/grpc-js";

import { StatusSchema } from "../src/gen/google/rpc/status_pb.js";
import { LightningStoreService } from "../src/proto.js";
import { Proxy } from "./proxy.js";

type Methods = (typeof LightningStoreService)["method"];
type Named<S> = S extends DescMessage ? S : never;
type In<K extends keyof Methods> = MessageShape<Named<Methods[K]["input"]>>;
type Out<K extends keyof Methods> = MessageInitShape<Named<Methods[K]["output"]>>;

/** What a script may know of a call. */
export interface Peer {
  /** Breaks all connections off without a word; new ones are taken. */
  readonly cut: () => void;
  /** Aborted when the call is cancelled, or its connection breaks. */
  readonly signal: AbortSignal;
  /** Deadline of the call, in milliseconds since the epoch; infinite without one. */
  readonly deadline: number;
}

/** An answer, or what throws a Refusal; a stream of answers where the method streams them. */
export type Script = {
  [K in keyof Methods]?: Methods[K]["methodKind"] extends "client_streaming"
    ? (requests: AsyncIterable<In<K>>, peer: Peer) => Promise<Out<K>>
    : Methods[K]["methodKind"] extends "server_streaming"
      ? (request: In<K>, peer: Peer) => AsyncIterable<Out<K>>
      : (request: In<K>, peer: Peer) => Out<K> | Promise<Out<K>>;
};

/** Ends a call with a status, with details as the server itself gives them or, as gRPC, without. */
export class Refusal extends Error {
  readonly metadata = new Metadata();

  constructor(
    readonly code: Code,
    message = `refused with ${Code[code]}`,
    details: Any[] = [],
  ) {
    super(message);
    if (details.length === 0) return;
    const status = toBinary(StatusSchema, create(StatusSchema, { code, message, details }));
    this.metadata.set("grpc-status-details-bin", Buffer.from(status));
  }
}

type Call = NodeJS.EventEmitter & Pick<ServerUnaryCall<Message, Message>, "getDeadline">;

type Handler = (request: unknown, peer: Peer) => unknown;

function failure(error: unknown) {
  const { code, metadata } = error instanceof Refusal ? error : new Refusal(Code.INTERNAL);
  return { code, details: String(error), metadata };
}

function abortOf(call: NodeJS.EventEmitter): AbortSignal {
  const controller = new AbortController();
  call.on("cancelled", () => {
    controller.abort();
  });
  return controller.signal;
}

/** Answers as its script says; methods that it does not name are UNIMPLEMENTED. */
export class ScriptedServer {
  address = "";
  readonly #server = new Server();
  #proxy: Proxy | undefined;

  static async start(script: Script): Promise<ScriptedServer> {
    const server = new ScriptedServer();
    await server.#begin(script);
    return server;
  }

  async #begin(script: Script): Promise<void> {
    const credentials = ServerCredentials.createInsecure();
    for (const method of LightningStoreService.methods) {
      const handler = script[method.localName as keyof Methods] as Handler | undefined;
      if (!handler) continue;
      const peer = (call: Call): Peer => ({
        cut: () => this.#proxy?.cut(),
        signal: abortOf(call),
        deadline: Number(call.getDeadline()),
      });
      const { input, output } = method;
      const answered = (value: unknown): Message =>
        create(output, value as MessageInitShape<DescMessage>);
      const settle = (result: Promise<unknown>, done: sendUnaryData<Message>): void => {
        result.then(
          (value) => {
            done(null, answered(value));
          },
          (error: unknown) => {
            done(failure(error));
          },
        );
      };
      const handlers = {
        unary: (call: ServerUnaryCall<Message, Message>, done: sendUnaryData<Message>) => {
          settle((async () => handler(call.request, peer(call)))(), done);
        },
        client_streaming: (
          call: ServerReadableStream<Message, Message>,
          done: sendUnaryData<Message>,
        ) => {
          settle((async () => handler(call, peer(call)))(), done);
        },
        server_streaming: (call: ServerWritableStream<Message, Message>) => {
          void stream(call, handler(call.request, peer(call)) as AsyncIterable<unknown>, answered);
        },
        bidi_streaming: () => undefined,
      };
      this.#server.register(
        `/${LightningStoreService.typeName}/${method.name}`,
        handlers[method.methodKind],
        (message: Message) => Buffer.from(toBinary(output, message)),
        (bytes) => fromBinary(input, bytes),
        KINDS[method.methodKind],
      );
    }
    const port = await new Promise<number>((resolve, reject) => {
      this.#server.bindAsync("127.0.0.1:0", credentials, (error, bound) => {
        if (error) reject(error);
        else resolve(bound);
      });
    });
    this.#proxy = await Proxy.start(`127.0.0.1:${port}`);
    this.address = this.#proxy.address;
  }

  [Symbol.dispose](): void {
    this.#proxy?.[Symbol.dispose]();
    this.#server.forceShutdown();
  }
}

const KINDS = {
  unary: "unary",
  client_streaming: "clientStream",
  server_streaming: "serverStream",
  bidi_streaming: "bidi",
} as const;

async function stream(
  call: ServerWritableStream<Message, Message>,
  answers: AsyncIterable<unknown>,
  answered: (value: unknown) => Message,
): Promise<void> {
  try {
    for await (const answer of answers) call.write(answered(answer));
    call.end();
  } catch (error) {
    call.emit("error", failure(error));
  }
}
