#include "failure.h"

#include <cxxabi.h>

#include <cstdlib>
#include <memory>
#include <typeinfo>

#include "text.h"

namespace lightningstore {
namespace {

constexpr std::size_t kLongestMessage = 16'384;

}  // namespace

v1::Failure MakeFailure(const std::string& type, const std::string& message) {
  v1::Failure failure;
  failure.set_type(type);
  failure.set_message(Clean(message, kLongestMessage));
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
