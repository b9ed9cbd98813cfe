/** Triplets and samples: the model calls in an attempt's spans, one by one or as rows of tokens to train on. */

import { clone, create } from "@bufbuild/protobuf";

import {
  ListSamplesRequestSchema,
  SampleMerge,
  type AttemptSamples,
  type ListSamplesRequest,
} from "./gen/lightningstore/v1/sample_pb.js";
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

/** Options that triplets and samples share; see docs/triplets.md. Absent options have the server's defaults. */
interface DerivedOptions {
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
  /** How rewards are matched with calls. */
  readonly rewardPolicy?: "first-occurrence" | "first-sibling" | "by-sequence";
  /** By rollout id: replaces the traced reward of its last triplet, or the reward of its samples. */
  readonly finalRewards?: Readonly<Record<string, number>>;
  readonly signal?: AbortSignal;
}

/** Options for deriving triplets. */
export interface TripletOptions extends DerivedOptions {
  /** Omits calls without token ids of prompt and response. Default false. */
  readonly skipWithoutTokens?: boolean;
}

/** Options for deriving samples; see docs/samples.md. */
export interface SampleOptions extends DerivedOptions {
  /** "prefix" (default): a call continues the row whose tokens its prompt begins with. "none": one row per call. */
  readonly merge?: "prefix" | "none";
}

const SOURCES = { tracer: TripletSource.TRACER, proxy: TripletSource.PROXY } as const;

const POLICIES = {
  "first-occurrence": RewardPolicy.FIRST_OCCURRENCE,
  "first-sibling": RewardPolicy.FIRST_SIBLING,
  "by-sequence": RewardPolicy.BY_SEQUENCE,
} as const;

const MERGES = { prefix: SampleMerge.PREFIX, none: SampleMerge.NONE } as const;

/** Returns the fields that both requests have. */
function common(rolloutIds: Iterable<string>, options: DerivedOptions) {
  const { source, rewardPolicy, finalRewards = {}, ...rest } = options;
  const { excludeCallsUnderRewards, deduplicate, repairHierarchy } = rest;
  return {
    rolloutIds: [...new Set(rolloutIds)],
    attemptId: rest.attemptId ?? "",
    llmCallMatch: rest.llmCallMatch ?? "",
    agentMatch: rest.agentMatch ?? "",
    finalRewards: { ...finalRewards },
    ...(source && { source: SOURCES[source] }),
    ...(rewardPolicy && { rewardPolicy: POLICIES[rewardPolicy] }),
    ...(excludeCallsUnderRewards !== undefined && { excludeCallsUnderRewards }),
    ...(deduplicate !== undefined && { deduplicate }),
    ...(repairHierarchy !== undefined && { repairHierarchy }),
  };
}

/** Yields the triplets of complete attempts. */
export function listTriplets(
  rpc: Stubs,
  rolloutIds: Iterable<string>,
  options: TripletOptions,
  patienceMs: number,
): AsyncGenerator<AttemptTriplets, void, undefined> {
  const { signal, skipWithoutTokens = false } = options;
  const request = create(ListTripletsRequestSchema, {
    ...common(rolloutIds, options),
    skipWithoutTokens,
  });
  const list: AttemptList<ListTripletsRequest, AttemptTriplets> = {
    request,
    patienceMs,
    signal,
    copy: () => clone(ListTripletsRequestSchema, request),
    open: (part) => rpc.listTriplets(part, { signal }),
    join: (whole, part) => {
      whole.triplets.push(...part.triplets);
      whole.unmatchedRewards.push(...part.unmatchedRewards);
    },
  };
  return attempts(list);
}

/** Yields the samples of complete attempts. */
export function listSamples(
  rpc: Stubs,
  rolloutIds: Iterable<string>,
  options: SampleOptions,
  patienceMs: number,
): AsyncGenerator<AttemptSamples, void, undefined> {
  const { signal, merge } = options;
  const request = create(ListSamplesRequestSchema, {
    ...common(rolloutIds, options),
    ...(merge && { merge: MERGES[merge] }),
  });
  const list: AttemptList<ListSamplesRequest, AttemptSamples> = {
    request,
    patienceMs,
    signal,
    copy: () => clone(ListSamplesRequestSchema, request),
    open: (part) => rpc.listSamples(part, { signal }),
    join: (whole, part) => {
      whole.samples.push(...part.samples);
    },
  };
  return attempts(list);
}

/** What lists of triplets and of samples have in common: requests, and parts of attempts. */
interface AttemptList<
  Request extends ListTripletsRequest | ListSamplesRequest,
  Attempt extends AttemptTriplets | AttemptSamples,
> {
  readonly request: Request;
  readonly patienceMs: number;
  readonly signal: AbortSignal | undefined;
  /** Returns a copy of the request. */
  readonly copy: () => Request;
  readonly open: (request: Request) => AsyncIterable<{ readonly attempts: Attempt[] }>;
  /** Adds what a part of an attempt has of its own kind. */
  readonly join: (whole: Attempt, part: Attempt) => void;
}

/** Yields complete attempts. Splits the rollouts into several calls if there are too many for one. */
async function* attempts<
  Request extends ListTripletsRequest | ListSamplesRequest,
  Attempt extends AttemptTriplets | AttemptSamples,
>(list: AttemptList<Request, Attempt>): AsyncGenerator<Attempt, void, undefined> {
  const ids = list.request.rolloutIds;
  let start = 0;
  do {
    yield* listPart(list, ids.slice(start, start + MAX_LISTED));
    start += MAX_LISTED;
  } while (start < ids.length);
}

/** Yields the attempts of some rollouts. After a break, requests the rollouts that are not complete. */
async function* listPart<
  Request extends ListTripletsRequest | ListSamplesRequest,
  Attempt extends AttemptTriplets | AttemptSamples,
>(list: AttemptList<Request, Attempt>, ids: string[]): AsyncGenerator<Attempt, void, undefined> {
  const { patienceMs, signal } = list;
  const seen = new Set<string>();
  let place = 0;
  let whole: Attempt | undefined;
  const open = () => {
    whole = undefined;
    return list.open(remaining(list, ids.slice(place)));
  };
  for await (const answer of takenUp(open, () => true, patienceMs, signal)) {
    for (const part of answer.attempts) {
      const { rolloutId = "", attemptId = "" } = part.attempt ?? {};
      const at = ids.indexOf(rolloutId, place);
      if (at > place) place = at;
      whole = whole ? joined(list, whole, part) : part;
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

function joined<
  Request extends ListTripletsRequest | ListSamplesRequest,
  Attempt extends AttemptTriplets | AttemptSamples,
>(list: AttemptList<Request, Attempt>, whole: Attempt, part: Attempt): Attempt {
  list.join(whole, part);
  whole.warnings.push(...part.warnings);
  whole.warningCount += part.warningCount;
  whole.complete = part.complete;
  return whole;
}

function remaining<
  Request extends ListTripletsRequest | ListSamplesRequest,
  Attempt extends AttemptTriplets | AttemptSamples,
>(list: AttemptList<Request, Attempt>, ids: string[]): Request {
  if (ids.length === list.request.rolloutIds.length) return list.request;
  const left = list.copy();
  const wanted = new Set(ids);
  left.rolloutIds = ids;
  left.finalRewards = Object.fromEntries(
    Object.entries(list.request.finalRewards).filter(([id]) => wanted.has(id)),
  );
  return left;
}
