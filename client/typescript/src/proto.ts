/** The generated messages of the contract. */

export * from "./gen/lightningstore/v1/attempt_pb.js";
export * from "./gen/lightningstore/v1/claim_pb.js";
export * from "./gen/lightningstore/v1/cluster_pb.js";
export * from "./gen/lightningstore/v1/completion_pb.js";
export * from "./gen/lightningstore/v1/consumer_pb.js";
export * from "./gen/lightningstore/v1/error_reason_pb.js";
export * from "./gen/lightningstore/v1/group_pb.js";
export * from "./gen/lightningstore/v1/import_pb.js";
export * from "./gen/lightningstore/v1/namespace_pb.js";
export * from "./gen/lightningstore/v1/resources_pb.js";
export * from "./gen/lightningstore/v1/rollout_pb.js";
export * from "./gen/lightningstore/v1/sample_pb.js";
export * from "./gen/lightningstore/v1/series_pb.js";
export * from "./gen/lightningstore/v1/service_pb.js";
export * from "./gen/lightningstore/v1/span_pb.js";
export * from "./gen/lightningstore/v1/statistics_pb.js";
export * from "./gen/lightningstore/v1/triplet_pb.js";
export * from "./gen/lightningstore/v1/worker_pb.js";
