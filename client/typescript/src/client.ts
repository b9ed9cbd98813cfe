/** The algorithm's side: enqueue, wait, read spans, publish resources. */

import { create } from "@bufbuild/protobuf";
import { FieldMaskSchema } from "@bufbuild/protobuf/wkt";

import type { ConnectOptions } from "./channel.js";
import type { Resources as ResourcesMessage } from "./gen/lightningstore/v1/resources_pb.js";
import { RolloutSchema, RolloutStatus, type Rollout } from "./gen/lightningstore/v1/rollout_pb.js";
import { QuerySpansRequestSchema } from "./gen/lightningstore/v1/span_pb.js";
import { encodeJson } from "./json.js";
import { fromMessage, toMessage, type Resource } from "./resources.js";
import { toConfig, toMode, toSpec, type RolloutSpec } from "./rollouts.js";
import { Connection, type CallOptions, type Stubs } from "./rpc.js";
import type { StoredSpan } from "./spans.js";
import { querySpans, RolloutWait, type WaitOptions } from "./streams.js";
import type { AttemptTriplets } from "./gen/lightningstore/v1/triplet_pb.js";
import { listTriplets, toRequest, type TripletOptions } from "./triplets.js";

/** What can be said of a write. */
export interface WriteOptions extends CallOptions {
  /**
   * Makes your own repeat within 10 minutes harmless: the same id gives the same answer. At most 64
   * characters. Absent: the client makes one, which covers its own repeats.
   */
  readonly requestId?: string;
}

/** A condition on a text: what it is, or what it contains. */
export type TextMatch = string | { readonly contains: string };

/** Which spans of a rollout to read. What is absent takes part in nothing. */
export interface SpanQuery {
  /** Id of an attempt, or "latest". Absent: all attempts. */
  readonly attemptId?: string;
  readonly name?: TextMatch;
  /** 32 lower-case hex digits. */
  readonly traceId?: TextMatch;
  /** 16 lower-case hex digits. */
  readonly spanId?: TextMatch;
  /** 16 lower-case hex digits; a root's is empty. */
  readonly parentSpanId?: TextMatch;
  /** A field and a direction, "start_time desc" for instance. Default: the sequence id. */
  readonly orderBy?: string;
  /** Most spans. Absent: all. */
  readonly limit?: number;
  readonly signal?: AbortSignal;
}

/** A named, versioned map of what agents work with. */
export interface Resources {
  readonly resourcesId: string;
  /** Counts the updates, from 1. */
  readonly version: number;
  /** The resources by the names that agents know them by. */
  readonly resources: Readonly<Record<string, Resource>>;
}

/** What can be changed of a rollout. */
export interface RolloutChanges extends Partial<Omit<RolloutSpec, "rolloutId">> {
  /** "queuing" puts it at the tail of the queue and reopens it; the others finish it. */
  readonly status?: "queuing" | "succeeded" | "failed" | "cancelled";
}

const STATUSES = {
  queuing: RolloutStatus.QUEUING,
  succeeded: RolloutStatus.SUCCEEDED,
  failed: RolloutStatus.FAILED,
  cancelled: RolloutStatus.CANCELLED,
} as const;

/** The field of the contract that each change goes to. */
const PATHS: Readonly<Record<keyof RolloutChanges, string>> = {
  status: "status",
  input: "input_json",
  mode: "mode",
  priority: "priority",
  groupId: "group_id",
  resourcesId: "resources_id",
  config: "config",
  metadata: "metadata_json",
};

/**
 * A client of LightningStore. It connects with the first call and again by itself; calls may run side by
 * side. What fails, fails with a LightningStoreError. Rollouts are messages of the contract: `decodeJson`
 * reads their `inputJson`.
 */
export class LightningStore {
  /** A typed function for each call of the contract. Writes without a requestId get one. */
  readonly rpc: Stubs;
  readonly #connection: Connection;
  readonly #timeoutMs: number;

  /** Takes an address, or more. Throws a TypeError for options that cannot be. */
  constructor(options: ConnectOptions | string = {}) {
    const given = typeof options === "string" ? { address: options } : options;
    this.#connection = new Connection(given);
    this.#timeoutMs = given.timeoutMs ?? 30_000;
    this.rpc = this.#connection.stubs();
  }

  /** Closes the connection at once; calls that are open fail with code CANCELLED. */
  close(): void {
    this.#connection.close();
  }

  /** Puts rollouts at the tail of the queue, all or, on an error, none, and returns them as stored. */
  async enqueue(specs: Iterable<RolloutSpec>, options: WriteOptions = {}): Promise<Rollout[]> {
    const { requestId = "", ...call } = options;
    const rollouts = Array.from(specs, toSpec);
    const answer = await this.rpc.enqueueRollouts({ rollouts, requestId }, call);
    return answer.rollouts;
  }

  /** Returns a rollout with its latest attempt. */
  async getRollout(rolloutId: string, options?: CallOptions): Promise<Rollout> {
    const { rollout } = await this.rpc.getRollout({ rolloutId }, options);
    return present(rollout);
  }

  /** Changes what is given, and returns the rollout after the change. */
  async updateRollout(
    rolloutId: string,
    changes: RolloutChanges,
    options: WriteOptions = {},
  ): Promise<Rollout> {
    const { requestId = "", ...call } = options;
    const named = (Object.keys(changes) as (keyof RolloutChanges)[]).filter(
      (name) => changes[name] !== undefined,
    );
    const rollout = create(RolloutSchema, {
      rolloutId,
      mode: toMode(changes.mode),
      priority: changes.priority ?? 0,
      groupId: changes.groupId ?? "",
      resourcesId: changes.resourcesId ?? "",
    });
    if (changes.status) rollout.status = STATUSES[changes.status];
    if (changes.input !== undefined) rollout.inputJson = encodeJson(changes.input, "input");
    if (changes.metadata) rollout.metadataJson = encodeJson(changes.metadata, "metadata");
    if (changes.config) rollout.config = toConfig(changes.config);
    const updateMask = create(FieldMaskSchema, { paths: named.map((name) => PATHS[name]) });
    const answer = await this.rpc.updateRollout({ rollout, updateMask, requestId }, call);
    return present(answer.rollout);
  }

  /** Cancels rollouts; those that have finished stay as they are. Returns them, in order. */
  async cancelRollouts(ids: Iterable<string>, options: WriteOptions = {}): Promise<Rollout[]> {
    const { requestId = "", ...call } = options;
    const answer = await this.rpc.cancelRollouts({ rolloutIds: [...ids], requestId }, call);
    return answer.rollouts;
  }

  /**
   * Waits for rollouts to finish, and goes on where it was if the connection breaks. It begins when it is
   * iterated over.
   */
  waitForRollouts(options: WaitOptions): RolloutWait {
    return new RolloutWait(this.rpc, options, this.#timeoutMs);
  }

  /** Reads the spans of a rollout as they arrive; takes up a connection that breaks. */
  querySpans(
    rolloutId: string,
    query: SpanQuery = {},
  ): AsyncGenerator<StoredSpan, void, undefined> {
    const { attemptId = "", orderBy = "", limit = -1, signal } = query;
    const request = create(QuerySpansRequestSchema, {
      rolloutId,
      attemptId,
      orderBy,
      limit,
      ...matches(query),
    });
    return querySpans(this.rpc, request, this.#timeoutMs, signal);
  }

  /**
   * Reads each call of a model in the spans of rollouts, with prompt, response and reward: one message an
   * attempt, in the order of the rollouts. Takes up a connection that breaks. More than 10,000 rollouts are
   * asked for in several calls; an id that the server does not know then fails the list where its call begins.
   */
  listTriplets(
    rolloutIds: Iterable<string>,
    options: TripletOptions = {},
  ): AsyncGenerator<AttemptTriplets, void, undefined> {
    const request = toRequest(rolloutIds, options);
    return listTriplets(this.rpc, request, this.#timeoutMs, options.signal);
  }

  /** Stores new resources by name and makes them the latest. */
  async addResources(
    resources: Readonly<Record<string, Resource>>,
    options: WriteOptions & { readonly resourcesId?: string } = {},
  ): Promise<Resources> {
    const { requestId = "", resourcesId = "", ...call } = options;
    const request = { resources: toMessages(resources), resourcesId, requestId };
    const answer = await this.rpc.addResources(request, call);
    return fromResources(present(answer.resources));
  }

  /** Replaces the whole map of an id, and makes it the latest; an id that is not there yet is created. */
  async updateResources(
    resourcesId: string,
    resources: Readonly<Record<string, Resource>>,
    options: WriteOptions = {},
  ): Promise<Resources> {
    const { requestId = "", ...call } = options;
    const request = { resourcesId, resources: toMessages(resources), requestId };
    const answer = await this.rpc.updateResources(request, call);
    return fromResources(present(answer.resources));
  }

  /** Returns the current version of resources; without an id: of the latest. */
  async getResources(resourcesId = "", options?: CallOptions): Promise<Resources> {
    const answer = await this.rpc.getResources({ resourcesId }, options);
    return fromResources(present(answer.resources));
  }
}

function matches(query: SpanQuery) {
  const one = (name: string, match: TextMatch | undefined) => {
    if (match === undefined) return {};
    const condition =
      typeof match === "string"
        ? { case: "equals" as const, value: match }
        : { case: "contains" as const, value: match.contains };
    return { [name]: { match: condition } };
  };
  return {
    ...one("name", query.name),
    ...one("traceId", query.traceId),
    ...one("spanId", query.spanId),
    ...one("parentSpanId", query.parentSpanId),
  };
}

function toMessages(resources: Readonly<Record<string, Resource>>) {
  return Object.fromEntries(
    Object.entries(resources).map(([name, resource]) => [name, toMessage(resource)]),
  );
}

function fromResources(message: ResourcesMessage): Resources {
  const resources = Object.fromEntries(
    Object.entries(message.resources).map(([name, resource]) => [name, fromMessage(resource)]),
  );
  return { resourcesId: message.resourcesId, version: message.version, resources };
}

/** The contract says that answers hold it. */
function present<T>(value: T | undefined): T {
  if (value === undefined) throw new Error("the server left the answer out");
  return value;
}
