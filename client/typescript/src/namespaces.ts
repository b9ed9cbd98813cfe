/** Namespaces of a server and their settings. */

import { create } from "@bufbuild/protobuf";

import { NamespaceSchema, type Namespace } from "./gen/lightningstore/v1/namespace_pb.js";
import { pages } from "./lists.js";
import type { CallOptions, NamespaceStubs } from "./rpc.js";
import { toDuration } from "./rollouts.js";

/** The settings of a namespace. In an update, null clears a setting, and the server's own applies again. */
export interface NamespaceSettings {
  /** Text for people, at most 1,000 characters. */
  readonly description?: string;
  /** At most 32 labels. An update replaces them as a whole. */
  readonly labels?: Readonly<Record<string, string>>;
  /** Milliseconds after its end until a finished rollout is removed. 0: never. */
  readonly retainFinishedMs?: number | null;
  /** Size of the data above which the oldest finished rollouts are removed. 0: no limit. */
  readonly maxBytes?: number | bigint | null;
  /** Maximum number of rollouts in the queue. 0: no limit. */
  readonly maxQueueLength?: number | bigint | null;
  /** Number of versions that are kept of each resources id. 0: all. */
  readonly keepResourceVersions?: number | null;
}

/** Options of a list of namespaces. */
export interface NamespaceQuery extends CallOptions {
  /** Part of the names. Default: all. */
  readonly nameContains?: string;
}

/** Options of a deletion. */
export interface DeleteNamespaceOptions extends CallOptions {
  /** Deletes the namespace even if attempts are running in it. Default false. */
  readonly force?: boolean;
  /**
   * Makes deleting a namespace that does not exist succeed, also if this call itself has deleted it and was retried
   * because its response was lost. Default false.
   */
  readonly allowMissing?: boolean;
}

/** The contract's field for each setting. */
const PATHS: Readonly<Record<keyof NamespaceSettings, string>> = {
  description: "description",
  labels: "labels",
  retainFinishedMs: "retain_finished",
  maxBytes: "max_bytes",
  maxQueueLength: "max_queue_length",
  keepResourceVersions: "keep_resource_versions",
};

/** Returns a namespace as a message of the contract. */
export function toNamespace(name: string, settings: NamespaceSettings): Namespace {
  const message = create(NamespaceSchema, {
    name,
    description: settings.description ?? "",
    labels: { ...settings.labels },
  });
  const { retainFinishedMs, maxBytes, maxQueueLength, keepResourceVersions } = settings;
  if (retainFinishedMs != null) message.retainFinished = toDuration(retainFinishedMs);
  if (maxBytes != null) message.maxBytes = BigInt(maxBytes);
  if (maxQueueLength != null) message.maxQueueLength = BigInt(maxQueueLength);
  if (keepResourceVersions != null) message.keepResourceVersions = keepResourceVersions;
  return message;
}

/** Returns the paths of the settings that are given. */
export function pathsOf(settings: NamespaceSettings): string[] {
  const given = (Object.keys(settings) as (keyof NamespaceSettings)[]).filter(
    (name) => settings[name] !== undefined,
  );
  return given.map((name) => PATHS[name]);
}

/** Lists namespaces page by page. */
export function listNamespaces(
  stubs: NamespaceStubs,
  { nameContains = "", ...call }: NamespaceQuery,
): AsyncGenerator<Namespace, void, undefined> {
  return pages(
    (pageToken) => stubs.listNamespaces({ nameContains, pageToken }, call),
    (page) => page.namespaces,
  );
}
