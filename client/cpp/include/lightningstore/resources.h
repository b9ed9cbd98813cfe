// What agents make of resources: base URLs of proxies, texts of templates.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <variant>

#include "lightningstore/v1/resources.pb.h"

namespace lightningstore {

// Returns the base URL of a proxy for the calls of one attempt: "/rollout/{rollout_id}/attempt/{attempt_id}",
// the ids percent-encoded, stands before a trailing "/v1" of its endpoint, or at the end where there is none.
// With both ids empty it is the endpoint as it is. Throws std::invalid_argument for one id without the other.
// A Runner's agent has no need of it: in its resources() the endpoint is that of the attempt already.
std::string BaseUrl(const v1::ProxyLLM& proxy, const std::string& rollout_id, const std::string& attempt_id);

// A template that cannot be filled in.
class TemplateError : public std::runtime_error {
 public:
  enum class Kind {
    kMissing,    // no value is given for a name; the message says which
    kMalformed,  // the text is no template of its engine
    kRefused,    // it does more than name values
    kNoLibrary,  // this client does not have the engine
  };

  TemplateError(Kind why, const std::string& message) : std::runtime_error(message), kind(why) {}

  Kind kind;
};

// Values by name. Whole numbers are written as in every language; how a fraction looks is the caller's
// choice.
using TemplateValues = std::map<std::string, std::variant<std::string, std::int64_t>>;

// Fills in an f-string, "Answer {question}" for instance, and returns the text; "{{" and "}}" are braces.
// Templates come out of the store, so they are not trusted: they name values and nothing else. A value that
// no place wants is let be. Throws a TemplateError, also for Jinja and POML, for which there is no library
// here.
std::string Format(const v1::PromptTemplate& prompt, const TemplateValues& values);

}  // namespace lightningstore
