// Validates text for string fields: the server rejects a message with text that is not UTF-8.
#pragma once

#include <google/protobuf/message.h>

#include <string>

namespace lightningstore {

// Returns the text, truncated to `limit` bytes, with a "?" for each invalid byte.
std::string Clean(const std::string& text, std::size_t limit = std::string::npos);

// Returns whether the text is valid UTF-8.
bool IsClean(const std::string& text);

}  // namespace lightningstore
