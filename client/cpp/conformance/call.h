// Calls any method of the service, whatever its kind, by the service's descriptor.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "lightningstore/client.h"

namespace conformance {

// Tells whether the service has a method of that name.
bool IsMethod(const std::string& name);

// Makes the call that a command asks for, and returns its answer. `started` is called when the initial
// metadata of a stream of answers has arrived.
nlohmann::json MakeCall(const std::shared_ptr<grpc::Channel>& channel, grpc::ClientContext& context,
                        const nlohmann::json& command, const std::function<void()>& started);

}  // namespace conformance
