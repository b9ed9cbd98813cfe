#include "failure.h"

#include <cxxabi.h>

#include <cstdlib>
#include <memory>
#include <typeinfo>

namespace lightningstore {
namespace {

constexpr std::size_t kLongestMessage = 16'384;

// Bytes of the character that starts at `i`; 0 where there is none. Overlong forms and the like are left to
// the server.
std::size_t CharacterLength(const std::string& text, std::size_t i) {
  const auto first = static_cast<unsigned char>(text[i]);
  const std::size_t length = first < 0x80   ? 1
                             : first < 0xC2 ? 0
                             : first < 0xE0 ? 2
                             : first < 0xF0 ? 3
                             : first < 0xF5 ? 4
                                            : 0;
  for (std::size_t k = 1; k < length; ++k) {
    if (i + k >= text.size() || (static_cast<unsigned char>(text[i + k]) & 0xC0) != 0x80) return 0;
  }
  return length;
}

// What a string field may hold: a report that is no UTF-8 would be refused as a whole.
std::string Clean(const std::string& text) {
  std::string clean;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t length = CharacterLength(text, i);
    if (clean.size() + std::max<std::size_t>(length, 1) > kLongestMessage) break;
    clean += length > 0 ? text.substr(i, length) : "?";
    i += std::max<std::size_t>(length, 1);
  }
  return clean;
}

}  // namespace

v1::Failure MakeFailure(const std::string& type, const std::string& message) {
  v1::Failure failure;
  failure.set_type(type);
  failure.set_message(Clean(message));
  return failure;
}

v1::Failure DescribeFailure(const std::exception& thrown) {
  const char* mangled = typeid(thrown).name();
  const std::unique_ptr<char, void (*)(void*)> name(abi::__cxa_demangle(mangled, nullptr, nullptr, nullptr),
                                                    std::free);
  return MakeFailure(name ? name.get() : mangled, thrown.what());
}

std::string RoutedEndpoint(std::string endpoint, const v1::Rollout& rollout) {
  const std::string version = "/v1";
  endpoint.erase(endpoint.find_last_not_of('/') + 1);
  const bool versioned = endpoint.size() >= version.size() &&
                         endpoint.compare(endpoint.size() - version.size(), version.size(), version) == 0;
  if (versioned) endpoint.erase(endpoint.size() - version.size());
  return endpoint + "/rollout/" + rollout.rollout_id() + "/attempt/" + rollout.latest_attempt().attempt_id() +
         (versioned ? version : "");
}

}  // namespace lightningstore
