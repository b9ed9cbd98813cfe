// Failures of attempts.
#pragma once

#include <exception>
#include <optional>
#include <string>

#include "lightningstore/client.h"

namespace lightningstore {

// Returns a failure with valid texts of limited length.
v1::Failure MakeFailure(const std::string& type, const std::string& message);
// Returns the failure for the exception being handled, of any type. Call it only in a catch block.
v1::Failure CurrentFailure();
// Returns the failure that replaces an outcome that the server rejected. It contains nothing that can be
// rejected.
v1::Failure RefusedReport(const std::optional<v1::Failure>& refused, const std::string& why);

}  // namespace lightningstore
