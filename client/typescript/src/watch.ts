/** Watches that resume after a broken connection. */

import type { Group } from "./gen/lightningstore/v1/group_pb.js";
import type { Resources } from "./gen/lightningstore/v1/resources_pb.js";
import type { CallOptions, Stubs } from "./rpc.js";
import { takenUp } from "./streams.js";

/** Where a watch starts. */
export interface WatchOptions {
  /**
   * The last number that was seen: only items with greater numbers follow. 0: from the first one that the server
   * has. Default: only items from now on.
   */
  readonly after?: bigint | number;
  /** Id of the store that `after` comes from. Default: not checked. */
  readonly storeId?: string;
  /** Ends the watch with an error of code CANCELLED. */
  readonly signal?: AbortSignal;
  /** Called once, when the server has registered the watch: no later item is missed. */
  readonly onStarted?: () => void;
}

/** One message of a watch. */
interface Watched<T> {
  readonly items: readonly T[];
  readonly through: bigint;
  readonly storeId: string;
}

/** What a watch watches. */
export interface Subject<T> {
  readonly open: (
    after: bigint | undefined,
    storeId: string,
    call: CallOptions,
  ) => AsyncIterable<Watched<T>>;
  readonly number: (item: T) => bigint;
}

/**
 * Items in the order of their numbers, without end: `for await (const item of watch)`. It can be iterated once. It
 * resumes after a broken connection, and neither misses nor repeats an item.
 */
export class Watch<T> implements AsyncIterable<T> {
  /**
   * Number up to which everything has been iterated, to start a later watch after it. Undefined before the server
   * has said it.
   */
  through: bigint | undefined;
  /** Id of the store that the numbers belong to. Empty before the server has said it. */
  storeId: string;
  readonly #items: () => AsyncGenerator<T, void, undefined>;

  /** @internal */
  constructor(subject: Subject<T>, options: WatchOptions, patienceMs: number) {
    const { after, storeId = "" } = options;
    this.through = after === undefined ? undefined : BigInt(after);
    this.storeId = storeId;
    this.#items = () => this.#follow(subject, options, patienceMs);
  }

  [Symbol.asyncIterator](): AsyncGenerator<T, void, undefined> {
    return this.#items();
  }

  async *#follow(
    { open, number }: Subject<T>,
    { signal, onStarted }: WatchOptions,
    patienceMs: number,
  ): AsyncGenerator<T, void, undefined> {
    let hasStarted = false;
    const messages = takenUp(
      () => open(this.through, this.storeId, { signal }),
      () => false,
      patienceMs,
      signal,
    );
    for await (const { items, through, storeId } of messages) {
      this.storeId = storeId;
      if (items.length === 0) this.through = through;
      if (!hasStarted) onStarted?.();
      hasStarted = true;
      for (const item of items) {
        this.through = number(item);
        yield item;
      }
      this.through = through;
    }
  }
}

/** The publications of resources, each made from its message. */
export function publications<T extends { readonly publishNumber: bigint }>(
  rpc: Stubs,
  from: (message: Resources) => T,
): Subject<T> {
  return {
    open: async function* (after, storeId, call) {
      const request = { storeId, ...(after !== undefined && { afterPublishNumber: after }) };
      for await (const message of rpc.watchResources(request, call)) {
        const items = message.resources.map(from);
        yield { items, through: message.throughPublishNumber, storeId: message.storeId };
      }
    },
    number: ({ publishNumber }) => publishNumber,
  };
}

/** The completions of groups. */
export function completions(rpc: Stubs): Subject<Group> {
  return {
    open: async function* (after, storeId, call) {
      const request = { storeId, ...(after !== undefined && { afterCompletionNumber: after }) };
      for await (const message of rpc.watchGroups(request, call)) {
        const { groups: items, throughCompletionNumber: through } = message;
        yield { items, through, storeId: message.storeId };
      }
    },
    number: ({ completionNumber }) => completionNumber,
  };
}
