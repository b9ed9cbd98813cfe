// One rollout: its attempts, and what each of them did.
import type { FunctionComponent } from "preact";
import type { Store } from "../api/client.js";
import { useLive } from "../api/live.js";
import { word } from "../format.js";
import { AttemptStatus, type Attempt } from "../gen/lightningstore/v1/attempt_pb.js";
import { RolloutStatus, type Rollout } from "../gen/lightningstore/v1/rollout_pb.js";
import { Empty, ErrorNote, Loading, Page, Status } from "../parts/basics.js";
import { inNamespace, quoted } from "../parts/commands.js";
import { route, setParams } from "../router.js";
import { Actions } from "../rollout/actions.js";
import { Conversation } from "../rollout/conversation.js";
import { FailureNote, Head } from "../rollout/head.js";
import { Raw } from "../rollout/raw.js";
import "../rollout/rollout.css";
import { Scores } from "../rollout/scores.js";
import { Tabs } from "../rollout/tabs.js";
import { visible } from "../rollout/text.js";
import { Tokens } from "../rollout/tokens.js";
import { Waterfall } from "../rollout/waterfall.js";

interface Data {
  readonly rollout: Rollout;
  readonly attempts: readonly Attempt[];
}

/** Attempts that are listed; more are not expected of a rollout. */
const MAX_ATTEMPTS = 1000;

async function load(store: Store, rolloutId: string, signal: AbortSignal): Promise<Data> {
  const [{ rollout }, attempts] = await Promise.all([
    store.getRollout({ rolloutId }, { signal }),
    listAttempts(store, rolloutId, signal),
  ]);
  if (!rollout) throw new Error(`the server sent no rollout for ${rolloutId}`);
  return { rollout, attempts };
}

async function listAttempts(store: Store, rolloutId: string, signal: AbortSignal) {
  const attempts: Attempt[] = [];
  let pageToken = "";
  do {
    const page = await store.listAttempts({ rolloutId, pageToken, pageSize: 100 }, { signal });
    attempts.push(...page.attempts);
    pageToken = page.nextPageToken;
  } while (pageToken && attempts.length < MAX_ATTEMPTS);
  return attempts;
}

export function RolloutPage() {
  const { id, params } = route.value;
  const { data, error, reload } = useLive(id, (store, signal) => load(store, id, signal));
  if (!data)
    return (
      <Page title={`Rollout ${visible(id)}`}>
        <ErrorNote error={error} />
        {error === undefined && <Loading />}
      </Page>
    );
  const { rollout, attempts } = data;
  const named = params.get("attempt");
  const attempt = named ? attempts.find(({ attemptId }) => attemptId === named) : attempts.at(-1);
  return (
    <Page title={`Rollout ${visible(id)}`} actions={<Actions rollout={rollout} done={reload} />}>
      <ErrorNote error={error} />
      <Head rollout={rollout} attempt={attempt} />
      {attempt?.failure && <FailureNote failure={attempt.failure} />}
      <Attempts attempts={attempts} chosen={attempt?.attemptId ?? ""} />
      {named && !attempt && (
        <p class="note">
          This rollout has no attempt {visible(named)}.{" "}
          <button type="button" class="link" onClick={() => setParams({ attempt: undefined })}>
            Show the latest one
          </button>
        </p>
      )}
      <Content key={attempt?.attemptId} rollout={rollout} attempts={attempts} attempt={attempt} />
    </Page>
  );
}

function Attempts({ attempts, chosen }: { attempts: readonly Attempt[]; chosen: string }) {
  if (attempts.length < 2) return null;
  const latest = attempts.at(-1)?.attemptId;
  return (
    <label class="attempts">
      <span>Attempt</span>
      <select
        value={chosen}
        onChange={({ currentTarget: { value } }) =>
          setParams({ attempt: value === latest ? undefined : value, span: undefined })
        }
      >
        {attempts.map(({ attemptId, sequenceNumber, status }) => (
          <option key={attemptId} value={attemptId}>
            {sequenceNumber} of {attempts.length}: {word(AttemptStatus, status)}
          </option>
        ))}
      </select>
    </label>
  );
}

interface TabProps {
  readonly rollout: Rollout;
  readonly attempts: readonly Attempt[];
  readonly attempt: Attempt;
}

const TABS: Readonly<Record<string, { title: string; component: FunctionComponent<TabProps> }>> = {
  conversation: { title: "Conversation", component: Conversation },
  waterfall: { title: "Waterfall", component: Waterfall },
  tokens: { title: "Tokens", component: Tokens },
  scores: { title: "Rewards and scores", component: Scores },
  raw: { title: "Raw JSON", component: Raw },
};

function Content(props: {
  rollout: Rollout;
  attempts: readonly Attempt[];
  attempt: Attempt | undefined;
}) {
  const { rollout, attempts, attempt } = props;
  const named = route.value.params.get("tab") ?? "";
  const chosen = named in TABS ? named : "conversation";
  const Shown = TABS[chosen]?.component;
  return (
    <Tabs
      label="Views"
      titles={Object.entries(TABS).map(([name, { title }]) => [name, title])}
      chosen={chosen}
      onChoose={(tab) => setParams({ tab: tab === "conversation" ? undefined : tab })}
    >
      {attempt && Shown ? (
        <Shown rollout={rollout} attempts={attempts} attempt={attempt} />
      ) : chosen === "raw" ? (
        <Raw rollout={rollout} attempts={attempts} />
      ) : (
        !attempts.length && <Unclaimed rollout={rollout} />
      )}
    </Tabs>
  );
}

function Unclaimed({ rollout }: { rollout: Rollout }) {
  const status = word(RolloutStatus, rollout.status);
  if (rollout.status === RolloutStatus.CANCELLED)
    return (
      <Empty>
        <Status name={status} /> before a worker claimed it. <i>Retry</i> puts it into the queue.
      </Empty>
    );
  return (
    <Empty command={inNamespace(`lightningstore claim --id ${quoted(rollout.rolloutId)}`)}>
      <Status name={status} /> No worker has claimed this rollout. A runner does, or this command:
    </Empty>
  );
}
