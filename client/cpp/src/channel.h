// The channel of a client, and what it does with every call.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>

namespace lightningstore {

// Time without a server after which the first call of a channel causes a warning.
inline constexpr std::chrono::milliseconds kFirstAnswer{2'000};

struct ChannelOptions {
  std::string address;
  std::shared_ptr<grpc::ChannelCredentials> credentials;
  // Added to every call as metadata, unless it is empty.
  std::string namespace_name;
  std::chrono::milliseconds first_answer = kFirstAnswer;
  // Gets the warning that no server has answered, at most once.
  std::function<void(const std::string&)> warn;
};

// Throws std::invalid_argument unless a namespace's name is valid. Empty is valid, and means none.
void CheckNamespace(const std::string& name);

// Returns a channel. It connects on first use.
std::shared_ptr<grpc::Channel> NewChannel(ChannelOptions options);

}  // namespace lightningstore
