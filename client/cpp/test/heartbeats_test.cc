// Heartbeats of a runner.
#include <gtest/gtest.h>

#include <atomic>

#include "events.h"
#include "lightningstore/runner.h"

namespace lightningstore {
namespace {

using std::chrono::milliseconds;

// A server of one rollout to claim.
class Store final : public v1::LightningStoreService::Service {
 public:
  Store() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~Store() override { server_->Shutdown(std::chrono::system_clock::now()); }

  std::shared_ptr<grpc::Channel> Channel() const { return Connect("127.0.0.1:" + std::to_string(port_)); }

  grpc::Status DequeueRollouts(grpc::ServerContext*, const v1::DequeueRolloutsRequest*,
                               v1::DequeueRolloutsResponse* answer) override {
    v1::Rollout& rollout = *answer->add_rollouts();
    rollout.set_rollout_id("r");
    rollout.mutable_latest_attempt()->set_attempt_id("a");
    rollout.mutable_latest_attempt()->set_resources_id("s");
    return grpc::Status::OK;
  }
  grpc::Status GetResources(grpc::ServerContext*, const v1::GetResourcesRequest*,
                            v1::GetResourcesResponse* answer) override {
    for (int i = 0; i < beats_before_resources; ++i) beats.Next();
    answer->mutable_resources()->set_publish_number(42);
    return grpc::Status::OK;
  }
  grpc::Status Heartbeat(grpc::ServerContext*, const v1::HeartbeatRequest* request,
                         v1::HeartbeatResponse* answer) override {
    numbers.Put(request->publish_number());
    if (failures-- > 0) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "not now");
    if (request->attempts().empty()) return grpc::Status::OK;
    if (cancels) {
      v1::Stop& stop = *answer->add_stops();
      *stop.mutable_attempt() = request->attempts(0);
      stop.set_reason(v1::STOP_REASON_ROLLOUT_CANCELLED);
    }
    beats.Put(true);
    return grpc::Status::OK;
  }
  grpc::Status GetAttempt(grpc::ServerContext*, const v1::GetAttemptRequest*,
                          v1::GetAttemptResponse* answer) override {
    answer->mutable_attempt()->set_status(v1::ATTEMPT_STATUS_RUNNING);
    return grpc::Status::OK;
  }
  grpc::Status UpdateAttempt(grpc::ServerContext*, const v1::UpdateAttemptRequest* request,
                             v1::UpdateAttemptResponse*) override {
    outcome = *request;
    return grpc::Status::OK;
  }

  // To be set before the runner starts.
  int beats_before_resources = 0;
  bool cancels = false;
  std::atomic<int> failures{0};
  // One event for each heartbeat that names the attempt.
  test::Events<bool> beats;
  // The publish number of each heartbeat.
  test::Events<std::int64_t> numbers;
  v1::UpdateAttemptRequest outcome;

 private:
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

RunnerOptions OneRollout() {
  RunnerOptions options;
  options.max_rollouts = 1;
  options.heartbeat_period = milliseconds(50);
  return options;
}

TEST(Heartbeats, NameAClaimWhoseResourcesAreBeingLoaded) {
  Store store;
  store.beats_before_resources = 2;
  store.cancels = true;
  bool is_called = false;
  const auto agent = [&](Attempt&) {
    is_called = true;
    return 1.0;
  };
  Runner(store.Channel(), agent, OneRollout()).Run();
  EXPECT_FALSE(is_called);  // the first of them said that the rollout was cancelled
  EXPECT_EQ(store.outcome.attempt().failure().message(), "STOP_REASON_ROLLOUT_CANCELLED");
}

TEST(Heartbeats, ReportThePublishNumberOfTheResourcesUsedLast) {
  Store store;
  const auto agent = [&](Attempt&) -> std::optional<double> {
    while (store.numbers.Next() != 42) continue;
    return std::nullopt;
  };
  Runner(store.Channel(), agent, OneRollout()).Run();
}

TEST(Heartbeats, ReportTheNumberOfTheOption) {
  Store store;
  std::atomic<int> calls{0};
  RunnerOptions options = OneRollout();
  options.publish_number = [&]() -> std::int64_t {
    if (++calls == 2) throw std::runtime_error("not loaded");  // costs this heartbeat only
    return 40 + calls;
  };
  testing::internal::CaptureStderr();
  const auto agent = [&](Attempt&) -> std::optional<double> {
    EXPECT_EQ(store.numbers.Next(), 41);
    EXPECT_EQ(store.numbers.Next(), 43);
    return std::nullopt;
  };
  Runner(store.Channel(), agent, options).Run();
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "lightningstore: heartbeat failed, retrying: publish_number: not loaded\n"
            "lightningstore: heartbeats succeed again\n");
}

TEST(Heartbeats, ThatFailAreReportedOnceAndWhenTheySucceedAgain) {
  Store store;
  store.failures = 3;
  testing::internal::CaptureStderr();
  const auto agent = [&](Attempt&) -> std::optional<double> {
    store.beats.Next();
    store.beats.Next();
    return std::nullopt;
  };
  Runner(store.Channel(), agent, OneRollout()).Run();
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "lightningstore: heartbeat failed, retrying: not now\n"
            "lightningstore: heartbeats succeed again\n");
}

}  // namespace
}  // namespace lightningstore
