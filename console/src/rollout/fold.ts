// Calls of a model as a conversation: each message once, although every prompt repeats what was said before.
import type { ChatMessage, ChatPart, Triplet } from "../gen/lightningstore/v1/triplet_pb.js";
import { decoded } from "./text.js";

/** One call, with the messages that were not shown before. */
export interface Turn {
  readonly triplet: Triplet;
  /** Number of the call, from 1. */
  readonly number: number;
  /** Messages of the prompt that earlier turns show. */
  readonly repeated: readonly ChatMessage[];
  /** The rest of the prompt. */
  readonly asked: readonly ChatMessage[];
  readonly answered: readonly ChatMessage[];
  /** The call whose messages are repeated, 0 if none are. */
  readonly after: number;
  /** Whether that call went on differently. */
  readonly branches: boolean;
}

interface Thread {
  readonly keys: readonly string[];
  readonly call: number;
  continued: boolean;
}

/** Threads that a prompt is compared with: the latest. */
const COMPARED = 64;

/** Returns the turns of calls. A prompt that goes on where a call ended follows it; one that goes on earlier is a branch. */
export function turnsOf(triplets: readonly Triplet[]): Turn[] {
  const threads: Thread[] = [];
  return triplets.map((triplet, index) => {
    const asked = triplet.prompt?.messages ?? [];
    const answered = triplet.response?.messages ?? [];
    const keys = asked.map(keyOf);
    let best: Thread | undefined;
    let length = 0;
    for (const thread of threads.slice(-COMPARED)) {
      const common = commonLength(thread.keys, keys);
      if (common > length) [best, length] = [thread, common];
    }
    // Calls that share the instructions alone are conversations of their own.
    if (asked.slice(0, length).every(({ role }) => role === "system"))
      [best, length] = [undefined, 0];
    const branches = best !== undefined && (best.continued || length < best.keys.length);
    if (best && length === best.keys.length) best.continued = true;
    threads.push({
      keys: [...keys, ...answered.map(keyOf)],
      call: index + 1,
      continued: false,
    });
    return {
      triplet,
      number: index + 1,
      repeated: asked.slice(0, length),
      asked: asked.slice(length),
      answered,
      after: best?.call ?? 0,
      branches,
    };
  });
}

function commonLength(some: readonly string[], others: readonly string[]): number {
  const end = Math.min(some.length, others.length);
  let at = 0;
  while (at < end && some[at] === others[at]) at += 1;
  return at;
}

/** Returns what tells whether two messages are the same. A prompt repeats an answer with other ids, and without its thoughts. */
function keyOf(message: ChatMessage): string {
  return [message.role, ...message.parts.map(partKey).filter(Boolean)].join("\u0000");
}

function partKey({ part }: ChatPart): string {
  switch (part.case) {
    case "text":
    case "imageUrl":
      return part.value.trim();
    case "toolCall":
      return `${part.value.name}(${compact(part.value.arguments)})`;
    case "toolResult":
      return part.value.content.trim();
    case "otherJson":
      return decoded(part.value);
    default:
      return "";
  }
}

function compact(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text));
  } catch {
    return text.trim();
  }
}

/** Returns the position of the first message that is not the same in all lists; 0 for a single list. */
export function firstDifference(lists: readonly (readonly ChatMessage[])[]): number {
  const [first, ...others] = lists.map((messages) => messages.map(keyOf));
  if (!first || !others.length) return 0;
  return Math.min(
    // If all are the same, the last message is shown.
    Math.max(0, first.length - 1),
    ...others.map((other) => commonLength(first, other)),
  );
}
