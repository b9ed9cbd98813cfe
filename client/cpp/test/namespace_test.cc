// The namespace that the calls of a channel name.
#include <gtest/gtest.h>

#include <cstdlib>
#include <future>
#include <mutex>

#include "events.h"
#include "lightningstore/runner.h"

namespace lightningstore {
namespace {

using Names = std::vector<std::string>;

constexpr char kKey[] = "x-lightning-namespace";

// A server of one rollout to claim that keeps the namespaces of the calls.
class Recorder final : public v1::LightningStoreService::Service {
 public:
  Recorder() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~Recorder() override { server_->Shutdown(std::chrono::system_clock::now()); }

  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }
  // The namespaces of the calls so far, by method.
  std::map<std::string, Names> seen() const {
    const std::lock_guard lock(mutex_);
    return seen_;
  }

 private:
  grpc::Status Note(const grpc::ServerContext* context, const std::string& method) {
    const std::lock_guard lock(mutex_);
    const auto [first, last] = context->client_metadata().equal_range(kKey);
    std::string names;
    for (auto name = first; name != last; ++name) {
      names += (names.empty() ? "" : ", ") + std::string(name->second.data(), name->second.size());
    }
    seen_[method].push_back(names);
    return grpc::Status::OK;
  }

  grpc::Status DequeueRollouts(grpc::ServerContext* context, const v1::DequeueRolloutsRequest*,
                               v1::DequeueRolloutsResponse* answer) override {
    v1::Rollout& rollout = *answer->add_rollouts();
    rollout.set_rollout_id("r");
    rollout.set_payloads_omitted(true);
    rollout.mutable_latest_attempt()->set_attempt_id("a");
    rollout.mutable_latest_attempt()->set_resources_id("s");
    return Note(context, "DequeueRollouts");
  }
  grpc::Status GetRollout(grpc::ServerContext* context, const v1::GetRolloutRequest*,
                          v1::GetRolloutResponse*) override {
    return Note(context, "GetRollout");
  }
  grpc::Status GetResources(grpc::ServerContext* context, const v1::GetResourcesRequest*,
                            v1::GetResourcesResponse*) override {
    return Note(context, "GetResources");
  }
  grpc::Status Heartbeat(grpc::ServerContext* context, const v1::HeartbeatRequest*,
                         v1::HeartbeatResponse*) override {
    return Note(context, "Heartbeat");
  }
  grpc::Status IngestSpans(grpc::ServerContext* context, grpc::ServerReader<v1::IngestSpansRequest>* reader,
                           v1::IngestSpansResponse*) override {
    for (v1::IngestSpansRequest request; reader->Read(&request);) continue;
    return Note(context, "IngestSpans");
  }
  grpc::Status UpdateAttempt(grpc::ServerContext* context, const v1::UpdateAttemptRequest*,
                             v1::UpdateAttemptResponse*) override {
    return Note(context, "UpdateAttempt");
  }
  grpc::Status WaitForRollouts(grpc::ServerContext* context, const v1::WaitForRolloutsRequest*,
                               grpc::ServerWriter<v1::WaitForRolloutsResponse>*) override {
    Note(context, "WaitForRollouts");
    waited.Put(true);
    return grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "no such method");
  }
  grpc::Status QuerySpans(grpc::ServerContext* context, const v1::QuerySpansRequest*,
                          grpc::ServerWriter<v1::QuerySpansResponse>*) override {
    return Note(context, "QuerySpans");
  }

 public:
  test::Events<bool> waited;

 private:
  int port_ = 0;
  mutable std::mutex mutex_;
  std::map<std::string, Names> seen_;
  std::unique_ptr<grpc::Server> server_;
};

// Makes calls of all shapes; returns the namespaces of each.
std::map<std::string, Names> AllCalls(const std::string& name) {
  Recorder server;
  const auto channel = Connect(server.address(), nullptr, name);
  RunnerOptions options;
  options.max_rollouts = 1;
  const auto agent = [&](Attempt& attempt) {
    attempt.StartSpan("s");
    server.waited.Next();  // the runner's own stream
    return 1.0;
  };
  Runner(channel, agent, options).Run();
  const auto stub = v1::LightningStoreService::NewStub(channel);
  grpc::ClientContext reading;
  const auto reader = stub->QuerySpans(&reading, {});
  for (v1::QuerySpansResponse part; reader->Read(&part);) continue;
  EXPECT_TRUE(reader->Finish().ok());
  std::promise<void> done;
  grpc::ClientContext context;
  const v1::HeartbeatRequest beat;
  v1::HeartbeatResponse answer;
  stub->async()->Heartbeat(&context, &beat, &answer, [&](const grpc::Status&) { done.set_value(); });
  done.get_future().wait();
  return server.seen();
}

TEST(Namespace, IsNamedByEveryCall) {
  const auto seen = AllCalls("run-7");
  EXPECT_EQ(seen.size(), 8U);
  for (const auto& [method, names] : seen) {
    for (const std::string& name : names) EXPECT_EQ(name, "run-7") << method;
  }
}

TEST(Namespace, IsNotSentIfThereIsNone) {
  for (const auto& [method, names] : AllCalls("")) {
    for (const std::string& name : names) EXPECT_EQ(name, "") << method;
  }
}

TEST(Namespace, OfACallGoesBeforeThatOfTheChannel) {
  Recorder server;
  const auto stub = v1::LightningStoreService::NewStub(Connect(server.address(), nullptr, "run-7"));
  grpc::ClientContext context;
  context.AddMetadata(kKey, "run-8");
  v1::HeartbeatResponse answer;
  Check(stub->Heartbeat(&context, {}, &answer));
  EXPECT_EQ(server.seen()["Heartbeat"], Names{"run-8"});
}

TEST(Namespace, IsReadFromTheEnvironment) {
  setenv("LIGHTNINGSTORE_NAMESPACE", "run-9", 1);
  const auto seen = AllCalls("");
  const auto named = AllCalls("run-7");
  setenv("LIGHTNINGSTORE_NAMESPACE", "Run 9", 1);
  EXPECT_THROW(Connect(), std::invalid_argument);
  unsetenv("LIGHTNINGSTORE_NAMESPACE");
  EXPECT_EQ(seen.at("DequeueRollouts"), Names{"run-9"});
  EXPECT_EQ(named.at("DequeueRollouts"), Names{"run-7"});
}

TEST(Namespace, IsCheckedWhenTheChannelIsMade) {
  for (const std::string& name : Names{"a", "0", "default", "run-7", "team.run_7", std::string(63, 'x')}) {
    EXPECT_NO_THROW(Connect("127.0.0.1:1", nullptr, name)) << name;
  }
  for (const std::string& name :
       Names{"A", "a b", "-a", "a-", ".", "_a", "a.", "ж", "a/b", "a\n", " ", std::string(64, 'x')}) {
    try {
      Connect("127.0.0.1:1", nullptr, name);
      ADD_FAILURE() << name << " is accepted";
    } catch (const std::invalid_argument& error) {
      EXPECT_NE(std::string(error.what()).find("1 to 63"), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("\"" + name + "\""), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace lightningstore
