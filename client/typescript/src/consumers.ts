/** Consumers: finished rollouts and groups, each until it is acknowledged. */

import { randomUUID } from "node:crypto";

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { FieldMaskSchema, timestampDate } from "@bufbuild/protobuf/wkt";

import { Backoff, pause } from "./backoff.js";
import type { WriteOptions } from "./client.js";
import { toStoreError } from "./errors.js";
import {
  AckOutcome,
  ConsumerFilterSchema,
  ConsumerSchema,
  ConsumerUnit,
  DeliveryState,
  StaleAction,
  type Consumer,
  type Delivery,
  type PullFinishedRequestSchema,
} from "./gen/lightningstore/v1/consumer_pb.js";
import type { RolloutStatus } from "./gen/lightningstore/v1/rollout_pb.js";
import { callOf, pages, present } from "./lists.js";
import { toDuration, toMode } from "./rollouts.js";
import type { CallOptions, Stubs } from "./rpc.js";

/** Milliseconds for which the server holds one pull of `consume`. */
const POLL_MS = 20_000;
/** Milliseconds between a pull of `consume` that found nothing and the next one. */
const PAUSE_MS = 100;

/** The settings of a consumer. In an update, null resets a setting to its default. */
export interface ConsumerSettings {
  /** Milliseconds to acknowledge a delivery, at most 7 days. Default 600,000. */
  readonly ackDeadlineMs?: number | null;
  /** Highest lag of an item that is not stale. Default: nothing is stale. */
  readonly maxLag?: bigint | number | null;
  /** What happens to stale items. Default "skip". */
  readonly onStale?: "skip" | "deliver" | null;
  /**
   * Maximum number of rollouts that are claimed, or finished and not acknowledged. At the limit, claims wait.
   * Default: no limit.
   */
  readonly maxOutstanding?: bigint | number | null;
  /** Number of deliveries after which an item is set aside. Default: no limit. */
  readonly maxDeliveries?: number | null;
}

/** A consumer to create. Absent and empty filters are ignored. */
export interface ConsumerSpec extends ConsumerSettings {
  /** What is delivered: rollouts, or groups of which at least one member matches. Default "rollout". */
  readonly unit?: "rollout" | "group";
  /** Rollouts match that finished with one of these statuses. */
  readonly statuses?: readonly RolloutStatus[];
  /** Undefined stands for rollouts without a mode. */
  readonly modes?: readonly ("train" | "val" | "test" | undefined)[];
  /** Task queues; "" is the default queue. */
  readonly queues?: readonly string[];
  /** Rollouts match that have all of these labels with these values. */
  readonly labels?: Readonly<Record<string, string>>;
  /** Delivers what has a greater completion number. 0: from the beginning. Default: what finishes from now on. */
  readonly afterCompletionNumber?: bigint | number;
}

/** Options of the deletion of a consumer. */
export interface DeleteConsumerOptions extends CallOptions {
  /**
   * Makes deleting a consumer that does not exist succeed, also if this call itself has deleted it and was retried
   * because its response was lost. Default false.
   */
  readonly allowMissing?: boolean;
}

/** How many items are pulled at a time. */
export interface ConsumeOptions {
  /** Maximum number of items, at most 1,000. There are fewer if they would not fit into a message. Default 1. */
  readonly maxItems?: number;
  /** Number of items to wait for. Default 1. */
  readonly minItems?: number;
  /** Ends it with an error of code CANCELLED. */
  readonly signal?: AbortSignal;
}

/** Options of a pull. A retry of your own needs the same `requestId` and the same other options. */
export interface PullOptions extends WriteOptions {
  /** Maximum number of items, at most 1,000. There are fewer if they would not fit into a message. Default 1. */
  readonly maxItems?: number;
  /** Number of items to wait for. Default 1. */
  readonly minItems?: number;
  /** Milliseconds to wait for them. The deadline of the call is this plus `timeoutMs`. Default 0. */
  readonly waitMs?: number;
  /** Returns fewer than `minItems` when the wait is over, rather than none. Default false. */
  readonly partialOk?: boolean;
}

/** Options of an acknowledgement. */
export interface AcknowledgeOptions extends WriteOptions {
  /** "released" delivers the items again at once, "dropped" marks them as unusable. Default "consumed". */
  readonly outcome?: "consumed" | "released" | "dropped";
  /** Why, for people. At most 256 characters. */
  readonly note?: string;
}

/** Options of a list of deliveries. */
export interface DeliveryQuery extends CallOptions {
  /** States of the items. Default: all. */
  readonly states?: readonly ("delivered" | "redelivery" | "set-aside")[];
  /** Maximum number of deliveries loaded at a time. Default 100. */
  readonly pageSize?: number;
}

const UNITS = { rollout: ConsumerUnit.ROLLOUT, group: ConsumerUnit.GROUP } as const;

const ACTIONS = { skip: StaleAction.SKIP, deliver: StaleAction.DELIVER } as const;

const OUTCOMES = {
  consumed: AckOutcome.CONSUMED,
  released: AckOutcome.RELEASED,
  dropped: AckOutcome.DROPPED,
} as const;

const STATES = {
  delivered: DeliveryState.DELIVERED,
  redelivery: DeliveryState.REDELIVERY,
  "set-aside": DeliveryState.SET_ASIDE,
} as const;

/** The contract's field for each setting. */
const PATHS: Readonly<Record<keyof ConsumerSettings, string>> = {
  ackDeadlineMs: "ack_deadline",
  maxLag: "max_lag",
  onStale: "on_stale",
  maxOutstanding: "max_outstanding",
  maxDeliveries: "max_deliveries",
};

/** The calls on consumers. */
export abstract class ConsumerCalls {
  /** A typed function for each call of the contract. Writes without a requestId get one. */
  readonly rpc: Stubs;
  /** Default deadline of a call, and maximum time without progress of a stream, in milliseconds. */
  protected readonly timeoutMs: number;

  /** @internal */
  constructor(rpc: Stubs, timeoutMs: number) {
    this.rpc = rpc;
    this.timeoutMs = timeoutMs;
  }

  /**
   * Creates a consumer, a durable subscription to finished rollouts or groups. Creating it again with the same
   * arguments returns the consumer, whatever it has delivered since; with others it is an error with the reason
   * CONSUMER_EXISTS.
   */
  async createConsumer(
    name: string,
    spec: ConsumerSpec = {},
    options?: CallOptions,
  ): Promise<Consumer> {
    const { statuses = [], modes = [], queues = [], labels = {} } = spec;
    const consumer = toConsumer(name, spec);
    if (spec.unit) consumer.unit = UNITS[spec.unit];
    if (statuses.length + modes.length + queues.length + Object.keys(labels).length > 0) {
      const filter = { statuses: [...statuses], modes: modes.map(toMode), queues: [...queues] };
      consumer.filter = create(ConsumerFilterSchema, { ...filter, labels: { ...labels } });
    }
    if (spec.afterCompletionNumber !== undefined) {
      consumer.afterCompletionNumber = BigInt(spec.afterCompletionNumber);
    }
    return present((await this.rpc.createConsumer({ consumer }, options)).consumer);
  }

  /** Returns a consumer with its counts. */
  async getConsumer(name: string, options?: CallOptions): Promise<Consumer> {
    return present((await this.rpc.getConsumer({ name }, options)).consumer);
  }

  /** Lists the consumers, ordered by name. They are loaded page by page. */
  listConsumers(options: CallOptions = {}): AsyncGenerator<Consumer, void, undefined> {
    return pages(
      (pageToken) => this.rpc.listConsumers({ pageToken }, options),
      (page) => page.consumers,
    );
  }

  /** Changes the given settings of a consumer and returns it after the change. Deliveries keep their deadlines. */
  async updateConsumer(
    name: string,
    settings: ConsumerSettings,
    options?: CallOptions,
  ): Promise<Consumer> {
    const given = (Object.keys(PATHS) as (keyof ConsumerSettings)[]).filter(
      (setting) => settings[setting] !== undefined,
    );
    const updateMask = create(FieldMaskSchema, { paths: given.map((setting) => PATHS[setting]) });
    const request = { consumer: toConsumer(name, settings), updateMask };
    return present((await this.rpc.updateConsumer(request, options)).consumer);
  }

  /** Deletes a consumer with its deliveries. Pulls that wait for it fail. */
  async deleteConsumer(name: string, options: DeleteConsumerOptions = {}): Promise<void> {
    const { allowMissing = false, ...call } = options;
    await this.rpc.deleteConsumer({ name, allowMissing }, call);
  }

  /**
   * Takes finished rollouts or groups of a consumer: redeliveries first, then new ones, in the order of their
   * completion. Without items it returns none when the wait is over.
   *
   * Each delivery must be acknowledged before its `ackDeadlineTime`; after it, the item is delivered again. A pull whose
   * response was lost is repeated with its request id until its deadline, and gets the same deliveries. What a pull had
   * taken when it was aborted is delivered again after its deadline, or at once to a pull with the same `requestId`.
   */
  async pullFinished(consumer: string, options: PullOptions = {}): Promise<Delivery[]> {
    const {
      maxItems = 0,
      minItems = 0,
      waitMs = 0,
      partialOk = false,
      requestId,
      ...call
    } = options;
    const request = { consumer, maxItems, minItems, partialOk, requestId: requestId ?? "" };
    if (waitMs === 0) return (await this.rpc.pullFinished(request, call)).deliveries;
    return this.#pull({ ...request, wait: toDuration(waitMs) }, waitMs, call);
  }

  /**
   * Yields what `pullFinished` takes, pull after pull, without end: `for await (const deliveries of …)`. The caller
   * acknowledges the deliveries. Each step is one pull, which begins when the caller asks for it: nothing is taken
   * ahead, so no deadline runs unseen.
   *
   * It resumes after a broken connection and loses nothing. Items are delivered at least once: one that is not
   * acknowledged before its deadline comes again, here or to another caller, with a higher `deliveryCount`.
   */
  async *consume(
    consumer: string,
    options: ConsumeOptions = {},
  ): AsyncGenerator<Delivery[], void, undefined> {
    const { maxItems = 0, minItems = 0, signal } = options;
    const request = { consumer, maxItems, minItems, wait: toDuration(POLL_MS) };
    for (;;) {
      const deliveries = await this.#pull(request, POLL_MS, { signal });
      if (deliveries.length > 0) yield deliveries;
      else await pause(PAUSE_MS, signal); // a server that is shutting down answers so at once
    }
  }

  /** Makes a long poll, and repeats it until it is answered, or until its deadline. */
  async #pull(
    init: MessageInitShape<typeof PullFinishedRequestSchema>,
    waitMs: number,
    { timeoutMs = this.timeoutMs, ...call }: CallOptions,
  ): Promise<Delivery[]> {
    const until = performance.now() + Math.max(waitMs, 0) + timeoutMs;
    const request = { ...init, requestId: init.requestId || randomUUID() };
    const backoff = new Backoff(100, 5_000);
    for (;;) {
      try {
        const left = { ...call, timeoutMs: until - performance.now() };
        return (await this.rpc.pullFinished(request, left)).deliveries;
      } catch (error) {
        const failure = toStoreError(error);
        const delay = backoff.next(failure.retryDelayMs);
        if (!failure.isTemporary || performance.now() + delay >= until) throw failure;
        await pause(delay, call.signal);
      }
    }
  }

  /**
   * Ends deliveries, all of them or none. Deliveries are named by themselves or by their ids. One that has ended before
   * is an error with the reason DELIVERY_ENDED: its deadline passed and the item was delivered again, or it was
   * acknowledged.
   */
  async acknowledge(
    consumer: string,
    deliveries: readonly (Delivery | string)[],
    options: AcknowledgeOptions = {},
  ): Promise<void> {
    const { outcome = "consumed", note = "", requestId = "", ...call } = options;
    const deliveryIds = deliveries.map(idOf);
    const request = { consumer, deliveryIds, outcome: OUTCOMES[outcome], note, requestId };
    await this.rpc.acknowledge(request, call);
  }

  /**
   * Moves the deadlines of deliveries to `ackDeadlineMs` from now, at most 7 days, and returns the new deadline.
   * Deliveries that have ended are an error, as in `acknowledge`.
   */
  async modifyAckDeadline(
    consumer: string,
    deliveries: readonly (Delivery | string)[],
    ackDeadlineMs: number,
    options?: CallOptions,
  ): Promise<Date> {
    const ackDeadline = toDuration(ackDeadlineMs);
    const request = { consumer, deliveryIds: deliveries.map(idOf), ackDeadline };
    const { ackDeadlineTime } = await this.rpc.modifyAckDeadline(request, options);
    return timestampDate(present(ackDeadlineTime));
  }

  /**
   * Lists the items of a consumer that were delivered and are not acknowledged, by completion number, without the
   * rollouts and groups themselves. They are loaded page by page.
   */
  listDeliveries(
    consumer: string,
    query: DeliveryQuery = {},
  ): AsyncGenerator<Delivery, void, undefined> {
    const { states = [], pageSize = 0 } = query;
    const request = { consumer, states: states.map((state) => STATES[state]), pageSize };
    const call = callOf(query);
    return pages(
      (pageToken) => this.rpc.listDeliveries({ ...request, pageToken }, call),
      (page) => page.deliveries,
    );
  }
}

function toConsumer(name: string, settings: ConsumerSettings): Consumer {
  const { ackDeadlineMs, maxLag, onStale, maxOutstanding, maxDeliveries } = settings;
  const message = create(ConsumerSchema, { name });
  if (ackDeadlineMs != null) message.ackDeadline = toDuration(ackDeadlineMs);
  if (maxLag != null) message.maxLag = BigInt(maxLag);
  if (onStale != null) message.onStale = ACTIONS[onStale];
  if (maxOutstanding != null) message.maxOutstanding = BigInt(maxOutstanding);
  if (maxDeliveries != null) message.maxDeliveries = maxDeliveries;
  return message;
}

function idOf(delivery: Delivery | string): string {
  return typeof delivery === "string" ? delivery : delivery.deliveryId;
}
