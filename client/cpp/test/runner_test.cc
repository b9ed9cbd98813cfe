#include "lightningstore/runner.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <future>
#include <map>
#include <thread>

#include "events.h"
#include "lightningstore/resources.h"
#include "server.h"

namespace lightningstore {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using test::kPatience;
using test::Server;

v1::RolloutSpec Spec(const std::string& id, int max_attempts = 1) {
  v1::RolloutSpec spec;
  spec.set_rollout_id(id);
  spec.set_input_json("{}");
  spec.mutable_config()->set_max_attempts(max_attempts);
  spec.mutable_config()->add_retry_condition(v1::ATTEMPT_STATUS_FAILED);
  return spec;
}

class RunnerTest : public testing::Test {
 protected:
  ~RunnerTest() override { Finish(); }

  void Enqueue(const std::vector<v1::RolloutSpec>& specs) {
    v1::EnqueueRolloutsRequest request;
    for (const auto& spec : specs) *request.add_rollouts() = spec;
    v1::EnqueueRolloutsResponse answer;
    grpc::ClientContext context;
    Check(stub_->EnqueueRollouts(&context, request, &answer));
  }

  // Waits for rollouts; returns them by their ids.
  std::map<std::string, v1::Rollout> WaitFor(const std::vector<std::string>& ids) {
    v1::WaitForRolloutsRequest request;
    request.mutable_rollout_ids()->Add(ids.begin(), ids.end());
    grpc::ClientContext context;
    SetTimeout(context, kPatience);
    const auto stream = stub_->WaitForRollouts(&context, request);
    std::map<std::string, v1::Rollout> found;
    for (v1::WaitForRolloutsResponse news; stream->Read(&news);) {
      for (const auto& rollout : news.rollouts()) found[rollout.rollout_id()] = rollout;
    }
    Check(stream->Finish());
    return found;
  }

  std::vector<opentelemetry::proto::trace::v1::Span> Spans(const std::string& id) {
    v1::QuerySpansRequest request;
    request.set_rollout_id(id);
    grpc::ClientContext context;
    const auto stream = stub_->QuerySpans(&context, request);
    std::vector<opentelemetry::proto::trace::v1::Span> spans;
    for (v1::QuerySpansResponse part; stream->Read(&part);) {
      for (const auto& batch : part.batches())
        spans.insert(spans.end(), batch.spans().begin(), batch.spans().end());
    }
    Check(stream->Finish());
    return spans;
  }

  v1::Attempt GetAttempt(const std::string& rollout, const std::string& attempt = "latest") {
    v1::GetAttemptRequest request;
    request.set_rollout_id(rollout);
    request.set_attempt_id(attempt);
    v1::GetAttemptResponse answer;
    grpc::ClientContext context;
    Check(stub_->GetAttempt(&context, request, &answer));
    return answer.attempt();
  }

  void Cancel(const std::string& id) {
    v1::CancelRolloutsRequest request;
    request.add_rollout_ids(id);
    v1::CancelRolloutsResponse answer;
    grpc::ClientContext context;
    Check(stub_->CancelRollouts(&context, request, &answer));
  }

  void Start(Agent agent, RunnerOptions options = {}) {
    runner_ = std::make_unique<Runner>(Connect(server_.address()), std::move(agent), options);
    running_ = std::async(std::launch::async, [this] { runner_->Run(); });
  }

  void Finish() {
    if (!running_.valid()) return;
    runner_->Stop();
    runner_->Stop();
    running_.get();
  }

  bool Ended() { return running_.wait_for(kPatience) == std::future_status::ready; }

  Server server_{"sqlite"};
  std::unique_ptr<v1::LightningStoreService::Stub> stub_ = server_.NewStub();
  std::unique_ptr<Runner> runner_;
  std::future<void> running_;
};

RunnerOptions Quick(int max_rollouts = 0) {
  RunnerOptions options;
  options.heartbeat_period = milliseconds(100);
  options.max_rollouts = max_rollouts;
  return options;
}

TEST_F(RunnerTest, StoresSpansAndRewardBeforeTheOutcome) {
  Enqueue({Spec("a")});
  Start(
      [](Attempt& attempt) {
        auto outer = attempt.StartSpan("outer");
        attempt.StartSpan("inner", &outer).Set("text", "ж").Set("count", std::int64_t{1} << 60);
        return 1.5;
      },
      Quick(1));
  EXPECT_EQ(WaitFor({"a"})["a"].status(), v1::ROLLOUT_STATUS_SUCCEEDED);
  std::map<std::string, opentelemetry::proto::trace::v1::Span> spans;
  for (const auto& span : Spans("a")) spans[span.name()] = span;
  ASSERT_EQ(spans.size(), 3U);
  EXPECT_EQ(spans["inner"].parent_span_id(), spans["outer"].span_id());
  EXPECT_EQ(spans["inner"].attributes(0).value().string_value(), "ж");
  EXPECT_EQ(spans["inner"].attributes(1).value().int_value(), std::int64_t{1} << 60);
  EXPECT_GE(spans["outer"].end_time_unix_nano(), spans["inner"].end_time_unix_nano());
  EXPECT_EQ(spans["agentlightning.annotation"].attributes(1).value().double_value(), 1.5);
  EXPECT_TRUE(Ended());  // after its one rollout
}

TEST_F(RunnerTest, ProxyIsTheEndpointOfTheAttempt) {
  v1::AddResourcesRequest resources;
  auto& proxy = *(*resources.mutable_resources())["model"].mutable_proxy_llm();
  proxy.mutable_llm()->set_endpoint("http://h/v1");
  v1::AddResourcesResponse answer;
  grpc::ClientContext context;
  Check(stub_->AddResources(&context, resources, &answer));
  Enqueue({Spec("a b")});
  std::string endpoint;
  Start(
      [&](Attempt& attempt) -> std::optional<double> {
        endpoint = attempt.resources().at("model").llm().endpoint();
        return std::nullopt;
      },
      Quick(1));
  EXPECT_TRUE(Ended());
  EXPECT_EQ(endpoint, BaseUrl(proxy, "a b", GetAttempt("a b").attempt_id()));
  EXPECT_EQ(endpoint.find("http://h/rollout/a%20b/attempt/"), 0U);
}

TEST_F(RunnerTest, RewardThatIsNoNumberIsAFailure) {
  Enqueue({Spec("a")});
  Start([](Attempt&) { return std::nan(""); }, Quick(1));
  EXPECT_EQ(WaitFor({"a"})["a"].status(), v1::ROLLOUT_STATUS_FAILED);
  EXPECT_EQ(GetAttempt("a").failure().type(), "std::invalid_argument");
  EXPECT_TRUE(Spans("a").empty());
}

TEST_F(RunnerTest, TextThatIsNoUtf8CostsItsBytesAlone) {
  Enqueue({Spec("a")});
  Start([](Attempt& attempt) {
    for (int i = 0; i < 5; ++i) attempt.StartSpan("good");
    auto span = attempt.StartSpan("half a letter \xd0");
    span.Set("overlong \xe0\x80\x80", "surrogate \xed\xa0\x80").Set("kept", "ж\xff𝄞");
    span.otlp().mutable_status()->set_message("\xc0");
    auto* event = span.otlp().add_events();
    event->set_name("beyond \xf4\x90\x80\x80");
    event->add_attributes()->mutable_value()->mutable_array_value()->add_values()->set_string_value("\xfe");
    span.otlp().add_links()->set_trace_id(span.otlp().trace_id());
    span.End();
    attempt.Flush(kPatience);
    EXPECT_EQ(attempt.dropped_spans(), 0);
    return 1.0;
  });
  EXPECT_EQ(WaitFor({"a"})["a"].status(), v1::ROLLOUT_STATUS_SUCCEEDED);
  const auto spans = Spans("a");
  ASSERT_EQ(spans.size(), 7U);
  const auto& span = spans[5];
  EXPECT_EQ(span.name(), "half a letter ?");
  EXPECT_EQ(span.attributes(0).key(), "overlong ???");
  EXPECT_EQ(span.attributes(0).value().string_value(), "surrogate ???");
  EXPECT_EQ(span.attributes(1).value().string_value(), "ж?𝄞");
  EXPECT_EQ(span.status().message(), "?");
  EXPECT_EQ(span.events(0).name(), "beyond ????");
  EXPECT_EQ(span.events(0).attributes(0).value().array_value().values(0).string_value(), "?");
}

TEST_F(RunnerTest, SpanThatIsTooLargeIsLostAlone) {
  Enqueue({Spec("a")});
  Start([](Attempt& attempt) {
    attempt.StartSpan("before");
    attempt.StartSpan("large").Set("text", std::string(5 << 20, 'x'));
    EXPECT_EQ(attempt.dropped_spans(), 1);
    attempt.StartSpan("after").Set("text", std::string(3 << 20, 'x'));
    return 1.0;
  });
  EXPECT_EQ(WaitFor({"a"})["a"].status(), v1::ROLLOUT_STATUS_SUCCEEDED);
  EXPECT_EQ(Spans("a").size(), 3U);
}

TEST_F(RunnerTest, SpansThatAreRefusedAreLostAlone) {
  Enqueue({Spec("a")});
  Start([](Attempt& attempt) {
    for (int i = 0; i < 40; ++i) {
      auto span = attempt.StartSpan("s");
      if (i % 2 == 0) span.otlp().set_span_id("short");
    }
    attempt.Flush(kPatience);
    EXPECT_EQ(attempt.dropped_spans(), 20);
    return 1.0;
  });
  EXPECT_EQ(WaitFor({"a"})["a"].status(), v1::ROLLOUT_STATUS_SUCCEEDED);
  EXPECT_EQ(Spans("a").size(), 21U);
}

TEST_F(RunnerTest, FailuresAreRetriedUnlessMarked) {
  Enqueue({Spec("again", 3), Spec("never", 3)});
  Start([](Attempt& attempt) -> std::optional<double> {
    if (attempt.rollout().rollout_id() == "never") throw NonRetryable("no use");
    if (attempt.rollout().attempt_count() < 3) throw std::runtime_error("not yet");
    return std::nullopt;
  });
  auto rollouts = WaitFor({"again", "never"});
  EXPECT_EQ(rollouts["again"].status(), v1::ROLLOUT_STATUS_SUCCEEDED);
  EXPECT_EQ(rollouts["again"].attempt_count(), 3);
  EXPECT_EQ(rollouts["never"].status(), v1::ROLLOUT_STATUS_FAILED);
  EXPECT_EQ(rollouts["never"].attempt_count(), 1);
  EXPECT_EQ(GetAttempt("never").failure().message(), "no use");
}

TEST_F(RunnerTest, CancelledWorkIsNeverReportedAsSucceeded) {
  Enqueue({Spec("a")});
  std::promise<void> working;
  Start(
      [&](Attempt& attempt) {
        working.set_value();
        EXPECT_TRUE(attempt.WaitUntilCancelled(kPatience));
        EXPECT_EQ(attempt.stop_reason(), v1::STOP_REASON_ROLLOUT_CANCELLED);
        EXPECT_THROW(attempt.Check(), Cancelled);
        attempt.StartSpan("late");
        return 1.0;
      },
      Quick(1));
  working.get_future().wait();
  Cancel("a");
  ASSERT_TRUE(Ended());
  EXPECT_EQ(WaitFor({"a"})["a"].status(), v1::ROLLOUT_STATUS_CANCELLED);
  EXPECT_EQ(GetAttempt("a").status(), v1::ATTEMPT_STATUS_FAILED);
  EXPECT_EQ(GetAttempt("a").failure().type(), "Cancelled");
  ASSERT_EQ(Spans("a").size(), 1U);  // the late one, and no reward
}

TEST_F(RunnerTest, SupersededAttemptStopsAndLeavesTheRolloutAlone) {
  Enqueue({Spec("a")});
  std::promise<std::string> working;
  Start(
      [&](Attempt& attempt) -> std::optional<double> {
        working.set_value(attempt.Ref().attempt_id());
        EXPECT_TRUE(attempt.WaitUntilCancelled(kPatience));
        EXPECT_EQ(attempt.stop_reason(), v1::STOP_REASON_SUPERSEDED);
        return std::nullopt;
      },
      Quick(1));
  const std::string first = working.get_future().get();
  v1::StartAttemptRequest request;
  request.set_rollout_id("a");
  v1::StartAttemptResponse answer;
  grpc::ClientContext context;
  Check(stub_->StartAttempt(&context, request, &answer));
  ASSERT_TRUE(Ended());
  EXPECT_EQ(GetAttempt("a", first).status(), v1::ATTEMPT_STATUS_FAILED);
  EXPECT_EQ(GetAttempt("a").status(), v1::ATTEMPT_STATUS_PREPARING);
}

TEST_F(RunnerTest, CancellationDoesNotWaitForTheNextHeartbeat) {
  Enqueue({Spec("a")});
  std::promise<void> working;
  RunnerOptions options;
  options.heartbeat_period = std::chrono::hours(1);
  options.max_rollouts = 1;
  Start(
      [&](Attempt& attempt) -> std::optional<double> {
        working.set_value();
        EXPECT_TRUE(attempt.WaitUntilCancelled(kPatience));  // without a span
        EXPECT_EQ(attempt.stop_reason(), v1::STOP_REASON_ROLLOUT_CANCELLED);
        return std::nullopt;
      },
      options);
  working.get_future().wait();
  Cancel("a");
  EXPECT_TRUE(Ended());
}

TEST_F(RunnerTest, HeartbeatsKeepASilentAgentAlive) {
  auto spec = Spec("a");
  spec.mutable_config()->mutable_unresponsive_timeout()->set_nanos(900'000'000);
  Enqueue({spec});
  RunnerOptions options;
  options.heartbeat_period = kPatience;  // the rollout wants it sooner
  Start(
      [](Attempt& attempt) -> std::optional<double> {
        EXPECT_FALSE(attempt.WaitUntilCancelled(milliseconds(2500)));
        return std::nullopt;
      },
      options);
  const auto rollout = WaitFor({"a"})["a"];
  EXPECT_EQ(rollout.status(), v1::ROLLOUT_STATUS_SUCCEEDED);
}

TEST_F(RunnerTest, StopLetsWhatRunsFinishAndClaimsNoMore) {
  Enqueue({Spec("a")});
  std::promise<void> working, go_on;
  Start([&](Attempt&) -> std::optional<double> {
    working.set_value();
    go_on.get_future().wait();
    return std::nullopt;
  });
  working.get_future().wait();
  runner_->Stop();
  Enqueue({Spec("b")});
  go_on.set_value();
  ASSERT_TRUE(Ended());
  EXPECT_EQ(GetAttempt("a").status(), v1::ATTEMPT_STATUS_SUCCEEDED);
  EXPECT_THROW(GetAttempt("b"), Error);  // it has none
}

TEST_F(RunnerTest, SecondStopCancelsWhatRuns) {
  Enqueue({Spec("a")});
  std::promise<void> working;
  Start([&](Attempt& attempt) {
    working.set_value();
    EXPECT_TRUE(attempt.WaitUntilCancelled(kPatience));
    return 1.0;
  });
  working.get_future().wait();
  runner_->Stop();
  runner_->Stop();
  ASSERT_TRUE(Ended());
  EXPECT_EQ(GetAttempt("a").status(), v1::ATTEMPT_STATUS_FAILED);
  EXPECT_EQ(GetAttempt("a").failure().type(), "Cancelled");
}

TEST_F(RunnerTest, NothingIsLostWhenTheServerIsKilled) {
  std::vector<std::string> ids;
  std::vector<v1::RolloutSpec> specs;
  for (int i = 0; i < 12; ++i) {
    ids.push_back("r" + std::to_string(i));
    specs.push_back(Spec(ids.back()));
  }
  Enqueue(specs);
  std::atomic<int> begun{0};
  std::promise<void> half, back;
  std::shared_future<void> server_is_back = back.get_future().share();
  RunnerOptions options = Quick();
  options.concurrency = 3;
  Start(
      [&](Attempt& attempt) -> std::optional<double> {
        attempt.StartSpan("before");
        if (++begun == 6) half.set_value();
        if (begun >= 6) server_is_back.wait();
        attempt.StartSpan("after");
        return 1;
      },
      options);
  half.get_future().wait();
  server_.Restart();
  stub_ = server_.NewStub();
  back.set_value();
  for (const auto& [id, rollout] : WaitFor(ids)) {
    EXPECT_EQ(rollout.status(), v1::ROLLOUT_STATUS_SUCCEEDED) << id;
    EXPECT_EQ(rollout.attempt_count(), 1) << id;
    EXPECT_EQ(Spans(id).size(), 3U) << id;
  }
}

TEST_F(RunnerTest, ErrorThatWaitingDoesNotMendEndsIt) {
  RunnerOptions options;
  options.worker_id = std::string(300, 'x');
  Start([](Attempt&) { return std::nullopt; }, options);
  ASSERT_TRUE(Ended());
  try {
    running_.get();
    FAIL() << "it ended well";
  } catch (const Error& error) {
    EXPECT_EQ(error.reason, "ERROR_REASON_FIELD_INVALID");
  }
}

}  // namespace
}  // namespace lightningstore
