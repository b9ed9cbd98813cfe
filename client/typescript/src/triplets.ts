/** Triplets: each call of a model in an attempt's spans, with prompt, response and reward. */

import { clone, create, type MessageInitShape } from "@bufbuild/protobuf";

import {
  ListTripletsRequestSchema,
  RewardPolicy,
  TripletSource,
  type AttemptTriplets,
  type ListTripletsRequest,
} from "./gen/lightningstore/v1/triplet_pb.js";
import type { Stubs } from "./rpc.js";
import { takenUp } from "./streams.js";

/** Rollouts of one call: the server's limit by default. */
const MOST_LISTED = 10_000;

/** How triplets are made of spans; docs/triplets.md tells more. What is absent is as the server has it. */
export interface TripletOptions {
  /** "latest", or of a single rollout the id of an attempt. Absent: all attempts. */
  readonly attemptId?: string;
  /** Where calls were traced: in the agent's process (default), or in a LiteLLM proxy. */
  readonly source?: "tracer" | "proxy";
  /** Names of spans that are calls, an expression of RE2. Absent: `openai\.chat\.completion`. */
  readonly llmCallMatch?: string;
  /** Names of agents whose calls count, an expression of RE2. Absent: all. */
  readonly agentMatch?: string;
  /** Leaves out what a judge asked. Absent: true. */
  readonly excludeCallsUnderRewards?: boolean;
  /** One call a response id. Absent: true. */
  readonly deduplicate?: boolean;
  /** Puts loose spans under the tightest one that encloses them in time. Absent: true. */
  readonly repairHierarchy?: boolean;
  /** Leaves out calls without token ids of prompt and response. Absent: false. */
  readonly skipWithoutTokens?: boolean;
  /** Which call gets which reward. */
  readonly rewardPolicy?: "first-occurrence" | "first-sibling" | "by-sequence";
  /** By rollout: what its last triplet is worth, in place of what was traced. */
  readonly finalRewards?: Readonly<Record<string, number>>;
  readonly signal?: AbortSignal;
}

const SOURCES = { tracer: TripletSource.TRACER, proxy: TripletSource.PROXY } as const;

const POLICIES = {
  "first-occurrence": RewardPolicy.FIRST_OCCURRENCE,
  "first-sibling": RewardPolicy.FIRST_SIBLING,
  "by-sequence": RewardPolicy.BY_SEQUENCE,
} as const;

/** Returns the request that options stand for. */
export function toRequest(
  rolloutIds: Iterable<string>,
  options: TripletOptions,
): ListTripletsRequest {
  const { source, rewardPolicy, finalRewards = {}, ...rest } = options;
  const init: MessageInitShape<typeof ListTripletsRequestSchema> = {
    rolloutIds: [...new Set(rolloutIds)],
    attemptId: rest.attemptId ?? "",
    llmCallMatch: rest.llmCallMatch ?? "",
    agentMatch: rest.agentMatch ?? "",
    skipWithoutTokens: rest.skipWithoutTokens ?? false,
    finalRewards: { ...finalRewards },
  };
  if (source) init.source = SOURCES[source];
  if (rewardPolicy) init.rewardPolicy = POLICIES[rewardPolicy];
  for (const name of ["excludeCallsUnderRewards", "deduplicate", "repairHierarchy"] as const) {
    if (rest[name] !== undefined) init[name] = rest[name];
  }
  return create(ListTripletsRequestSchema, init);
}

/** Yields attempts, each whole. More rollouts than one call takes are asked for in several. */
export async function* listTriplets(
  rpc: Stubs,
  request: ListTripletsRequest,
  patienceMs: number,
  signal: AbortSignal | undefined,
): AsyncGenerator<AttemptTriplets, void, undefined> {
  const ids = request.rolloutIds;
  let start = 0;
  do {
    const part = ids.slice(start, start + MOST_LISTED);
    yield* listPart(rpc, request, part, patienceMs, signal);
    start += MOST_LISTED;
  } while (start < ids.length);
}

/** Yields the attempts of some rollouts. A list that broke is asked for again, without those that are through. */
async function* listPart(
  rpc: Stubs,
  request: ListTripletsRequest,
  ids: string[],
  patienceMs: number,
  signal: AbortSignal | undefined,
): AsyncGenerator<AttemptTriplets, void, undefined> {
  const seen = new Set<string>();
  let place = 0;
  let whole: AttemptTriplets | undefined;
  const open = () => {
    whole = undefined;
    return rpc.listTriplets(remaining(request, ids.slice(place)), { signal });
  };
  for await (const answer of takenUp(open, () => true, patienceMs, signal)) {
    for (const part of answer.attempts) {
      const { rolloutId = "", attemptId = "" } = part.attempt ?? {};
      const at = ids.indexOf(rolloutId, place);
      if (at > place) place = at;
      whole = whole ? joined(whole, part) : part;
      if (!part.complete) continue;
      const key = `${rolloutId} ${attemptId}`;
      if (!seen.has(key)) {
        seen.add(key);
        yield whole;
      }
      whole = undefined;
    }
  }
}

function joined(whole: AttemptTriplets, part: AttemptTriplets): AttemptTriplets {
  whole.triplets.push(...part.triplets);
  whole.unmatchedRewards.push(...part.unmatchedRewards);
  whole.warnings.push(...part.warnings);
  whole.warningCount += part.warningCount;
  whole.complete = part.complete;
  return whole;
}

function remaining(request: ListTripletsRequest, ids: string[]): ListTripletsRequest {
  if (ids.length === request.rolloutIds.length) return request;
  const left = clone(ListTripletsRequestSchema, request);
  const wanted = new Set(ids);
  left.rolloutIds = ids;
  left.finalRewards = Object.fromEntries(
    Object.entries(request.finalRewards).filter(([id]) => wanted.has(id)),
  );
  return left;
}
