// What of an attempt is told in words.
#pragma once

#include <exception>
#include <string>

#include "lightningstore/client.h"

namespace lightningstore {

// Returns a failure whose texts are valid and of bounded length.
v1::Failure MakeFailure(const std::string& type, const std::string& message);
v1::Failure DescribeFailure(const std::exception& thrown);

}  // namespace lightningstore
