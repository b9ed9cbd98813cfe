// Connections to a LightningStore, and its errors. The calls are those of the generated stub,
// `lightningstore::v1::LightningStoreService::Stub`.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "lightningstore/v1/service.grpc.pb.h"

namespace lightningstore {

// Returns a channel to `address`, for example "127.0.0.1:4747". Empty: LIGHTNINGSTORE_ADDRESS, else
// 127.0.0.1:4747. The connection is unencrypted unless there are credentials. The channel connects on first
// use, accepts messages of any size, and detects a lost server within 30 seconds while calls are open. If
// there is no connection 2 seconds after the first call, a warning on stderr names the address.
//
// `namespace_name` names the server's namespace that all calls belong to, sent as the metadata
// "x-lightning-namespace" unless the call has set it: 1 to 63 of the characters a-z, 0-9, "-", "_" and ".",
// with a letter or digit first and last. Empty: LIGHTNINGSTORE_NAMESPACE; if that is not set, nothing is
// sent, which means the namespace "default". Throws std::invalid_argument for any other name.
std::shared_ptr<grpc::Channel> Connect(std::string address = "",
                                       std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr,
                                       std::string namespace_name = "");

// Returns a new random request id. A write that is repeated with the same id takes effect once.
std::string NewRequestId();

// Returns `count` random bytes, at least one, that are not all zero, as required for trace ids (16) and span
// ids (8). They come from the operating system, so that no seed and no fork of the program repeats them.
std::string RandomBytes(int count);

// Makes the text of a message valid UTF-8, because the server rejects messages with other text. Each invalid
// byte becomes a "?". Throws std::invalid_argument with the field, for example "rollouts[1].group_id", if it
// is an id or the key of a map.
void MakeValid(google::protobuf::Message* message);

// Sets the deadline of a call, relative to now.
void SetTimeout(grpc::ClientContext& context, std::chrono::milliseconds timeout);

// The failure of a call, with the details of its status.
class Error : public std::runtime_error {
 public:
  explicit Error(const grpc::Status& status);

  grpc::StatusCode code;
  // For example "ERROR_REASON_ROLLOUT_NOT_FOUND"; docs/errors.md lists the reasons. Empty if gRPC itself
  // failed.
  std::string reason;
  std::string domain;
  std::map<std::string, std::string> metadata;
  // The invalid fields, for example "rollouts[0].input_json".
  std::vector<std::string> fields;
  // Minimum delay before a retry that the server requested.
  std::optional<std::chrono::nanoseconds> retry_delay;

  // Returns whether a retry may succeed: the server is down or shutting down, requested a retry, or the
  // connection broke. CANCELLED counts too, although calls that their caller cancelled also end with it. A
  // write needs a request id to be safe to repeat.
  bool IsTransient() const;
};

// Throws an Error unless the status is OK.
void Check(const grpc::Status& status);

}  // namespace lightningstore
