/** Triplets: the model calls in an attempt's spans, with prompt, response and reward. */

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

/** Rollouts per call: the server's default limit. */
const MAX_LISTED = 10_000;

/** Options for deriving triplets; see docs/triplets.md. Absent options have the server's defaults. */
export interface TripletOptions {
  /** "latest", or the id of an attempt if there is a single rollout. Default: all attempts. */
  readonly attemptId?: string;
  /** Where calls are traced: in the agent's process (default), or in a LiteLLM proxy. */
  readonly source?: "tracer" | "proxy";
  /** RE2 pattern for names of spans that are calls. Default: `openai\.chat\.completion`. */
  readonly llmCallMatch?: string;
  /** RE2 pattern for names of agents whose calls are included. Default: all. */
  readonly agentMatch?: string;
  /** Omits calls below a reward, such as those of a judge. Default true. */
  readonly excludeCallsUnderRewards?: boolean;
  /** Keeps one call per response id. Default true. */
  readonly deduplicate?: boolean;
  /** Moves loose call spans under the shortest span that encloses them in time. Default true. */
  readonly repairHierarchy?: boolean;
  /** Omits calls without token ids of prompt and response. Default false. */
  readonly skipWithoutTokens?: boolean;
  /** How rewards are matched with calls. */
  readonly rewardPolicy?: "first-occurrence" | "first-sibling" | "by-sequence";
  /** By rollout id: replaces the traced reward of its last triplet. */
  readonly finalRewards?: Readonly<Record<string, number>>;
  readonly signal?: AbortSignal;
}

const SOURCES = { tracer: TripletSource.TRACER, proxy: TripletSource.PROXY } as const;

const POLICIES = {
  "first-occurrence": RewardPolicy.FIRST_OCCURRENCE,
  "first-sibling": RewardPolicy.FIRST_SIBLING,
  "by-sequence": RewardPolicy.BY_SEQUENCE,
} as const;

/** Returns the request for the options. */
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

/** Yields complete attempts. Splits the rollouts into several calls if there are too many for one. */
export async function* listTriplets(
  rpc: Stubs,
  request: ListTripletsRequest,
  patienceMs: number,
  signal: AbortSignal | undefined,
): AsyncGenerator<AttemptTriplets, void, undefined> {
  const ids = request.rolloutIds;
  let start = 0;
  do {
    const part = ids.slice(start, start + MAX_LISTED);
    yield* listPart(rpc, request, part, patienceMs, signal);
    start += MAX_LISTED;
  } while (start < ids.length);
}

/** Yields the attempts of some rollouts. After a break, requests the rollouts that are not complete. */
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
