/** Lists that are loaded page by page, and what selects rollouts in them. */

import type { MessageInitShape } from "@bufbuild/protobuf";

import {
  FilterLogic,
  type ListRolloutsRequestSchema,
  type RolloutStatus,
} from "./gen/lightningstore/v1/rollout_pb.js";
import type { WorkerStatus } from "./gen/lightningstore/v1/worker_pb.js";
import { toMode } from "./rollouts.js";
import type { CallOptions } from "./rpc.js";

/** Selects rollouts. Absent and empty filters are ignored. */
export interface RolloutFilters {
  readonly statuses?: readonly RolloutStatus[];
  readonly rolloutIds?: readonly string[];
  /** Part of the ids. */
  readonly rolloutIdContains?: string;
  /** Undefined stands for rollouts without a mode. */
  readonly modes?: readonly ("train" | "val" | "test" | undefined)[];
  readonly groupIds?: readonly string[];
  /** Task queues; "" is the default queue. */
  readonly queues?: readonly string[];
  /** Rollouts match that have all of these labels with these values. */
  readonly labels?: Readonly<Record<string, string>>;
  /** Minimum reward of the latest attempt. */
  readonly minReward?: number;
  /** Maximum reward of the latest attempt. */
  readonly maxReward?: number;
  /** How the filters are combined. Default "and". */
  readonly filterLogic?: "and" | "or";
}

/** Options of a list of rollouts. */
export interface RolloutQuery extends RolloutFilters, CallOptions {
  /** A field and a direction, for example "reward desc". Default: the order of enqueueing. */
  readonly orderBy?: string;
  /** Maximum number of rollouts loaded at a time. Default 100. */
  readonly pageSize?: number;
}

/** Options of a list of workers. */
export interface WorkerQuery extends CallOptions {
  readonly statuses?: readonly WorkerStatus[];
  /** Part of the ids. */
  readonly workerIdContains?: string;
  /** Workers that have loaded resources with this publish number or a higher one. */
  readonly minPublishNumber?: bigint | number;
  /** A field and a direction, for example "last_heartbeat_time desc". Default: the id. */
  readonly orderBy?: string;
  /** Maximum number of workers loaded at a time. Default 100. */
  readonly pageSize?: number;
}

/** Options of a list of groups. */
export interface GroupQuery extends CallOptions {
  readonly groupIds?: readonly string[];
  readonly statuses?: readonly ("open" | "complete")[];
  /** Maximum number of groups loaded at a time. Default 100. */
  readonly pageSize?: number;
}

interface Page {
  readonly nextPageToken: string;
}

/** Yields the items of each page. `load` loads the page of a token. */
export async function* pages<P extends Page, T>(
  load: (pageToken: string) => Promise<P>,
  items: (page: P) => Iterable<T>,
): AsyncGenerator<T, void, undefined> {
  let pageToken = "";
  do {
    const page = await load(pageToken);
    yield* items(page);
    pageToken = page.nextPageToken;
  } while (pageToken !== "");
}

/** Returns the options of the calls of a query. */
export function callOf({ signal, timeoutMs, metadata, onStarted }: CallOptions): CallOptions {
  return { signal, timeoutMs, metadata, onStarted };
}

/** Returns a field that the contract says is always set. */
export function present<T>(value: T | undefined): T {
  if (value === undefined) throw new Error("the server's response lacks a required field");
  return value;
}

const LOGICS = { and: FilterLogic.AND, or: FilterLogic.OR } as const;

/** Returns filters as fields of a request, which have the same names in each request. */
export function toFilters(filters: RolloutFilters) {
  const { minReward, maxReward, filterLogic } = filters;
  return {
    statuses: [...(filters.statuses ?? [])],
    rolloutIds: [...(filters.rolloutIds ?? [])],
    rolloutIdContains: filters.rolloutIdContains ?? "",
    modes: (filters.modes ?? []).map(toMode),
    groupIds: [...(filters.groupIds ?? [])],
    queues: [...(filters.queues ?? [])],
    labels: { ...filters.labels },
    ...(minReward !== undefined && { minReward }),
    ...(maxReward !== undefined && { maxReward }),
    ...(filterLogic && { filterLogic: LOGICS[filterLogic] }),
  } satisfies MessageInitShape<typeof ListRolloutsRequestSchema>;
}
