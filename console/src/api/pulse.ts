// When to load again: the statistics of the namespace are asked for twice a second while the tab is visible, and what is
// shown is loaded again when they have changed.
//
// Not by WatchRollouts: a stream sends each finish to each tab, holds one of the six connections that a browser has for a
// server, and says nothing of claims and workers. A call that reads counters costs the same at any speed of training.
import { computed, effect, signal } from "@preact/signals";
import { namespace } from "../router.js";
import type {
  GetServerInfoResponse,
  GetStatisticsResponse,
} from "../gen/lightningstore/v1/statistics_pb.js";
import { storeOf, token } from "./client.js";
import { inWords, isAborted, isLate, isLost, needsToken } from "./errors.js";

export type Connection = "connecting" | "connected" | "lost" | "needs token" | "refused";

const PERIOD_MS = 500;
const MAX_BACKOFF_MS = 5_000;
/** A server that has not answered for this long is lost: one that hangs, or a network that says nothing. */
const TIMEOUT_MS = 10_000;

/** State of the connection, which the frame shows. */
export const connection = signal<Connection>("connecting");
/** Why calls are refused, in words; "" if they are not. */
export const refusal = signal("");
/** Counters of the namespace that is shown, as of the last call. */
export const statistics = signal<GetStatisticsResponse | undefined>(undefined);
/** What the server says of itself. */
export const server = signal<GetServerInfoResponse | undefined>(undefined);
/** Grows by 1 whenever something in the namespace has changed, and after the server was restarted. */
export const pulse = signal(0);

const visible = signal(document.visibilityState === "visible");
document.addEventListener(
  "visibilitychange",
  () => (visible.value = document.visibilityState === "visible"),
);

/** Whether somebody may be looking, and the server answers. */
export const isWatched = () => visible.peek() && connection.peek() === "connected";

/** Returns what tells whether anything has changed. */
function fingerprint(counters: GetStatisticsResponse): string {
  const passing = { uptime: 0, waiterCount: 0, finishedLastMinuteCount: 0 };
  const changing = { ...counters, ...passing, fileBytes: 0, diskFreeBytes: 0 };
  return JSON.stringify(changing, (_, value: unknown) =>
    typeof value === "bigint" ? value.toString() : value,
  );
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}

async function beat(name: string, signal: AbortSignal): Promise<void> {
  const store = storeOf(name);
  const options = { signal, timeoutMs: TIMEOUT_MS };
  let last = "";
  let failures = 0;
  while (!signal.aborted) {
    try {
      if (!server.peek() || failures) server.value = await store.getServerInfo({}, options);
      const counters = await store.getStatistics({}, options);
      const now = fingerprint(counters);
      statistics.value = counters;
      connection.value = "connected";
      refusal.value = "";
      if (now !== last || failures) pulse.value += 1;
      last = now;
      failures = 0;
    } catch (error) {
      if (isAborted(error)) return;
      if (needsToken(error)) {
        connection.value = "needs token";
        refusal.value = token.peek() ? inWords(error) : "";
        return; // until there is another token
      }
      failures += 1;
      const lost = isLost(error) || isLate(error);
      connection.value = lost ? "lost" : "refused";
      refusal.value = lost ? "" : inWords(error);
    }
    await pause(failures ? Math.min(PERIOD_MS * 2 ** failures, MAX_BACKOFF_MS) : PERIOD_MS, signal);
  }
}

/** Whom the calls are made as, and where. */
const caller = computed(() => ({ name: namespace.value, token: token.value }));

// What another namespace or token has shown is not shown to this one.
effect(() => {
  if (!caller.value.name) return;
  server.value = undefined;
  statistics.value = undefined;
});

effect(() => {
  const { name } = caller.value;
  if (!visible.value) return;
  const abort = new AbortController();
  void beat(name, abort.signal);
  return () => abort.abort();
});
