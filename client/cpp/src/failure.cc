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

}  // namespace lightningstore
