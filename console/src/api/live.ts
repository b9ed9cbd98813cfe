// The hook of every page: load, show, and load again when something has changed.
import { useSignal, useSignalEffect } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { namespace } from "../router.js";
import { storeOf, type Store } from "./client.js";
import { isAborted, isLost } from "./errors.js";
import { isWatched, pulse } from "./pulse.js";

export interface Live<T> {
  /** What was loaded last. Kept while it is loaded again, also for another key, and while the server is not reached. */
  readonly data: T | undefined;
  /** Whether `data` is still that of another key. */
  readonly stale: boolean;
  /** The error of the last load, if it failed. Not while the server is not reached: the frame says so. */
  readonly error: unknown;
  /** Load again now. */
  readonly reload: () => void;
}

export interface LiveOptions {
  /** Also load again after this time, for what statistics do not show, such as heartbeats. Absent: never. */
  readonly everyMs?: number;
  /** Whether changes in the namespace load again. Absent: yes. */
  readonly follows?: boolean;
  /** Maximum share of the time that loads take, so that slow answers do not occupy the server. Absent: a quarter. */
  readonly share?: number;
  /** Minimum time between two loads. Absent: a quarter of a second. */
  readonly pauseMs?: number;
}

const SHARE = 1 / 4;
const PAUSE_MS = 250;
/** Minimum time between two loads that do not reach the server. */
const LOST_PAUSE_MS = 1_000;

/**
 * Loads with the store of the shown namespace. Loads anew when `key` changes, and again when the namespace has changed.
 *
 * @param key Everything that `load` depends on, as text; the namespace belongs to it by itself.
 * @param load Makes the calls. Their options take the signal, so that a page that is left ends them.
 */
export function useLive<T>(
  key: string,
  load: (store: Store, signal: AbortSignal) => Promise<T>,
  { everyMs, follows = true, share = SHARE, pauseMs = PAUSE_MS }: LiveOptions = {},
): Live<T> {
  const state = useSignal<{ key: string; data?: T; error?: unknown }>({ key: "" });
  const demand = useRef<() => void>(() => undefined);
  const latest = useRef(load);
  latest.current = load;
  const name = namespace.value;
  const whole = `${name}\n${key}`;

  useEffect(() => {
    const abort = new AbortController();
    const { signal } = abort;
    let demanded = true as boolean;
    let wake: () => void = () => undefined;
    demand.current = () => {
      demanded = true;
      wake();
    };
    const loadOnce = async () => {
      try {
        const data = await latest.current(storeOf(name), signal);
        if (!signal.aborted) state.value = { key: whole, data };
      } catch (error) {
        if (signal.aborted || isAborted(error)) return;
        const kept = state.peek();
        const keeps = kept.key === whole && kept.data !== undefined;
        state.value = keeps ? { ...kept, error } : { key: whole, error };
      }
    };
    void (async () => {
      for (;;) {
        if (!demanded) await new Promise<void>((resolve) => (wake = resolve));
        if (signal.aborted) return;
        demanded = false;
        const began = performance.now();
        await loadOnce();
        const spent = performance.now() - began;
        const lost = isLost(state.peek().error);
        const rest = Math.max(pauseMs, spent / share - spent, lost ? LOST_PAUSE_MS : 0);
        await new Promise((resolve) => setTimeout(resolve, rest));
        // Where the connection is lost as a whole, the pulse tells when it is back.
        if (lost && isWatched()) demanded = true;
      }
    })();
    const timer = setInterval(() => {
      if (everyMs !== undefined && isWatched()) demand.current();
    }, everyMs ?? 60_000);
    return () => {
      abort.abort();
      clearInterval(timer);
      wake();
    };
  }, [whole, everyMs]);

  useSignalEffect(() => {
    // What has failed is loaded again in any case: nothing else would ever replace an empty view.
    if (pulse.value && (follows || state.peek().error !== undefined)) demand.current();
  });

  const { value } = state;
  const stale = value.key !== whole;
  return {
    data: value.data,
    stale,
    error: stale || isLost(value.error) ? undefined : value.error,
    reload: () => demand.current(),
  };
}

/** Loads again when `state` has changed. What it is at first belongs to the first load. */
export function useReload(live: Live<unknown>, state: string): void {
  const loaded = useRef(state);
  useEffect(() => {
    if (loaded.current === state) return;
    loaded.current = state;
    live.reload();
  }, [state]);
}
