/** The calls on consumers, made with the client's methods rather than from their descriptors. */

import {
  create,
  type DescMessage,
  type Message,
  type MessageInitShape,
  type MessageShape,
} from "@bufbuild/protobuf";
import { durationMs, timestampFromDate, type Duration } from "@bufbuild/protobuf/wkt";

import type { CallOptions, ConsumerSettings, ConsumerSpec, LightningStore } from "../src/index.js";
import * as pb from "../src/proto.js";

type Call = (store: LightningStore, request: Message, options: CallOptions) => Promise<Message>;

const UNITS = ["rollout", "rollout", "group"] as const;
const ACTIONS = ["skip", "skip", "deliver"] as const;
const OUTCOMES = ["consumed", "consumed", "released", "dropped"] as const;
const MODES = [undefined, "train", "val", "test"] as const;
const STATES = [undefined, "delivered", "redelivery", "set-aside"] as const;

/** Returns a call with its types. */
function made<I extends DescMessage, O extends DescMessage>(
  _: I,
  output: O,
  call: (
    store: LightningStore,
    request: MessageShape<I>,
    options: CallOptions,
  ) => Promise<MessageInitShape<O>>,
): Call {
  return async (store, request, options) =>
    create(output, await call(store, request as MessageShape<I>, options));
}

/** Calls by the name of the method. Lists of one page have no method of the client. */
export const CALLS: Readonly<Record<string, Call>> = {
  CreateConsumer: made(
    pb.CreateConsumerRequestSchema,
    pb.CreateConsumerResponseSchema,
    async (store, { consumer = create(pb.ConsumerSchema) }, options) => ({
      consumer: await store.createConsumer(consumer.name, specOf(consumer), options),
    }),
  ),
  GetConsumer: made(
    pb.GetConsumerRequestSchema,
    pb.GetConsumerResponseSchema,
    async (store, { name }, options) => ({ consumer: await store.getConsumer(name, options) }),
  ),
  UpdateConsumer: made(
    pb.UpdateConsumerRequestSchema,
    pb.UpdateConsumerResponseSchema,
    async (store, { consumer = create(pb.ConsumerSchema), updateMask }, options) => {
      const changes = changesOf(consumer, updateMask?.paths ?? []);
      return { consumer: await store.updateConsumer(consumer.name, changes, options) };
    },
  ),
  DeleteConsumer: made(
    pb.DeleteConsumerRequestSchema,
    pb.DeleteConsumerResponseSchema,
    async (store, { name, allowMissing }, options) => {
      await store.deleteConsumer(name, { allowMissing, ...options });
      return {};
    },
  ),
  PullFinished: made(
    pb.PullFinishedRequestSchema,
    pb.PullFinishedResponseSchema,
    async (store, { consumer, maxItems, minItems, wait, partialOk, requestId }, options) => {
      const pull = { maxItems, minItems, waitMs: msOf(wait) ?? 0, partialOk, requestId };
      return { deliveries: await store.pullFinished(consumer, { ...pull, ...options }) };
    },
  ),
  Acknowledge: made(
    pb.AcknowledgeRequestSchema,
    pb.AcknowledgeResponseSchema,
    async (store, { consumer, deliveryIds, outcome, note, requestId }, options) => {
      const how = { outcome: OUTCOMES[outcome], note, requestId };
      await store.acknowledge(consumer, deliveryIds, { ...how, ...options });
      return {};
    },
  ),
  ModifyAckDeadline: made(
    pb.ModifyAckDeadlineRequestSchema,
    pb.ModifyAckDeadlineResponseSchema,
    async (store, { consumer, deliveryIds, ackDeadline }, options) => {
      const ms = msOf(ackDeadline) ?? 0;
      const deadline = await store.modifyAckDeadline(consumer, deliveryIds, ms, options);
      return { ackDeadlineTime: timestampFromDate(deadline) };
    },
  ),
  ListDeliveries: made(
    pb.ListDeliveriesRequestSchema,
    pb.ListDeliveriesResponseSchema,
    async (store, { consumer, states, pageSize }, options) => {
      const named = states.map((state) => STATES[state]).filter((state) => state !== undefined);
      const deliveries = [];
      const list = store.listDeliveries(consumer, { states: named, pageSize, ...options });
      for await (const delivery of list) deliveries.push(delivery);
      return { deliveries };
    },
  ),
};

function specOf(consumer: pb.Consumer): ConsumerSpec {
  const { filter, afterCompletionNumber, maxLag, ackDeadline } = consumer;
  return {
    unit: UNITS[consumer.unit],
    ...(filter && { ...filter, modes: filter.modes.map((mode) => MODES[mode]) }),
    ...(afterCompletionNumber !== undefined && { afterCompletionNumber }),
    ackDeadlineMs: msOf(ackDeadline) ?? null,
    maxLag: maxLag ?? null,
    onStale: ACTIONS[consumer.onStale],
    maxOutstanding: consumer.maxOutstanding,
    maxDeliveries: consumer.maxDeliveries,
  };
}

function changesOf(consumer: pb.Consumer, paths: readonly string[]): ConsumerSettings {
  const changes = {
    ack_deadline: { ackDeadlineMs: msOf(consumer.ackDeadline) ?? null },
    max_lag: { maxLag: consumer.maxLag ?? null },
    on_stale: { onStale: ACTIONS[consumer.onStale] },
    max_outstanding: { maxOutstanding: consumer.maxOutstanding },
    max_deliveries: { maxDeliveries: consumer.maxDeliveries },
  };
  const named = Object.entries(changes).filter(([path]) => paths.includes(path));
  return Object.assign({}, ...named.map(([, change]) => change)) as ConsumerSettings;
}

function msOf(duration: Duration | undefined): number | undefined {
  return duration && durationMs(duration);
}
