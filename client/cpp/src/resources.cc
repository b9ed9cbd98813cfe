#include "lightningstore/resources.h"

#include <string_view>

namespace lightningstore {
namespace {

using Kind = TemplateError::Kind;

// Escapes every character that RFC 3986 does not call unreserved, because proxies interpret some of the
// others.
std::string Escaped(const std::string& id) {
  constexpr char kUnreserved[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
  std::string escaped;
  for (const char mark : id) {
    if (std::string_view(kUnreserved).find(mark) != std::string_view::npos) {
      escaped += mark;
      continue;
    }
    const auto byte = static_cast<unsigned char>(mark);
    escaped += '%';
    escaped += "0123456789ABCDEF"[byte >> 4];
    escaped += "0123456789ABCDEF"[byte & 15];
  }
  return escaped;
}

// Returns the text of a placeholder.
std::string Named(const std::string& name, const TemplateValues& values) {
  const std::string place = "{" + name + "}";
  if (name.find_first_of(".[]:!{") != std::string::npos) {
    throw TemplateError(Kind::kRefused, place + ": only names of values are supported");
  }
  if (name.find_first_not_of("0123456789") == std::string::npos) {
    throw TemplateError(Kind::kMalformed, place + " is not the name of a value");
  }
  const auto found = values.find(name);
  if (found == values.end()) throw TemplateError(Kind::kMissing, "missing value for " + place);
  const auto* text = std::get_if<std::string>(&found->second);
  return text != nullptr ? *text : std::to_string(std::get<std::int64_t>(found->second));
}

// Implements Python's str.format for plain names.
std::string FillFString(const std::string& text, const TemplateValues& values) {
  std::string filled;
  std::size_t done = 0;
  for (std::size_t at; (at = text.find_first_of("{}", done)) != std::string::npos;) {
    filled.append(text, done, at - done);
    if (at + 1 < text.size() && text[at + 1] == text[at]) {
      filled += text[at];
      done = at + 2;
      continue;
    }
    if (text[at] == '}') throw TemplateError(Kind::kMalformed, "unmatched }: write }} for a brace");
    const std::size_t end = text.find('}', at);
    if (end == std::string::npos) throw TemplateError(Kind::kMalformed, "unclosed {");
    filled += Named(text.substr(at + 1, end - at - 1), values);
    done = end + 1;
  }
  return filled.append(text, done, std::string::npos);
}

}  // namespace

std::string BaseUrl(const v1::ProxyLLM& proxy, const std::string& rollout_id, const std::string& attempt_id) {
  const std::string version = "/v1";
  std::string url = proxy.llm().endpoint();
  if (rollout_id.empty() && attempt_id.empty()) return url;
  if (rollout_id.empty() || attempt_id.empty()) {
    throw std::invalid_argument("set both the rollout id and the attempt id, or neither");
  }
  url.erase(url.find_last_not_of('/') + 1);
  const bool versioned =
      url.size() >= version.size() && url.compare(url.size() - version.size(), version.size(), version) == 0;
  if (versioned) url.erase(url.size() - version.size());
  return url + "/rollout/" + Escaped(rollout_id) + "/attempt/" + Escaped(attempt_id) +
         (versioned ? version : "");
}

std::string Format(const v1::PromptTemplate& prompt, const TemplateValues& values) {
  if (prompt.engine() == v1::TEMPLATE_ENGINE_F_STRING) return FillFString(prompt.template_(), values);
  const std::string engine = std::to_string(prompt.engine()) + " " + v1::TemplateEngine_Name(prompt.engine());
  throw TemplateError(Kind::kNoLibrary, "only f-strings are supported, not engine " + engine +
                                            ": Debian has no C++ library for Jinja or POML");
}

}  // namespace lightningstore
