#include <lightningstore/runner.h>

#include <nlohmann/json.hpp>

// Works on one rollout and returns its reward, or nullopt for none.
std::optional<double> Answer(lightningstore::Attempt& attempt) {
  const auto input = nlohmann::json::parse(attempt.input_json());
  const double question = input.at("question");
  if (question == 7) throw lightningstore::NonRetryable("this question has no answer");
  auto think = attempt.StartSpan("think");  // ends with its scope, or by End()
  for (int step = 0; step < 3; ++step) {
    attempt.Check();  // throws where the attempt is cancelled, or another's
    attempt.StartSpan("ask", &think)
        .Set("llm", attempt.resources().at("model").llm().endpoint())
        .Set("step", std::int64_t{step});
  }
  return question * 2;
}

int main() {
  lightningstore::RunnerOptions options;
  options.concurrency = 4;
  lightningstore::Runner runner(lightningstore::Connect(), Answer, options);
  runner.RunWithSignals();  // until Ctrl-C
}
