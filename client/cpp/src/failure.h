// What of an attempt is told in words.
#pragma once

#include <exception>
#include <optional>
#include <string>

#include "lightningstore/client.h"

namespace lightningstore {

// Returns a failure whose texts are valid and of bounded length.
v1::Failure MakeFailure(const std::string& type, const std::string& message);
// Returns the failure that the exception being handled is, whatever was thrown. For catch blocks only.
v1::Failure CurrentFailure();
// Returns what replaces an outcome that the server refused: nothing in it can be refused.
v1::Failure RefusedReport(const std::optional<v1::Failure>& refused, const std::string& why);

}  // namespace lightningstore
