// Calls any method of the contract, of any kind, from its service's descriptor.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "lightningstore/client.h"

namespace conformance {

// Returns whether the contract has a method with that name.
bool IsMethod(const std::string& name);

// Makes the call of a command and returns its answer. Calls `started` when the initial metadata of a response
// stream has arrived.
nlohmann::json MakeCall(const std::shared_ptr<grpc::Channel>& channel, grpc::ClientContext& context,
                        const nlohmann::json& command, const std::function<void()>& started);

}  // namespace conformance
