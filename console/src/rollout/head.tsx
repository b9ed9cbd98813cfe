// What there is to know of a rollout at a glance.
import type { Timestamp } from "@bufbuild/protobuf/wkt";
import type { ComponentChildren } from "preact";
import { measure, now, span, timeText, toMs, word } from "../format.js";
import {
  AttemptStatus,
  RewardSource,
  type Attempt,
  type Failure,
} from "../gen/lightningstore/v1/attempt_pb.js";
import { RolloutMode, RolloutStatus, type Rollout } from "../gen/lightningstore/v1/rollout_pb.js";
import { Age, Status } from "../parts/basics.js";
import { href } from "../router.js";
import { Facts } from "./span-details.js";
import { Long, visible } from "./text.js";

export function Head({ rollout, attempt }: { rollout: Rollout; attempt: Attempt | undefined }) {
  const { groupId, labels, queue, priority, latestAttemptId } = rollout;
  const earlier = attempt && attempt.attemptId !== latestAttemptId;
  const facts: [string, ComponentChildren][] = [
    ["Status", <Status name={word(RolloutStatus, rollout.status)} />],
    ["Attempt", earlier ? <Status name={word(AttemptStatus, attempt.status)} /> : ""],
    ["Reward", <Reward attempt={attempt} />],
    ["Mode", rollout.mode ? word(RolloutMode, rollout.mode) : ""],
    ["Queue", queue],
    ["Priority", priority || ""],
    ["Group", groupId && <GroupLink id={groupId} />],
    ["Enqueued", <Age time={rollout.startTime} />],
    ["Waited", attempt && between(rollout.startTime, attempt.startTime)],
    ["Ran", attempt && between(attempt.startTime, attempt.endTime)],
    ["Worker", attempt?.workerId ? visible(attempt.workerId) : ""],
    ["Labels", Object.keys(labels).length ? <Labels labels={labels} /> : ""],
  ];
  return <Facts facts={facts} />;
}

function Reward({ attempt }: { attempt: Attempt | undefined }) {
  if (attempt?.reward === undefined) return <NoReward attempt={attempt} />;
  const from = attempt.rewardSource === RewardSource.SPANS ? " from its spans" : "";
  return (
    <span title={String(attempt.reward)}>
      <strong>{measure(attempt.reward)}</strong>
      {from && <span class="quiet">{from}</span>}
    </span>
  );
}

/** A reward may still come while the attempt has not ended. */
export function NoReward({ attempt }: { attempt: Attempt | undefined }) {
  return <span class="quiet">{attempt?.endTime ? "none" : "none yet"}</span>;
}

function GroupLink({ id }: { id: string }) {
  return (
    <a class="id" href={href("group", id)}>
      {visible(id)}
    </a>
  );
}

function Labels({ labels }: { labels: Readonly<Record<string, string>> }) {
  return (
    <>
      {Object.entries(labels).map(([key, value]) => (
        <a key={key} class="label" href={href("rollouts", "", { label: `${key}=${value}` })}>
          {visible(key)}={visible(value)}
        </a>
      ))}
    </>
  );
}

/** How long something took, or has been taking until now. */
function between(start: Timestamp | undefined, end: Timestamp | undefined): ComponentChildren {
  if (!start) return "";
  const seconds = Math.max(0, (end ? toMs(end) : now.value) - toMs(start)) / 1000;
  return (
    <span title={`${timeText(start)} – ${end ? timeText(end) : "now"}`}>
      {span(end ? seconds : Math.max(1, Math.floor(seconds)))}
      {!end && " so far"}
    </span>
  );
}

export function FailureNote({ failure }: { failure: Failure }) {
  return (
    <div class="note bad">
      <strong>✗ {visible(failure.type) || "Failure"}</strong>
      {failure.retryable === false && <span> (not to be retried)</span>}
      {failure.message && <Long text={failure.message} />}
    </div>
  );
}
