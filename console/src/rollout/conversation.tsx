// What was said: the calls of a model as one conversation, whichever convention the spans follow.
import { useSignal } from "@preact/signals";
import { useMemo } from "preact/hooks";
import { useLive } from "../api/live.js";
import { count, measure } from "../format.js";
import type { Attempt } from "../gen/lightningstore/v1/attempt_pb.js";
import type {
  AttemptTriplets,
  ChatMessage,
  ChatPart,
  Triplet,
} from "../gen/lightningstore/v1/triplet_pb.js";
import { Empty, ErrorNote, Loading } from "../parts/basics.js";
import { href, route } from "../router.js";
import { turnsOf, type Turn } from "./fold.js";
import { NoSpans, useSpanReload } from "./spans.js";
import { decoded, Long, Picture, pretty, visible } from "./text.js";

/** Turns that are rendered before more are asked for. */
const SHOWN = 40;

export interface Calls {
  readonly triplets: Triplet[];
  readonly parts: AttemptTriplets[];
}

export function Conversation({ attempt }: { attempt: Attempt }) {
  const { rolloutId, attemptId } = attempt;
  const live = useLive<Calls>(
    `conversation/${rolloutId}/${attemptId}`,
    async (store, signal) => {
      const parts: AttemptTriplets[] = [];
      const request = { rolloutIds: [rolloutId], attemptId, asMessages: true };
      for await (const answer of store.listTriplets(request, { signal }))
        parts.push(...answer.attempts);
      return { parts, triplets: parts.flatMap(({ triplets }) => triplets) };
    },
    { follows: false },
  );
  useSpanReload(live, attempt);
  const shown = useSignal(SHOWN);
  const { data, error } = live;
  // The page is rendered anew with each change in the namespace, and a conversation may be long.
  const turns = useMemo(() => turnsOf(data?.triplets ?? []), [data]);
  const views = useMemo(
    () => turns.slice(0, shown.value).map((turn) => <TurnView key={turn.number} turn={turn} />),
    [turns, shown.value],
  );
  if (!data) return error === undefined ? <Loading /> : <ErrorNote error={error} />;
  return (
    <>
      <ErrorNote error={error} />
      {!turns.length && (attempt.spanCount ? <NoCalls /> : <NoSpans attempt={attempt} />)}
      <ol class="turns">{views}</ol>
      {turns.length > shown.value && (
        <button type="button" onClick={() => (shown.value += SHOWN)}>
          Show more: {count(turns.length - shown.value)} calls follow
        </button>
      )}
      <Warnings parts={data.parts} />
    </>
  );
}

function NoCalls() {
  return (
    <Empty>
      None of the spans is known as a call of a model. The waterfall shows them;{" "}
      <code>docs/triplets.md</code> says which spans count.
    </Empty>
  );
}

/** What could not be read of the trace. */
export function Warnings({ parts }: { parts: readonly AttemptTriplets[] }) {
  const warnings = parts.flatMap((part) => part.warnings);
  const total = parts.reduce((sum, part) => sum + part.warningCount, 0);
  if (!warnings.length) return null;
  return (
    <details class="warnings">
      <summary>{count(total)} of the trace could not be read, or counts differently</summary>
      <ul>
        {warnings.map((warning, index) => (
          <li key={index}>
            {warning.attribute && <code>{visible(warning.attribute)}: </code>}
            {visible(warning.message)}
          </li>
        ))}
      </ul>
    </details>
  );
}

function TurnView({ turn }: { turn: Turn }) {
  const { triplet, number } = turn;
  const { params, id } = route.value;
  const link = href("rollout", id, {
    ...Object.fromEntries(params),
    tab: "waterfall",
    span: triplet.spanId,
  });
  return (
    <li class="turn">
      <h2>
        <a href={link} title="Show the span of this call">
          Call {number}
        </a>
        <Facts triplet={triplet} />
      </h2>
      {turn.after > 0 && <Before turn={turn} />}
      {[...turn.asked, ...turn.answered].map((message, index) => (
        <Message key={index} message={message} answers={index >= turn.asked.length} />
      ))}
      {!turn.answered.length && <p class="quiet">The trace has no answer to this call.</p>}
    </li>
  );
}

function Facts({ triplet }: { triplet: Triplet }) {
  const { promptTokenCount: asked, responseTokenCount: answered, agentName, reward } = triplet;
  const facts = [
    agentName && agentName !== "*" ? visible(agentName) : "",
    asked === undefined && answered === undefined
      ? ""
      : `${asked ?? "?"} → ${answered ?? "?"} tokens`,
    reward ? `reward ${measure(reward.value)}` : "",
  ];
  return <span class="quiet"> {facts.filter(Boolean).join(" · ")}</span>;
}

/** Where a call goes on: after the call before it, or from an earlier message, as a branch. */
function Before({ turn }: { turn: Turn }) {
  const open = useSignal(false);
  const messages = turn.repeated.length;
  const what = `${count(messages)} ${messages === 1 ? "message" : "messages"}`;
  return (
    <details
      class={turn.branches ? "before branch" : "before"}
      onToggle={(event) => (open.value = event.currentTarget.open)}
    >
      <summary>
        {turn.branches
          ? `↳ Branch: shares ${what} with call ${turn.after}`
          : `Continues call ${turn.after}: ${what} before`}
      </summary>
      {open.value &&
        turn.repeated.map((message, index) => <Message key={index} message={message} />)}
    </details>
  );
}

export function Message({ message, answers }: { message: ChatMessage; answers?: boolean }) {
  const { role, name, parts } = message;
  const known = ["system", "user", "assistant", "tool"].includes(role) ? role : "other";
  return (
    <article class={`message ${known} ${answers ? "answer" : ""}`}>
      <h3>
        {visible(role) || "message"}
        {name && <span class="quiet"> {visible(name)}</span>}
      </h3>
      {parts.map((part, index) => (
        <Part key={index} part={part} />
      ))}
      {!parts.length && <p class="quiet">(empty)</p>}
    </article>
  );
}

function Part({ part: { part } }: { part: ChatPart }) {
  switch (part.case) {
    case "text":
      return <Long text={part.value} />;
    case "reasoning":
      return (
        <details class="reasoning">
          <summary>Reasoning, {count(part.value.length)} characters</summary>
          <Long text={part.value} />
        </details>
      );
    case "toolCall":
      return (
        <div class="tool">
          <p class="tool-name">
            <span class="quiet">calls </span>
            <code>{visible(part.value.name) || "a tool"}</code>
          </p>
          {part.value.arguments && <Long code text={pretty(part.value.arguments)} />}
        </div>
      );
    case "toolResult":
      return (
        <div class="tool">
          {part.value.name && (
            <p class="tool-name">
              <span class="quiet">result of </span>
              <code>{visible(part.value.name)}</code>
            </p>
          )}
          <Long code text={pretty(part.value.content)} />
        </div>
      );
    case "imageUrl":
      return <Picture url={part.value} />;
    case "otherJson":
      return <Long code text={pretty(decoded(part.value))} />;
    default:
      return <p class="quiet">(a part that this console does not know)</p>;
  }
}
