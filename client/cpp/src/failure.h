// What of an attempt is told in words.
#pragma once

#include <exception>
#include <string>

#include "lightningstore/client.h"

namespace lightningstore {

// Returns a failure whose texts are valid and of bounded length.
v1::Failure MakeFailure(const std::string& type, const std::string& message);
v1::Failure DescribeFailure(const std::exception& thrown);

// Inserts the attempt before a trailing "/v1" of a proxy's URL.
std::string RoutedEndpoint(std::string endpoint, const v1::Rollout& rollout);

}  // namespace lightningstore
