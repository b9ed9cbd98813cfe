/** Client of LightningStore: enqueue rollouts, run agents on them, stream their spans. */

export type { ConnectOptions, Pem, TlsOptions } from "./channel.js";
export {
  LightningStore,
  type Resources,
  type RolloutChanges,
  type SpanQuery,
  type TextMatch,
  type WriteOptions,
} from "./client.js";
export type {
  AcknowledgeOptions,
  ConsumeOptions,
  ConsumerSettings,
  ConsumerSpec,
  DeleteConsumerOptions,
  DeliveryQuery,
  PullOptions,
} from "./consumers.js";
export { AttemptCancelled, NonRetryable, type RunContext } from "./context.js";
export type { AttemptChanges, GroupSpec, SeriesQuery } from "./control.js";
export { Code, LightningStoreError, type ErrorFields, type FieldViolation } from "./errors.js";
export type { Agent, AgentResources, Reward } from "./execution.js";
export { SpanExporter, type SpanExporterOptions } from "./exporter.js";
export {
  AttemptStatus,
  RewardSource,
  StopReason,
  type Attempt,
} from "./gen/lightningstore/v1/attempt_pb.js";
export {
  ConsumerUnit,
  DeliveryState,
  StaleAction,
  type Consumer,
  type Delivery,
} from "./gen/lightningstore/v1/consumer_pb.js";
export { GroupStatus, type Group } from "./gen/lightningstore/v1/group_pb.js";
export type { Namespace } from "./gen/lightningstore/v1/namespace_pb.js";
export type { SeriesBucket } from "./gen/lightningstore/v1/series_pb.js";
export { WorkerStatus, type Worker } from "./gen/lightningstore/v1/worker_pb.js";
export type { AttemptSamples, Sample, SampleSegment } from "./gen/lightningstore/v1/sample_pb.js";
export type { AttemptTriplets, Triplet } from "./gen/lightningstore/v1/triplet_pb.js";
export { RolloutMode, RolloutStatus, type Rollout } from "./gen/lightningstore/v1/rollout_pb.js";
export { SecureIdGenerator } from "./ids.js";
export { decodeJson, encodeJson, RawJson } from "./json.js";
export type { GroupQuery, RolloutFilters, RolloutQuery, WorkerQuery } from "./lists.js";
export type { DeleteNamespaceOptions, NamespaceQuery, NamespaceSettings } from "./namespaces.js";
export {
  baseUrl,
  custom,
  llm,
  promptTemplate,
  proxyLlm,
  routed,
  type CustomResource,
  type Llm,
  type LlmFields,
  type PromptTemplate,
  type ProxyLlm,
  type Resource,
  type UnknownResource,
} from "./resources.js";
export { emitReward, findFinalReward, type RewardSpan } from "./rewards.js";
export type { RetriedEnd, RolloutConfig, RolloutSpec } from "./rollouts.js";
export type { CallOptions, NamespaceStubs, Stubs } from "./rpc.js";
export { Runner, type RunnerOptions } from "./runner.js";
export { StoredSpan, type AttributeValue } from "./spans.js";
export type { RolloutWait, WaitOptions } from "./streams.js";
export { formatPrompt, TemplateError, type TemplateErrorKind } from "./templates.js";
export type { SampleOptions, TripletOptions } from "./triplets.js";
export type { Watch, WatchOptions } from "./watch.js";
