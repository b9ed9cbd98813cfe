// The rows of tokens to train on: which of them are trained, and how likely each was.
import { useSignal } from "@preact/signals";
import type { Store } from "../api/client.js";
import { useLive } from "../api/live.js";
import { count, measure } from "../format.js";
import type { Attempt } from "../gen/lightningstore/v1/attempt_pb.js";
import type { AttemptSamples, Sample } from "../gen/lightningstore/v1/sample_pb.js";
import { Empty, ErrorNote, Loading } from "../parts/basics.js";
import { route, setParams } from "../router.js";
import { NoSpans, useSpanReload } from "./spans.js";
import { decoded, visible } from "./text.js";

/** Tokens that are rendered at a time. */
const SHOWN = 1500;

/** The texts of the tokens of each response, by the span of its call. */
type Texts = ReadonlyMap<string, readonly string[]>;

export function Tokens({ attempt }: { attempt: Attempt }) {
  const { rolloutId, attemptId } = attempt;
  const live = useLive(
    `tokens/${rolloutId}/${attemptId}`,
    async (store, signal) => {
      const parts: AttemptSamples[] = [];
      const request = { rolloutIds: [rolloutId], attemptId };
      for await (const answer of store.listSamples(request, { signal }))
        parts.push(...answer.attempts);
      const samples = parts.flatMap(({ samples }) => samples);
      const named = samples.some(({ logprobs }) => logprobs.length > 0);
      return {
        samples,
        warnings: parts.flatMap(({ warnings }) => warnings),
        texts: named ? await loadTexts(store, request, signal) : new Map<string, string[]>(),
      };
    },
    { follows: false },
  );
  useSpanReload(live, attempt);
  const { data, error } = live;
  if (!data) return error === undefined ? <Loading /> : <ErrorNote error={error} />;
  const { samples, warnings, texts } = data;
  const at = Math.min(Number(route.value.params.get("row")) || 0, samples.length - 1);
  const sample = samples[at];
  if (!sample)
    return attempt.spanCount ? (
      <Empty>
        The spans hold no token ids. <code>docs/samples.md</code> says which attributes do.
        {warnings[0] && ` ${visible(warnings[0].message)}`}
      </Empty>
    ) : (
      <NoSpans attempt={attempt} />
    );
  return (
    <>
      <ErrorNote error={error} />
      {samples.length > 1 && (
        <label class="attempts">
          <span>Row</span>
          <select
            value={String(at)}
            onChange={(event) => setParams({ row: event.currentTarget.value })}
          >
            {samples.map(({ tokenIds }, index) => (
              <option key={index} value={String(index)}>
                {index + 1} of {samples.length}: {count(tokenIds.length)} tokens
              </option>
            ))}
          </select>
        </label>
      )}
      <Strip key={at} sample={sample} texts={textsOf(sample, texts)} />
    </>
  );
}

/** Loads the texts of tokens. Spans have them beside the log-probabilities, and only of what was sampled. */
async function loadTexts(
  store: Store,
  request: { rolloutIds: string[]; attemptId: string },
  signal: AbortSignal,
): Promise<Texts> {
  const texts = new Map<string, string[]>();
  for await (const { attempts } of store.listTriplets(request, { signal }))
    for (const { spanId, response } of attempts.flatMap(({ triplets }) => triplets))
      if (response?.logprobsJson.length)
        texts.set(spanId, list(decoded(response.logprobsJson)).map(textOf));
  return texts;
}

function list(json: string): unknown[] {
  const value: unknown = JSON.parse(json);
  return Array.isArray(value) ? value : [];
}

/** Returns the text of a token, "" if it is not known; some servers write its id in its place. */
function textOf(item: unknown): string {
  const { token, bytes } = (item ?? {}) as { token?: unknown; bytes?: unknown };
  if (typeof token === "string" && !/^token_id:\d+$/.test(token)) return token;
  return Array.isArray(bytes) ? decoded(Uint8Array.from(bytes as number[])) : "";
}

/** Returns the texts of a row, by the position of the token. */
function textsOf({ segments }: Sample, texts: Texts): Map<number, string> {
  const found = new Map<number, string>();
  for (const { spanId, firstToken, endToken } of segments) {
    const ofCall = texts.get(spanId) ?? [];
    if (ofCall.length === endToken - firstToken)
      ofCall.forEach((text, index) => found.set(firstToken + index, text));
  }
  return found;
}

function Strip({ sample, texts }: { sample: Sample; texts: ReadonlyMap<number, string> }) {
  const page = useSignal(0);
  const { tokenIds, mask, logprobs, segments } = sample;
  const pages = Math.ceil(tokenIds.length / SHOWN);
  const from = Math.min(page.value, pages - 1) * SHOWN;
  const to = Math.min(from + SHOWN, tokenIds.length);
  const trained = mask.filter(Boolean).length;
  const starts = new Map(segments.map((segment, index) => [segment.firstToken, index + 1]));
  return (
    <>
      <div class="bar">
        <span class="quiet">
          {count(tokenIds.length)} tokens, {count(trained)} trained
          {sample.truncated && ", cut off at a limit of tokens"}
          {sample.reward !== undefined && `, reward ${measure(sample.reward)}`}
        </span>
        <Legend hasLogprobs={logprobs.length > 0} />
      </div>
      <div class="tokens" role="list" aria-label="Tokens" tabIndex={0}>
        {tokenIds.slice(from, to).map((id, index) => (
          <Token
            key={from + index}
            at={from + index}
            id={id}
            name={texts.get(from + index) ?? ""}
            trained={mask[from + index] ?? false}
            logprob={logprobs[from + index]}
            answer={starts.get(from + index)}
          />
        ))}
      </div>
      {pages > 1 && (
        <nav class="pages" aria-label="Pages of tokens">
          <button type="button" disabled={!from} onClick={() => (page.value -= 1)}>
            Previous
          </button>
          <button type="button" disabled={to === tokenIds.length} onClick={() => (page.value += 1)}>
            Next
          </button>
          <span class="quiet">
            {count(from + 1)} to {count(to)} of {count(tokenIds.length)}
          </span>
        </nav>
      )}
    </>
  );
}

/** Steps of the colour: the upper limit of each, as a log-probability. */
const STEPS = [-4, -2, -1, -0.25];

/** Returns the step of a log-probability: 0 is unlikely, 4 is almost certain. */
function stepOf(logprob: number): number {
  const at = STEPS.findIndex((limit) => logprob < limit);
  return at < 0 ? STEPS.length : at;
}

function Legend({ hasLogprobs }: { hasLogprobs: boolean }) {
  const likely = ["below −4", "−4 to −2", "−2 to −1", "−1 to −0.25", "above −0.25"];
  return (
    <span class="legend">
      <span class="token">prompt</span>
      {hasLogprobs ? (
        <>
          <span class="quiet">trained, by log-probability:</span>
          {likely.map((text, step) => (
            <span key={step} class={`token trained p${step}`}>
              {text}
            </span>
          ))}
        </>
      ) : (
        <>
          <span class="token trained">trained</span>
          <span class="quiet">no log-probabilities</span>
        </>
      )}
    </span>
  );
}

function Token(props: {
  at: number;
  id: number;
  /** Its text, "" if it is not known. */
  name: string;
  trained: boolean;
  logprob: number | undefined;
  answer: number | undefined;
}) {
  const { at, id, name, trained, logprob, answer } = props;
  const known = trained && logprob !== undefined;
  const words = [
    `token ${at + 1}: id ${id}`,
    trained ? "trained" : "not trained",
    known ? `log-probability ${measure(logprob)}` : "",
    answer ? `begins answer ${answer}` : "",
  ];
  const text = words.filter(Boolean).join(", ");
  const spoken = [name && `id ${id}`, ...words.slice(1)];
  const kind = ["token", trained && "trained", known && `p${stepOf(logprob)}`, answer && "first"];
  return (
    <span class={kind.filter(Boolean).join(" ")} role="listitem" title={text}>
      {name ? visible(name.replaceAll("\n", "⏎").replaceAll("\t", "⇥")) : id}
      {(trained || name) && <span class="hidden"> {spoken.filter(Boolean).join(", ")}</span>}
    </span>
  );
}
