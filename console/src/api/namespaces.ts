// Which namespaces there are, as far as the token may know.
import { signal } from "@preact/signals";
import type { Namespace } from "../gen/lightningstore/v1/namespace_pb.js";
import { namespaces, token } from "./client.js";
import { isDenied } from "./errors.js";

/** The token that may not list namespaces: it is not asked for again. */
const denied = signal<string | undefined>(undefined);

/** Returns the first namespaces by name; undefined if the role of the token may not list them. */
export async function listNamespaces(
  pageSize: number,
  signal: AbortSignal,
): Promise<{ namespaces: Namespace[]; more: boolean } | undefined> {
  const asked = token.peek();
  if (denied.peek() === asked) return undefined;
  try {
    const answer = await namespaces.listNamespaces({ pageSize }, { signal });
    return { namespaces: answer.namespaces, more: answer.nextPageToken !== "" };
  } catch (error) {
    if (!isDenied(error)) throw error;
    denied.value = asked;
    return undefined;
  }
}
