/** A line of stdin; see tests/conformance/README.md. */

import type { JsonValue } from "@bufbuild/protobuf";

/** All fields of a command. */
export interface Command {
  readonly id: unknown;
  readonly op: string;
  readonly target?: unknown;
  readonly method?: string;
  readonly requests?: readonly JsonValue[];
  /** In seconds. */
  readonly timeout?: number;
  readonly metadata?: Readonly<Record<string, string>>;
  readonly worker_id?: string;
  readonly concurrency?: number;
  readonly max_rollouts?: number;
  /** In seconds. */
  readonly heartbeat_period?: number;
  readonly queues?: readonly string[];
  readonly exporter?: string;
  readonly rollout_id?: string;
  readonly attempt_id?: string;
  readonly spans?: readonly string[];
}
