#include "failure.h"

#include <cxxabi.h>

#include <cstdlib>
#include <memory>
#include <typeinfo>

#include "lightningstore/attempt.h"
#include "text.h"

namespace lightningstore {
namespace {

constexpr std::size_t kMaxMessageBytes = 16'384;
constexpr std::size_t kMaxTypeBytes = 256;
constexpr std::size_t kMaxRefusalBytes = 500;
// Maximum number of nested exceptions that are examined.
constexpr int kMaxNested = 50;

std::string NameOf(const std::type_info& type) {
  const std::unique_ptr<char, void (*)(void*)> readable(
      abi::__cxa_demangle(type.name(), nullptr, nullptr, nullptr), std::free);
  const std::string name = readable ? readable.get() : type.name();
  // The type that std::throw_with_nested derives adds nothing to the original type.
  const std::string wrapper = "std::_Nested_exception<";
  if (name.compare(0, wrapper.size(), wrapper) != 0 || name.back() != '>') return name;
  return name.substr(wrapper.size(), name.size() - wrapper.size() - 1);
}

// Texts of an exception and its nested exceptions.
struct Words {
  std::string type, message;
  bool retryable = true;
};

Words CurrentWords(int depth);

Words WordsOf(const std::exception& thrown, int depth) {
  const char* what = thrown.what();
  Words words;
  words.type = NameOf(typeid(thrown));
  words.message = Clean(what != nullptr && *what != '\0' ? what : words.type, kMaxMessageBytes);
  words.retryable = dynamic_cast<const NonRetryable*>(&thrown) == nullptr;
  const auto* outer = dynamic_cast<const std::nested_exception*>(&thrown);
  if (outer == nullptr || outer->nested_ptr() == nullptr || depth >= kMaxNested) return words;
  try {
    outer->rethrow_nested();
  } catch (...) {
    const Words inner = CurrentWords(depth + 1);
    words.message = Clean(words.message + ": " + inner.message, kMaxMessageBytes);
    words.retryable = words.retryable && inner.retryable;
  }
  return words;
}

Words CurrentWords(int depth) {
  const std::type_info* type = abi::__cxa_current_exception_type();
  const std::string name = type != nullptr ? NameOf(*type) : "unknown";
  try {
    throw;
  } catch (const std::exception& thrown) {
    return WordsOf(thrown, depth);
  } catch (const std::string& text) {
    return {name, text};
  } catch (const char* text) {
    return {name, text != nullptr ? text : "a null pointer"};
  } catch (int number) {
    return {name, std::to_string(number)};
  } catch (...) {
    return {name, "an exception that is not a std::exception, of type " + name};
  }
}

}  // namespace

v1::Failure MakeFailure(const std::string& type, const std::string& message) {
  v1::Failure failure;
  failure.set_type(Clean(type, kMaxTypeBytes));
  failure.set_message(Clean(message, kMaxMessageBytes));
  return failure;
}

v1::Failure CurrentFailure() {
  const Words words = CurrentWords(0);
  v1::Failure failure = MakeFailure(words.type, words.message);
  if (!words.retryable) failure.set_retryable(false);
  return failure;
}

v1::Failure RefusedReport(const std::optional<v1::Failure>& refused, const std::string& why) {
  std::string plain = why.substr(0, kMaxRefusalBytes);
  for (char& mark : plain) {
    if (mark < ' ' || mark > '~') mark = '?';
  }
  v1::Failure failure = MakeFailure("ReportRefused", "the server rejected the report: " + plain);
  if (refused && refused->has_retryable()) failure.set_retryable(refused->retryable());
  return failure;
}

}  // namespace lightningstore
