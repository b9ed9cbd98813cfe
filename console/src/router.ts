// The link of a page is `#/page/id?state`. It stays in the fragment: the server needs one route for all pages, ids may
// contain any character, a proxy may add a path, and neither ids nor filters get into the logs of a proxy.
import { computed, signal } from "@preact/signals";

export interface Route {
  /** The first part of the path: which page it is. Empty: the overview. */
  readonly page: string;
  /** The second part of the path: id of the record that is shown, or "". */
  readonly id: string;
  /** The state of the page: filters, order, selection. */
  readonly params: URLSearchParams;
}

export const DEFAULT_NAMESPACE = "default";

const fragment = signal(window.location.hash);
window.addEventListener("hashchange", () => (fragment.value = window.location.hash));

export const route = computed<Route>(() => parse(fragment.value));
export const namespace = computed(() => route.value.params.get("namespace") ?? DEFAULT_NAMESPACE);

/** Returns the link of a page, in the namespace that is shown unless `state` names another. */
export function href(page: string, id = "", state: Record<string, string> = {}): string {
  const params = new URLSearchParams(state);
  if (!params.has("namespace")) params.set("namespace", namespace.value);
  if (params.get("namespace") === DEFAULT_NAMESPACE) params.delete("namespace");
  return written({ page, id, params });
}

/** Changes the state of the page, and its link with it. Undefined and "" remove a name. */
export function setParams(changes: Record<string, string | undefined>): void {
  const { page, id, params } = route.value;
  const next = new URLSearchParams(params);
  for (const [name, value] of Object.entries(changes)) {
    if (value) next.set(name, value);
    else next.delete(name);
  }
  // A filter is a step of its own for the browser's back button only where the page changes.
  history.replaceState(null, "", written({ page, id, params: next }));
  fragment.value = window.location.hash;
}

/** Opens a link as if it had been clicked. */
export function go(link: string): void {
  window.location.hash = link;
}

function written({ page, id, params }: Route): string {
  const path = [page, id].filter(Boolean).map(encodeURIComponent).join("/");
  const state = params.toString();
  return `#/${path}${state && `?${state}`}`;
}

function parse(hash: string): Route {
  const [path = "", ...state] = hash.replace(/^#?\/?/, "").split("?");
  const [page = "", id = ""] = path.split("/").map(decoded);
  return { page, id, params: new URLSearchParams(state.join("?")) };
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
