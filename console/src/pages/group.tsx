// One group: its members side by side.
import type { ComponentChildren } from "preact";
import type { Store } from "../api/client.js";
import { reasonOf } from "../api/errors.js";
import { useLive, useReload } from "../api/live.js";
import { count, durationMs, measure, now, span, toMs, word } from "../format.js";
import { GroupStatus, type Group } from "../gen/lightningstore/v1/group_pb.js";
import {
  GroupDeadlineAction,
  RolloutStatus,
  type Rollout,
} from "../gen/lightningstore/v1/rollout_pb.js";
import type { ChatMessage, Triplet } from "../gen/lightningstore/v1/triplet_pb.js";
import { Age, Empty, ErrorNote, Loading, Page, Status } from "../parts/basics.js";
import { inNamespace, quoted } from "../parts/commands.js";
import { href, route } from "../router.js";
import { Message } from "../rollout/conversation.js";
import { firstDifference } from "../rollout/fold.js";
import "../rollout/rollout.css";
import { Facts } from "../rollout/span-details.js";
import { visible } from "../rollout/text.js";

/** Members that are compared. */
const SHOWN = 64;

interface Data {
  /** Absent where the id is only a label of rollouts. */
  readonly group: Group | undefined;
  readonly members: readonly Rollout[];
  readonly more: boolean;
}

async function load(store: Store, groupId: string, signal: AbortSignal): Promise<Data> {
  const [group, list] = await Promise.all([
    store.getGroup({ groupId }, { signal }).then(
      (answer) => answer.group,
      (error: unknown) => {
        if (reasonOf(error) === "GROUP_NOT_FOUND") return undefined;
        throw error;
      },
    ),
    store.listRollouts({ groupIds: [groupId], pageSize: SHOWN, omitPayloads: true }, { signal }),
  ]);
  return { group, members: list.rollouts, more: list.nextPageToken !== "" };
}

export function GroupPage() {
  const { id } = route.value;
  const { data, error } = useLive(id, (store, signal) => load(store, id, signal));
  return (
    <Page title={`Group ${visible(id)}`}>
      <ErrorNote error={error} />
      {!data && error === undefined && <Loading />}
      {data?.group && <Facts facts={factsOf(data.group)} />}
      {data && !data.group && data.members.length > 0 && (
        <p class="note">
          This id is a label of these rollouts. It has no state of its own, because no group was
          created with it.
        </p>
      )}
      {data?.members.length === 0 && (
        <Empty
          command={inNamespace(`lightningstore enqueue --group ${quoted(id)} '{"question": 1}'`)}
        >
          No rollout belongs to this group. This adds one:
        </Empty>
      )}
      {data?.more && (
        <p>
          The first {count(SHOWN)} members are compared here.{" "}
          <a href={href("rollouts", "", { group: id })}>All members as a list</a>
        </p>
      )}
      {data && data.members.length > 0 && <Members members={data.members} />}
    </Page>
  );
}

function factsOf(group: Group): [string, ComponentChildren][] {
  const { rewards, deadline, firstClaimTime, minPublishNumber, maxPublishNumber } = group;
  const numbers =
    minPublishNumber === maxPublishNumber
      ? `${minPublishNumber}`
      : `${minPublishNumber} to ${maxPublishNumber}`;
  return [
    ["State", <Status name={word(GroupStatus, group.status)} />],
    ["Finished", `${group.finishedCount} of ${group.size}, ${group.memberCount} enqueued`],
    ["Takes members", group.closed ? "no" : "yes"],
    ["Created", <Age time={group.startTime} />],
    ["Complete", group.endTime && <Age time={group.endTime} />],
    ["Deadline", deadline ? deadlineText(group, durationMs(deadline)) : ""],
    ["Publish numbers", maxPublishNumber ? numbers : ""],
    ["Mean reward", rewards ? `${measure(rewards.mean)} ± ${measure(rewards.std)}` : ""],
    ["Rewards", rewards ? `${measure(rewards.min)} to ${measure(rewards.max)}` : ""],
    ["First claim", firstClaimTime && <Age time={firstClaimTime} />],
  ];
}

function deadlineText(group: Group, ms: number): string {
  const then =
    group.onDeadline === GroupDeadlineAction.KEEP_WAITING ? "waits on" : "cancels the rest";
  const after = `${span(ms / 1000)} after the first claim, then ${then}`;
  if (group.deadlinePassed) return `passed: ${after}`;
  if (!group.firstClaimTime || group.closed) return after;
  const left = (toMs(group.firstClaimTime) + ms - now.value) / 1000;
  return left > 0 ? `in ${span(Math.ceil(left))}: ${after}` : after;
}

/** The calls of each member, by rollout. */
type Calls = ReadonlyMap<string, readonly Triplet[]>;

function Members({ members }: { members: readonly Rollout[] }) {
  const traced = members.filter(({ attemptCount }) => attemptCount > 0);
  const state = traced
    .map((member) => `${member.latestAttemptId}:${member.latestAttempt?.spanCount ?? 0n}`)
    .join();
  const live = useLive<Calls>(
    `members/${route.value.id}`,
    async (store, signal) => {
      const calls = new Map<string, Triplet[]>();
      const rolloutIds = traced.map(({ rolloutId }) => rolloutId);
      const request = { rolloutIds, attemptId: "latest", asMessages: true };
      if (rolloutIds.length)
        for await (const { attempts } of store.listTriplets(request, { signal }))
          for (const { attempt, triplets } of attempts) {
            const id = attempt?.rolloutId ?? "";
            calls.set(id, [...(calls.get(id) ?? []), ...triplets]);
          }
      return calls;
    },
    { follows: false },
  );
  useReload(live, state);
  const { data, error } = live;
  const said = members.map(({ rolloutId }) => answersOf(data?.get(rolloutId) ?? []));
  const at = firstDifference(said.filter((answers) => answers.length));
  return (
    <>
      <ErrorNote error={error} />
      <h2>Members{at > 0 && `: they agree on ${count(at)} ${at === 1 ? "answer" : "answers"}`}</h2>
      <div class="scroll" role="region" aria-label="Members" tabIndex={0}>
        <div class="members">
          {members.map((member, index) => (
            <Member
              key={member.rolloutId}
              rollout={member}
              calls={data?.get(member.rolloutId)}
              answer={said[index]?.[at]}
              number={at + 1}
            />
          ))}
        </div>
      </div>
    </>
  );
}

const answersOf = (calls: readonly Triplet[]): ChatMessage[] =>
  calls.flatMap(({ response }) => response?.messages.slice(0, 1) ?? []);

function Member(props: {
  rollout: Rollout;
  calls: readonly Triplet[] | undefined;
  answer: ChatMessage | undefined;
  number: number;
}) {
  const { rollout, calls, answer, number } = props;
  const { latestAttempt: attempt, rolloutId } = rollout;
  const end = attempt?.endTime ? toMs(attempt.endTime) : now.value;
  const failure = attempt?.failure;
  const facts: [string, ComponentChildren][] = [
    ["Status", <Status name={word(RolloutStatus, rollout.status)} />],
    ["Reward", attempt?.reward === undefined ? "" : <strong>{measure(attempt.reward)}</strong>],
    ["Ran", attempt?.startTime ? span(Math.max(0, end - toMs(attempt.startTime)) / 1000) : ""],
    ["Length", lengthText(calls ?? [])],
  ];
  return (
    <section class="member" aria-label={visible(rolloutId)}>
      <h3>
        <a class="id" href={href("rollout", rolloutId)}>
          {visible(rolloutId)}
        </a>
      </h3>
      <Facts facts={facts} />
      {failure && (
        <p class="quiet">
          ✗ {visible([failure.type, failure.message].filter(Boolean).join(": ").slice(0, 300))}
        </p>
      )}
      {answer && (
        <>
          <p class="quiet">Answer {number}</p>
          <Message message={answer} answers />
        </>
      )}
      {calls && !answer && <p class="quiet">No answer {number} in its spans.</p>}
    </section>
  );
}

/** Returns how long the answers of a member are: in tokens if they are known, else in calls. */
function lengthText(calls: readonly Triplet[]): string {
  if (!calls.length) return "";
  const answers = `${count(calls.length)} ${calls.length === 1 ? "answer" : "answers"}`;
  const counts = calls.map(
    ({ responseTokenCount, response }) => responseTokenCount ?? response?.tokenIds.length ?? 0,
  );
  if (counts.some((tokens) => !tokens)) return answers;
  return `${answers}, ${count(counts.reduce((sum, tokens) => sum + tokens, 0))} tokens`;
}
