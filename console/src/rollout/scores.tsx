// How well an attempt did, and what it ran with.
import type { ComponentChildren } from "preact";
import { useLive } from "../api/live.js";
import { measure } from "../format.js";
import { RewardSource, type Attempt } from "../gen/lightningstore/v1/attempt_pb.js";
import type { AttemptTriplets } from "../gen/lightningstore/v1/triplet_pb.js";
import { ErrorNote } from "../parts/basics.js";
import { Table, type Column } from "../parts/table.js";
import { href, route } from "../router.js";
import { NoReward } from "./head.js";
import { Facts } from "./span-details.js";
import { useSpanReload } from "./spans.js";
import { visible } from "./text.js";

interface Reward {
  readonly call: string;
  readonly value: number;
  readonly dimensions: string;
  readonly spanId: string;
}

export function Scores({ attempt }: { attempt: Attempt }) {
  const { rolloutId, attemptId } = attempt;
  const live = useLive(
    `scores/${rolloutId}/${attemptId}`,
    async (store, signal) => {
      const parts: AttemptTriplets[] = [];
      const request = { rolloutIds: [rolloutId], attemptId, asMessages: true };
      for await (const answer of store.listTriplets(request, { signal }))
        parts.push(...answer.attempts);
      return rewardsOf(parts);
    },
    { follows: false },
  );
  useSpanReload(live, attempt);
  const { data: rewards = [], error } = live;
  return (
    <>
      <h2>Reward and scores</h2>
      <Facts facts={factsOf(attempt)} />
      <ErrorNote error={error} />
      {rewards.length > 0 && (
        <>
          <h2>Rewards in the spans</h2>
          <Table
            label="Rewards in the spans"
            columns={COLUMNS}
            rows={rewards}
            keyOf={({ spanId, call }) => `${spanId}/${call}`}
          />
        </>
      )}
      <h2>Ran with</h2>
      <Facts
        facts={[
          ["Resources", <ResourcesLink attempt={attempt} />],
          ["Publish number", attempt.publishNumber ? attempt.publishNumber.toString() : ""],
          ["Worker", <WorkerLink id={attempt.workerId} />],
        ]}
      />
    </>
  );
}

function factsOf(attempt: Attempt): [string, ComponentChildren][] {
  const { reward, rewardSource, spanReward, scores } = attempt;
  const source = rewardSource === RewardSource.SPANS ? "its spans" : "a report";
  return [
    ["Reward", reward === undefined ? <NoReward attempt={attempt} /> : measure(reward)],
    ["From", reward === undefined ? "" : source],
    ["Last reward in spans", spanReward ? measure(spanReward.value) : ""],
    ...Object.entries(scores).map(([name, value]): [string, ComponentChildren] => [
      visible(name),
      measure(value),
    ]),
  ];
}

function rewardsOf(parts: readonly AttemptTriplets[]): Reward[] {
  const found: Reward[] = [];
  let number = 0;
  const add = (call: string, reward: AttemptTriplets["unmatchedRewards"][number] | undefined) => {
    if (!reward) return;
    const dimensions = reward.dimensions
      .slice(1)
      .map(({ name, value }) => `${visible(name)} ${measure(value)}`)
      .join(", ");
    found.push({ call, value: reward.value, dimensions, spanId: reward.spanId });
  };
  for (const part of parts) {
    for (const triplet of part.triplets) add(`call ${(number += 1)}`, triplet.reward);
    for (const reward of part.unmatchedRewards) add("none", reward);
  }
  return found;
}

const COLUMNS: readonly Column<Reward>[] = [
  { title: "Reward", number: true, cell: ({ value }) => measure(value) },
  { title: "Of", cell: ({ call }) => call },
  { title: "Other dimensions", cell: ({ dimensions }) => dimensions },
  { title: "Span", cell: ({ spanId }) => <SpanLink id={spanId} /> },
];

function SpanLink({ id }: { id: string }) {
  if (!id) return null;
  const state = { ...Object.fromEntries(route.value.params), tab: "waterfall", span: id };
  return (
    <a class="id" href={href("rollout", route.value.id, state)}>
      {id}
    </a>
  );
}

function ResourcesLink({ attempt: { resourcesId, resourcesVersion } }: { attempt: Attempt }) {
  if (!resourcesId) return <span class="quiet">none</span>;
  return (
    <a href={href("resources", resourcesId, { version: String(resourcesVersion) })}>
      {visible(resourcesId)}, version {resourcesVersion}
    </a>
  );
}

function WorkerLink({ id }: { id: string }) {
  if (!id) return <span class="quiet">not named</span>;
  return <a href={href("workers")}>{visible(id)}</a>;
}
