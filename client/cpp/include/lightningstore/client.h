// Connections to a LightningStore and the errors that it answers with. The calls themselves are those of the
// generated stub, `lightningstore::v1::LightningStoreService::Stub`.
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

// Returns a channel to `address`, "127.0.0.1:4747" for instance; empty: LIGHTNINGSTORE_ADDRESS, else that
// one. Plain text unless there are credentials. It connects when it is first used, takes messages of any
// size, and notices a server that is gone within 30 seconds while calls are open.
std::shared_ptr<grpc::Channel> Connect(std::string address = "",
                                       std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr);

// Returns a new random id for a request: repeated with the same id, a write has its effect once.
std::string NewRequestId();

// Returns `count` bytes, at least one, that are not all zero, as ids of traces (16) and spans (8) are. They
// come from the operating system, so that no seed and no fork of the program repeats them.
std::string RandomBytes(int count);

// Makes the text of a message valid UTF-8: one with other text is refused as a whole. Each byte that belongs
// to no character becomes a "?". Throws std::invalid_argument, which names the field, where that is an id or
// the key of a map: "rollouts[1].group_id" for instance.
void MakeValid(google::protobuf::Message* message);

// Sets the deadline of a call from now on.
void SetTimeout(grpc::ClientContext& context, std::chrono::milliseconds timeout);

// What a call failed with, and what the details of its status say.
class Error : public std::runtime_error {
 public:
  explicit Error(const grpc::Status& status);

  grpc::StatusCode code;
  // "ERROR_REASON_ROLLOUT_NOT_FOUND" for instance; docs/errors.md lists them. Empty where gRPC itself failed.
  std::string reason;
  std::string domain;
  std::map<std::string, std::string> metadata;
  // The fields that were wrong, "rollouts[0].input_json" for instance.
  std::vector<std::string> fields;
  // How long the server wants to be left alone before the call is repeated.
  std::optional<std::chrono::nanoseconds> retry_delay;

  // Tells whether the same call may do better later: the server is away or goes down, asks for a repeat, or
  // the connection broke. CANCELLED counts too, though calls that their caller cancelled end with it as well.
  // Writes need a request id to be repeated.
  bool IsTransient() const;
};

// Throws an Error unless the status is OK.
void Check(const grpc::Status& status);

}  // namespace lightningstore
