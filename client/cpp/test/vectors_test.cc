// The cases that all clients share, in tests/conformance/vectors, and what is C++'s own beside them.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "lightningstore/resources.h"
#include "server.h"

namespace lightningstore {
namespace {

using nlohmann::json;
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

}  // namespace
}  // namespace lightningstore
