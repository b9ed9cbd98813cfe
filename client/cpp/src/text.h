// Text as string fields hold it: a message with one that is no UTF-8 is refused as a whole.
#pragma once

#include <google/protobuf/message.h>

#include <string>

namespace lightningstore {

// Returns the text, cut to `longest` bytes, with a "?" for each byte that belongs to no character.
std::string Clean(const std::string& text, std::size_t longest = std::string::npos);

// Tells whether the text is valid UTF-8.
bool IsClean(const std::string& text);

}  // namespace lightningstore
