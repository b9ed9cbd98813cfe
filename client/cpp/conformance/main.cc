// The conformance driver of the C++ client. It reads commands from stdin, one JSON object per line, executes
// them, and writes answers to stdout; see tests/conformance/README.md.
#include <unistd.h>

#include <cmath>
#include <iostream>
#include <map>
#include <mutex>
#include <thread>

#include "call.h"
#include "lightningstore/runner.h"

namespace conformance {
namespace {

using lightningstore::Attempt;
using lightningstore::Runner;
using nlohmann::json;

// Returns the value that identifies a resource.
std::string Text(const lightningstore::v1::Resource& resource) {
  if (resource.has_llm()) return resource.llm().endpoint();
  if (resource.has_prompt_template()) return resource.prompt_template().template_();
  return resource.custom().value_json();
}

// The scripted agent, controlled by the rollout's input.
std::optional<double> Scripted(Attempt& attempt) {
  const json task = json::parse(attempt.input_json());
  for (const json& name : task.value("spans", json::array())) attempt.StartSpan(name.get<std::string>());
  if (task.contains("resource")) {
    attempt.StartSpan("resource").Set("value", Text(attempt.resources().at(task["resource"])));
  }
  if (task.value("wait", false)) {
    attempt.WaitUntilCancelled(std::chrono::minutes(1));
    attempt.StartSpan("cancelled");
    attempt.Check();
  }
  if (task.contains("fail")) {
    const json& fail = task["fail"];
    const int number = attempt.rollout().latest_attempt().sequence_number();
    const json attempts = fail.value("attempts", json::array({number}));
    const std::string message = fail.value("message", "");
    if (std::find(attempts.begin(), attempts.end(), number) != attempts.end()) {
      if (!fail.value("retryable", true)) throw lightningstore::NonRetryable(message);
      throw std::runtime_error(message);
    }
  }
  if (!task.contains("reward")) return std::nullopt;
  return task["reward"].get<double>();
}

class Driver {
 public:
  explicit Driver(std::string address)
      : address_(std::move(address)), channel_(lightningstore::Connect(address_)) {}

  // Starts a command. Everything that a later command may name exists before that one is read.
  void Take(const json& command) {
    const std::string op = command.at("op");
    if (op == "call" && IsMethod(command.at("method"))) {
      StartCall(command);
    } else if (op == "cancel") {
      Cancel(command.at("target"));
      Answer(command, {{"ok", true}});
    } else if (op == "reconnect") {
      Reconnect();
      Answer(command, {{"ok", true}});
    } else if (op == "runner") {
      StartRunner(command);
    } else if (op == "stop") {
      if (const auto runner = Find(command.at("target"))) runner->Stop();
      Answer(command, {{"ok", true}});
    } else {
      Answer(command, {{"unsupported", "unknown or unsupported op or method"}});
    }
  }

 private:
  void StartCall(const json& command) {
    const auto context = std::make_shared<grpc::ClientContext>();
    const std::lock_guard lock(mutex_);
    calls_[command.at("id")] = context;
    std::thread([this, command, context, channel = channel_] {
      json answer;
      try {
        answer = MakeCall(channel, *context, command, [&] { Answer(command, {{"started", true}}); });
      } catch (const std::exception& thrown) {
        const json error = {{"code", "UNKNOWN"}, {"message", thrown.what()}};
        answer = {{"responses", json::array()}, {"error", error}};
      }
      const std::lock_guard lock(mutex_);
      calls_.erase(command.at("id"));
      Answer(command, answer);
    }).detach();
  }

  void Cancel(const json& target) {
    const std::lock_guard lock(mutex_);
    if (const auto call = calls_.find(target); call != calls_.end()) call->second->TryCancel();
    if (const auto runner = runners_.find(target); runner != runners_.end()) {
      runner->second->Stop();
      runner->second->Stop();
    }
  }

  void Reconnect() {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, call] : calls_) call->TryCancel();
    channel_ = lightningstore::Connect(address_);
  }

  void StartRunner(const json& command) {
    lightningstore::RunnerOptions options;
    options.worker_id = command.at("worker_id");
    options.concurrency = command.value("concurrency", 1);
    options.max_rollouts = command.value("max_rollouts", 0);
    options.queues = command.value("queues", std::vector<std::string>());
    if (command.contains("heartbeat_period")) {
      const double seconds = command["heartbeat_period"];
      options.heartbeat_period = std::chrono::milliseconds(std::lround(seconds * 1000));
    }
    const auto runner = std::make_shared<Runner>(lightningstore::Connect(address_), Scripted, options);
    const std::lock_guard lock(mutex_);
    runners_[command.at("id")] = runner;
    Answer(command, {{"started", true}});
    std::thread([this, command, runner] {
      try {
        runner->Run();
      } catch (const std::exception& thrown) {
        std::cerr << "the runner ended: " << thrown.what() << std::endl;
      }
      Answer(command, {{"ended", true}});
    }).detach();
  }

  std::shared_ptr<Runner> Find(const json& id) {
    const std::lock_guard lock(mutex_);
    const auto found = runners_.find(id);
    return found == runners_.end() ? nullptr : found->second;
  }

  void Answer(const json& command, json what) {
    what["id"] = command.at("id");
    const std::string line = what.dump() + "\n";
    const std::lock_guard lock(output_);
    std::cout << line << std::flush;
  }

  const std::string address_;
  std::mutex output_;
  std::mutex mutex_;
  std::shared_ptr<grpc::Channel> channel_;
  std::map<json, std::shared_ptr<grpc::ClientContext>> calls_;
  std::map<json, std::shared_ptr<Runner>> runners_;
};

}  // namespace
}  // namespace conformance

int main(int count, char** arguments) {
  if (count != 2) {
    std::cerr << "usage: " << arguments[0] << " ADDRESS" << std::endl;
    return 2;
  }
  conformance::Driver driver(arguments[1]);
  for (std::string line; std::getline(std::cin, line);) {
    driver.Take(nlohmann::json::parse(line));
  }
  std::cout.flush();
  _exit(0);  // whatever still runs
}
