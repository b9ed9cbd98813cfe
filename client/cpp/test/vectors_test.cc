// The cases that all clients share, in tests/conformance/vectors, and what is C++'s own beside them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "lightningstore/attempt.h"
#include "lightningstore/resources.h"
#include "lightningstore/reward.h"
#include "server.h"

namespace lightningstore {
namespace {

using nlohmann::json;
using OtlpSpan = opentelemetry::proto::trace::v1::Span;
using Kind = TemplateError::Kind;

json Cases(const std::string& file, const std::string& key) {
  const auto path = LIGHTNINGSTORE_CHECKOUT "/tests/conformance/vectors/" + file;
  json cases = json::parse(test::ReadFile(path)).at(key);
  EXPECT_FALSE(cases.empty());
  return cases;
}

// The text of a member; nothing where it is null or absent.
std::string Text(const json& of, const char* key) {
  return of.contains(key) && of[key].is_string() ? of[key].get<std::string>() : "";
}

TemplateValues Variables(const json& given) {
  TemplateValues values;
  for (const auto& [name, value] : given.items()) {
    if (value.is_number_integer()) {
      values[name] = value.get<std::int64_t>();
    } else {
      values[name] = value.is_string() ? value.get<std::string>() : value.dump();
    }
  }
  return values;
}

// What is the case's own of an f-string, no library of every other engine.
Kind Expected(const json& one) {
  if (one["engine"] != "f_string") return Kind::kNoLibrary;
  return std::map<std::string, Kind>{
      {"missing", Kind::kMissing}, {"malformed", Kind::kMalformed}, {"refused", Kind::kRefused}}
      .at(one["error"]);
}

TEST(Vectors, Templates) {
  for (const json& one : Cases("templates.json", "cases")) {
    SCOPED_TRACE(one.dump());
    v1::PromptTemplate prompt;
    prompt.set_template_(one["template"]);
    std::string engine = "TEMPLATE_ENGINE_" + one["engine"].get<std::string>();
    std::transform(engine.begin(), engine.end(), engine.begin(), [](unsigned char c) { return toupper(c); });
    v1::TemplateEngine number;
    ASSERT_TRUE(v1::TemplateEngine_Parse(engine, &number));
    prompt.set_engine(number);
    try {
      EXPECT_EQ(Format(prompt, Variables(one["variables"])), Text(one, "text"));
      EXPECT_TRUE(one.contains("text") && one["engine"] == "f_string");
    } catch (const TemplateError& error) {
      ASSERT_TRUE(one.contains("error") || one["engine"] != "f_string") << error.what();
      EXPECT_EQ(error.kind, Expected(one)) << error.what();
      const std::string names = one["engine"] == "f_string" ? Text(one, "names") : engine;
      EXPECT_NE(std::string(error.what()).find(names), std::string::npos) << error.what();
    }
  }
}

TEST(Format, TakesValuesAsTheyAreWrittenInPlace) {
  v1::PromptTemplate prompt;
  prompt.set_template_("{question} {tries}");
  prompt.set_engine(v1::TEMPLATE_ENGINE_F_STRING);
  EXPECT_EQ(Format(prompt, {{"question", "why"}, {"tries", 0}}), "why 0");
  prompt.set_template_("{question}");
  EXPECT_EQ(Format(prompt, {{"question", "why"}}), "why");
}

TEST(Vectors, BaseUrls) {
  for (const json& one : Cases("base_urls.json", "cases")) {
    SCOPED_TRACE(one.dump());
    v1::ProxyLLM proxy;
    proxy.mutable_llm()->set_endpoint(one["endpoint"]);
    const auto url = [&] { return BaseUrl(proxy, Text(one, "rollout_id"), Text(one, "attempt_id")); };
    if (one.contains("url")) {
      EXPECT_EQ(url(), one["url"]);
      continue;
    }
    try {
      ADD_FAILURE() << url();
    } catch (const std::invalid_argument& error) {
      EXPECT_NE(std::string(error.what()).find(one["error"]), std::string::npos) << error.what();
    }
  }
}

OtlpSpan* AddSpan(v1::SpanBatch* batch, std::int64_t sequence_id) {
  batch->add_sequence_ids(sequence_id);
  return batch->add_spans();
}

opentelemetry::proto::common::v1::AnyValue* AddAttribute(OtlpSpan* span, const std::string& key) {
  auto* attribute = span->add_attributes();
  attribute->set_key(key);
  return attribute->mutable_value();
}

v1::SpanBatch Batch(const json& spans) {
  v1::SpanBatch batch;
  for (const json& given : spans) {
    OtlpSpan* span = AddSpan(&batch, given["sequence_id"]);
    span->set_name(given["name"]);
    for (const auto& [key, value] : given["attributes"].items()) {
      auto* attribute = AddAttribute(span, key);
      if (value.is_string()) {
        attribute->set_string_value(value);
      } else if (value.is_number_integer()) {
        attribute->set_int_value(value);
      } else {
        attribute->set_double_value(value);
      }
    }
  }
  return batch;
}

TEST(Vectors, FinalRewards) {
  for (const json& one : Cases("rewards.json", "find_final_reward")) {
    const std::optional<double> found = FindFinalReward({Batch(one["spans"])});
    EXPECT_EQ(found ? json(*found) : json(), one["reward"]) << one;
  }
}

TEST(FindFinalReward, LooksAtAllBatchesAndAtNestedValues) {
  v1::SpanBatch late, early, unnumbered;
  auto* list = AddAttribute(AddSpan(&late, 2), "agentlightning.reward")->mutable_array_value();
  auto* pair = list->add_values()->mutable_kvlist_value()->add_values();
  pair->set_key("value");
  pair->mutable_value()->set_int_value(4);
  AddAttribute(AddSpan(&early, 1), "agentlightning.reward")->set_double_value(1);
  AddAttribute(AddSpan(&late, 3), "agentlightning.reward.0.value")->set_double_value(std::nan(""));
  AddAttribute(unnumbered.add_spans(), "agentlightning.reward")->set_double_value(2);
  EXPECT_EQ(FindFinalReward({late, early, unnumbered}), 4.0);
  EXPECT_EQ(FindFinalReward({unnumbered}), 2.0);
  unnumbered.mutable_spans(0)->set_start_time_unix_nano(2);
  AddAttribute(unnumbered.add_spans(), "agentlightning.reward")->set_double_value(3);  // it began before
  EXPECT_EQ(FindFinalReward({unnumbered}), 2.0);
}

// A number, as text where JSON has no such one.
double Number(const json& value) {
  return value.is_string() ? std::stod(value.get<std::string>()) : value.get<double>();
}

void Emit(Attempt& attempt, const json& one) {
  const json& reward = one["reward"];
  if (!reward.is_array()) return attempt.EmitReward(Number(reward));
  std::vector<NamedReward> dimensions;
  for (const json& pair : reward) dimensions.push_back({pair[0], Number(pair[1])});
  std::stable_partition(dimensions.begin(), dimensions.end(),
                        [&](const NamedReward& given) { return given.name == Text(one, "primary"); });
  attempt.EmitReward(dimensions);
}

json Attributes(const OtlpSpan& span) {
  json found = json::object();
  for (const auto& one : span.attributes()) {
    if (one.value().has_string_value()) found[one.key()] = one.value().string_value();
    if (one.value().has_double_value()) found[one.key()] = one.value().double_value();
  }
  return found;
}

class EmitReward : public testing::Test {
 protected:
  // Stores what was emitted; returns all spans, in order.
  std::vector<OtlpSpan> Spans() {
    attempt_.Flush(std::chrono::seconds(30));
    v1::QuerySpansRequest request;
    request.set_rollout_id("a");
    grpc::ClientContext context;
    const auto stream = stub_->QuerySpans(&context, request);
    std::vector<OtlpSpan> spans;
    for (v1::QuerySpansResponse part; stream->Read(&part);) {
      for (const auto& batch : part.batches())
        spans.insert(spans.end(), batch.spans().begin(), batch.spans().end());
    }
    Check(stream->Finish());
    return spans;
  }

  v1::Rollout Started() {
    v1::StartRolloutRequest request;
    request.mutable_rollout()->set_rollout_id("a");
    request.mutable_rollout()->set_input_json("{}");
    v1::StartRolloutResponse answer;
    grpc::ClientContext context;
    Check(stub_->StartRollout(&context, request, &answer));
    return answer.rollout();
  }

  const test::Server server_;
  const std::unique_ptr<v1::LightningStoreService::Stub> stub_ = server_.NewStub();
  Attempt attempt_{stub_.get(), Started(), {}};
};

TEST_F(EmitReward, Vectors) {
  std::vector<json> wanted;
  for (const json& one : Cases("rewards.json", "emit_reward")) {
    SCOPED_TRACE(one.dump());
    if (one.contains("attributes")) {
      Emit(attempt_, one);
      wanted.push_back(one["attributes"]);
      continue;
    }
    try {
      Emit(attempt_, one);
      ADD_FAILURE() << "no error";
    } catch (const std::invalid_argument& error) {
      EXPECT_NE(std::string(error.what()).find(one["error"]), std::string::npos) << error.what();
    }
  }
  std::vector<json> found;
  for (const OtlpSpan& span : Spans()) {
    EXPECT_EQ(span.name(), "agentlightning.annotation");
    found.push_back(Attributes(span));
  }
  EXPECT_EQ(found, wanted);
}

TEST_F(EmitReward, RefusesNamesThatAreNone) {
  EXPECT_THROW(attempt_.EmitReward({{"", 1}}), std::invalid_argument);
  EXPECT_THROW(attempt_.EmitReward({{"speed", 1}, {"care", 2}, {"speed", 3}}), std::invalid_argument);
  EXPECT_TRUE(Spans().empty());
}

}  // namespace
}  // namespace lightningstore
