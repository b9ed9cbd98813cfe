// Base URLs of proxies, and templates of prompts.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <variant>

#include "lightningstore/v1/resources.pb.h"

namespace lightningstore {

// Returns the base URL of a proxy for the calls of one attempt: its endpoint with
// "/rollout/{rollout_id}/attempt/{attempt_id}", the ids percent-encoded, before a trailing "/v1", or at the
// end if there is none. With both ids empty it returns the endpoint unchanged. Throws std::invalid_argument
// for one id without the other. A Runner's agent does not need it: its resources() already have the URL of
// the attempt.
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

// Values by name. Whole numbers have the same format in every language; the caller formats fractions.
using TemplateValues = std::map<std::string, std::variant<std::string, std::int64_t>>;

// Fills in an f-string, for example "Answer {question}", and returns the text; "{{" and "}}" are braces.
// Templates come from the store and are not trusted: they may only name values. Unused values are ignored.
// Throws a TemplateError, also for Jinja and POML, which have no library here.
std::string Format(const v1::PromptTemplate& prompt, const TemplateValues& values);

}  // namespace lightningstore
