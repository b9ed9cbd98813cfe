// Records rewards as spans, and finds the last one.
#include "lightningstore/reward.h"

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>

#include <cmath>
#include <set>
#include <stdexcept>
#include <string_view>
#include <tuple>
#include <utility>

#include "lightningstore/attempt.h"

namespace lightningstore {
namespace {

using google::protobuf::Value;
using opentelemetry::proto::common::v1::AnyValue;
using OtlpSpan = opentelemetry::proto::trace::v1::Span;

constexpr char kAnnotation[] = "agentlightning.annotation";
constexpr char kReward[] = "agentlightning.reward";
constexpr std::string_view kPrefix = "agentlightning.reward.";
constexpr std::string_view kSuffix = ".value";
constexpr std::size_t kMostDigits = 9;

// Returns the index in "agentlightning.reward.<index>.value"; nullopt for another key.
std::optional<int> IndexOf(const std::string& key) {
  if (key.size() <= kPrefix.size() + kSuffix.size() || key.compare(0, kPrefix.size(), kPrefix) != 0 ||
      key.compare(key.size() - kSuffix.size(), kSuffix.size(), kSuffix) != 0) {
    return std::nullopt;
  }
  const std::string digits = key.substr(kPrefix.size(), key.size() - kPrefix.size() - kSuffix.size());
  const bool is_index =
      digits.size() <= kMostDigits && digits.find_first_not_of("0123456789") == std::string::npos;
  return is_index ? std::optional(std::stoi(digits)) : std::nullopt;
}

// Returns the value as JSON has it. Other clients may have stored a whole number as an integer.
Value Plain(const AnyValue& value) {
  Value plain;
  if (value.has_string_value()) {
    plain.set_string_value(value.string_value());
  } else if (value.has_double_value()) {
    plain.set_number_value(value.double_value());
  } else if (value.has_int_value()) {
    plain.set_number_value(static_cast<double>(value.int_value()));
  } else if (value.has_array_value()) {
    plain.mutable_list_value();  // also where it is empty
    for (const AnyValue& item : value.array_value().values()) {
      *plain.mutable_list_value()->add_values() = Plain(item);
    }
  } else if (value.has_kvlist_value()) {
    auto& fields = *plain.mutable_struct_value()->mutable_fields();
    for (const auto& pair : value.kvlist_value().values()) fields[pair.key()] = Plain(pair.value());
  }
  return plain;
}

// Returns the attribute with that name, or null.
const AnyValue* Find(const OtlpSpan& span, const char* key) {
  for (const auto& attribute : span.attributes()) {
    if (attribute.key() == key) return &attribute.value();
  }
  return nullptr;
}

// Returns the parsed JSON of a text, an empty value if the text is not JSON, and any other value unchanged.
Value Parsed(const Value& value) {
  if (!value.has_string_value()) return value;
  Value parsed;
  const auto status = google::protobuf::util::JsonStringToMessage(value.string_value(), &parsed);
  return status.ok() ? parsed : Value();
}

Value Member(const Value& object, const char* name) {
  const auto& fields = object.struct_value().fields();
  const auto found = fields.find(name);
  return found == fields.end() ? Value() : found->second;
}

std::optional<double> Number(const Value& value) {
  if (!value.has_number_value() || !std::isfinite(value.number_value())) return std::nullopt;
  return value.number_value();
}

// Parses a reward given as one value: a number, a list of named rewards, or the JSON text of either.
std::optional<double> Given(const Value& given) {
  Value value = Parsed(given);
  if (value.list_value().values_size() > 0) value = Value(value.list_value().values(0));
  return Number(value.has_struct_value() ? Member(value, "value") : value);
}

// Returns the primary reward of a span, in any of the supported forms.
std::optional<double> RewardOf(const OtlpSpan& span) {
  const AnyValue* primary = nullptr;
  int lowest = 0;
  for (const auto& attribute : span.attributes()) {
    const std::optional<int> index = IndexOf(attribute.key());
    if (!index || (primary != nullptr && lowest <= *index)) continue;
    primary = &attribute.value();
    lowest = *index;
  }
  // Another dimension or form must not replace a primary one that cannot be read.
  if (primary != nullptr) return Number(Plain(*primary));
  if (const AnyValue* one = Find(span, kReward)) return Given(Plain(*one));
  for (const char* key : {"agentops.task.output", "agentops.entity.output"}) {
    const AnyValue* found = Find(span, key);
    if (found == nullptr) continue;
    const Value output = Parsed(Plain(*found));
    if (Member(output, "type").string_value() == "reward") return Given(Member(output, "value"));
  }
  const AnyValue* one = Find(span, "reward");
  const bool counts = one != nullptr && (span.name() == kAnnotation || span.name() == kReward);
  return counts ? Given(Plain(*one)) : std::nullopt;
}

}  // namespace

void Attempt::EmitReward(double value) { EmitReward({{"primary", value}}); }

void Attempt::EmitReward(const std::vector<NamedReward>& dimensions) {
  // All values are checked before the span is created, because a span is stored when it ends, even after an
  // exception.
  if (dimensions.empty()) throw std::invalid_argument("a reward needs at least one dimension");
  std::set<std::string> names;
  for (const NamedReward& one : dimensions) {
    if (one.name.empty()) throw std::invalid_argument("a dimension of a reward needs a name");
    if (!names.insert(one.name).second) {
      throw std::invalid_argument("the reward \"" + one.name + "\" is a duplicate");
    }
    if (!std::isfinite(one.value)) {
      throw std::invalid_argument("reward \"" + one.name + "\": must be a finite number, not " +
                                  std::to_string(one.value));
    }
  }
  Span span = StartSpan(kAnnotation);
  for (std::size_t i = 0; i < dimensions.size(); ++i) {
    const std::string prefix = std::string(kPrefix) + std::to_string(i);
    span.Set(prefix + ".name", dimensions[i].name).Set(prefix + ".value", dimensions[i].value);
  }
}

std::optional<double> FindFinalReward(const std::vector<v1::SpanBatch>& batches) {
  // If the numbers are equal, start times and ids decide, as in the other clients.
  std::tuple<std::int64_t, std::uint64_t, std::string> last;
  std::optional<double> final;
  for (const v1::SpanBatch& batch : batches) {
    for (int i = 0; i < batch.spans_size(); ++i) {
      const OtlpSpan& span = batch.spans(i);
      std::tuple place(i < batch.sequence_ids_size() ? batch.sequence_ids(i) : std::int64_t{0},
                       std::uint64_t{span.start_time_unix_nano()}, span.span_id());
      if (final && place <= last) continue;
      const std::optional<double> reward = RewardOf(span);
      if (!reward) continue;
      final = reward;
      last = std::move(place);
    }
  }
  return final;
}

}  // namespace lightningstore
