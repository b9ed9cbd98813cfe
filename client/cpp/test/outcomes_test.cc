// However an agent ends, its attempt is reported; and what is said of spans that are lost.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "events.h"
#include "failure.h"
#include "lightningstore/runner.h"
#include "losses.h"
#include "status_details.pb.h"

namespace lightningstore {
namespace {

using std::chrono::seconds;
using test::kPatience;

// A server that has rollouts to claim, keeps what is reported, and stores spans or refuses them.
class Scripted final : public v1::LightningStoreService::Service {
 public:
  Scripted() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    address_ = "127.0.0.1:" + std::to_string(port);
  }
  ~Scripted() override { server_->Shutdown(std::chrono::system_clock::now()); }

  const std::string& address() const { return address_; }

  grpc::Status DequeueRollouts(grpc::ServerContext*, const v1::DequeueRolloutsRequest* request,
                               v1::DequeueRolloutsResponse* answer) override {
    queues = {request->queues().begin(), request->queues().end()};
    v1::Rollout& rollout = *answer->add_rollouts();
    rollout.set_rollout_id("ro-1");
    if (leaves_out_input) {
      rollout.set_payloads_omitted(true);
    } else {
      rollout.set_input_json("{}");
    }
    rollout.mutable_latest_attempt()->set_attempt_id("at-1");
    if (!versions.empty()) {
      rollout.mutable_latest_attempt()->set_resources_id("rs-1");
      rollout.mutable_latest_attempt()->set_resources_version(versions.front());
      versions.pop_front();
    }
    return grpc::Status::OK;
  }

  grpc::Status GetResources(grpc::ServerContext*, const v1::GetResourcesRequest* request,
                            v1::GetResourcesResponse* answer) override {
    ++loads;
    v1::Resources& resources = *answer->mutable_resources();
    resources.set_resources_id(request->resources_id());
    resources.set_version(request->version());
    (*resources.mutable_resources())["llm"].mutable_llm()->set_model(std::to_string(request->version()));
    return grpc::Status::OK;
  }

  grpc::Status GetRollout(grpc::ServerContext*, const v1::GetRolloutRequest* request,
                          v1::GetRolloutResponse* answer) override {
    answer->mutable_rollout()->set_rollout_id(request->rollout_id());
    answer->mutable_rollout()->set_input_json("7");
    return grpc::Status::OK;
  }

  grpc::Status Heartbeat(grpc::ServerContext*, const v1::HeartbeatRequest*, v1::HeartbeatResponse*) override {
    return grpc::Status::OK;
  }

  grpc::Status IngestSpans(grpc::ServerContext*, grpc::ServerReader<v1::IngestSpansRequest>* reader,
                           v1::IngestSpansResponse* answer) override {
    for (v1::IngestSpansRequest request; reader->Read(&request);) {
      for (const auto& span : request.batch().spans()) {
        const std::lock_guard lock(mutex_);
        spans_.push_back(span.name());
      }
    }
    const std::lock_guard lock(mutex_);
    ++streams_;
    *answer->mutable_result() = result;
    return grpc::Status::OK;
  }

  grpc::Status UpdateAttempt(grpc::ServerContext*, const v1::UpdateAttemptRequest* request,
                             v1::UpdateAttemptResponse*) override {
    const std::lock_guard lock(mutex_);
    reports_.push_back(request->attempt());
    const auto& paths = request->update_mask().paths();
    masks_.emplace_back(paths.begin(), paths.end());
    if (is_older && std::find(paths.begin(), paths.end(), "reward") != paths.end()) return UnknownPath();
    return reports_.size() <= refused_reports
               ? grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "t\xc3\xa4glich")
               : grpc::Status::OK;
  }

  std::vector<v1::Attempt> reports() {
    const std::lock_guard lock(mutex_);
    return reports_;
  }
  std::vector<std::vector<std::string>> masks() {
    const std::lock_guard lock(mutex_);
    return masks_;
  }
  std::vector<std::string> spans() {
    const std::lock_guard lock(mutex_);
    return spans_;
  }

  int streams() {
    const std::lock_guard lock(mutex_);
    return streams_;
  }

  std::size_t refused_reports = 0;
  bool leaves_out_input = false;
  bool is_older = false;            // and knows no rewards in reports
  std::vector<std::string> queues;  // of the last claim
  std::deque<int> versions;         // of the resources of the next claims, which have none without it
  std::atomic<int> loads{0};        // of resources
  v1::IngestResult result;          // of each stream of spans

 private:
  static grpc::Status UnknownPath() {
    wire::BadRequest bad;
    bad.add_field_violations()->set_field("update_mask.paths[1]");
    wire::Status details;
    google::protobuf::Any& detail = *details.add_details();
    detail.set_type_url("type.googleapis.com/google.rpc.BadRequest");
    detail.set_value(bad.SerializeAsString());
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "unknown", details.SerializeAsString());
  }

  std::mutex mutex_;
  std::vector<v1::Attempt> reports_;
  std::vector<std::vector<std::string>> masks_;
  std::vector<std::string> spans_;
  int streams_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

void RunOnce(const Scripted& server, Agent agent) {
  RunnerOptions options;
  options.max_rollouts = 1;
  Runner(Connect(server.address()), std::move(agent), options).Run();
}

v1::Failure FailureOf(const std::function<void()>& thrower) {
  Scripted server;
  RunOnce(server, [&](Attempt&) -> std::optional<double> {
    thrower();
    return std::nullopt;
  });
  const auto reports = server.reports();
  EXPECT_EQ(reports.size(), 1U);
  if (reports.empty()) return {};
  EXPECT_EQ(reports[0].status(), v1::ATTEMPT_STATUS_FAILED);
  return reports[0].failure();
}

void ExpectFailure(const std::string& type, const std::string& message,
                   const std::function<void()>& thrower) {
  const v1::Failure failure = FailureOf(thrower);
  EXPECT_EQ(failure.type(), type);
  EXPECT_EQ(failure.message(), message);
  EXPECT_FALSE(failure.has_retryable());
}

struct Silent : std::exception {
  const char* what() const noexcept override { return nullptr; }
};

// It says that it has another one inside, and has none.
struct Hollow : std::runtime_error, std::nested_exception {
  Hollow() : std::runtime_error("hollow") {}
};

struct Odd {};

const std::string kHere = "lightningstore::(anonymous namespace)::";

TEST(Outcomes, ExceptionsOfEveryTypeAreReported) {
  ExpectFailure("int", "42", [] { throw 42; });
  ExpectFailure("char const*", "text", [] { throw "text"; });
  ExpectFailure("std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >", "half ?",
                [] { throw std::string("half \xd0"); });
  ExpectFailure(kHere + "Odd", "an exception that is not a std::exception, of type " + kHere + "Odd",
                [] { throw Odd(); });
}

TEST(Outcomes, ExceptionsThatSayNothingAreReportedByTheirType) {
  ExpectFailure(kHere + "Silent", kHere + "Silent", [] { throw Silent(); });
  ExpectFailure("std::runtime_error", "std::runtime_error", [] { throw std::runtime_error(""); });
  ExpectFailure("std::runtime_error", "half ??", [] { throw std::runtime_error("half \xed\xa0"); });
}

TEST(Outcomes, NestedExceptionsAreReportedFromTheOutside) {
  ExpectFailure("std::runtime_error", "while asking: no answer: 42", [] {
    try {
      try {
        throw 42;
      } catch (...) {
        std::throw_with_nested(std::logic_error("no answer"));
      }
    } catch (...) {
      std::throw_with_nested(std::runtime_error("while asking"));
    }
  });
  ExpectFailure(kHere + "Hollow", "hollow", [] { throw Hollow(); });
}

TEST(Outcomes, NestingHasAnEndAndTextABound) {
  const v1::Failure failure = FailureOf([] {
    std::exception_ptr inner = std::make_exception_ptr(std::runtime_error("innermost"));
    for (int i = 0; i < 1000; ++i) {
      try {
        std::rethrow_exception(inner);
      } catch (...) {
        try {
          std::throw_with_nested(std::runtime_error(std::string(1000, 'x')));
        } catch (...) {
          inner = std::current_exception();
        }
      }
    }
    std::rethrow_exception(inner);
  });
  EXPECT_EQ(failure.message().size(), 16'384U);
}

TEST(Outcomes, NonRetryableIsFoundWhereItIsNested) {
  const v1::Failure failure = FailureOf([] {
    try {
      throw NonRetryable("no use");
    } catch (...) {
      std::throw_with_nested(std::runtime_error("while asking"));
    }
  });
  EXPECT_TRUE(failure.has_retryable() && !failure.retryable());
}

TEST(Outcomes, ReportThatIsRefusedIsRepeatedAsAPlainFailure) {
  Scripted server;
  server.refused_reports = 1;
  RunOnce(server, [](Attempt&) -> std::optional<double> { throw NonRetryable("no use"); });
  auto reports = server.reports();
  ASSERT_EQ(reports.size(), 2U);
  EXPECT_EQ(reports[0].failure().message(), "no use");
  EXPECT_EQ(reports[1].failure().type(), "ReportRefused");
  EXPECT_EQ(reports[1].failure().message(), "the server rejected the report: t??glich");
  EXPECT_TRUE(reports[1].failure().has_retryable()) << "as it was";

  Scripted strict;
  strict.refused_reports = 1;
  RunOnce(strict, [](Attempt&) { return std::nullopt; });
  reports = strict.reports();
  ASSERT_EQ(reports.size(), 2U);
  EXPECT_EQ(reports[0].status(), v1::ATTEMPT_STATUS_SUCCEEDED);
  EXPECT_EQ(reports[1].status(), v1::ATTEMPT_STATUS_FAILED);
}

TEST(Outcomes, RewardsAreInTheReport) {
  Scripted server;
  RunOnce(server, [](Attempt&) { return 0.0; });
  ASSERT_EQ(server.reports().size(), 1U);
  EXPECT_TRUE(server.reports()[0].has_reward());
  EXPECT_EQ(server.masks(), (std::vector<std::vector<std::string>>{{"status", "reward"}}));
  EXPECT_EQ(server.spans(), std::vector<std::string>{"agentlightning.annotation"});
}

TEST(Outcomes, OlderServersGetReportsWithoutRewards) {
  Scripted server;
  server.is_older = true;
  RunnerOptions options;
  options.max_rollouts = 2;
  Runner(
      Connect(server.address()), [](Attempt&) { return 1.0; }, options)
      .Run();
  // Only the first report is repeated.
  EXPECT_EQ(server.masks(),
            (std::vector<std::vector<std::string>>{{"status", "reward"}, {"status"}, {"status"}}));
  EXPECT_EQ(server.reports()[2].status(), v1::ATTEMPT_STATUS_SUCCEEDED);
  EXPECT_FALSE(server.reports()[2].has_reward());
  EXPECT_EQ(server.spans().size(), 2U);
}

TEST(Outcomes, ClaimsNameTheQueues) {
  Scripted server;
  RunnerOptions options;
  options.max_rollouts = 1;
  options.queues = {"gpu", ""};
  Runner(
      Connect(server.address()), [](Attempt&) { return std::nullopt; }, options)
      .Run();
  EXPECT_EQ(server.queues, (std::vector<std::string>{"gpu", ""}));
}

TEST(Outcomes, ForkedChildOfAnAgentReportsNothing) {
  Scripted server;
  int child_status = 0;
  RunOnce(server, [&](Attempt& attempt) -> std::optional<double> {
    const pid_t child = fork();
    attempt.StartSpan(child == 0 ? "child" : "parent");
    if (child == 0) return 2.0;  // as it should not
    waitpid(child, &child_status, 0);
    return std::nullopt;
  });
  EXPECT_TRUE(WIFEXITED(child_status));
  EXPECT_EQ(WEXITSTATUS(child_status), EXIT_FAILURE);
  EXPECT_EQ(server.reports().size(), 1U);
  EXPECT_EQ(server.spans(), std::vector<std::string>{"parent"});
}

TEST(Outcomes, ForkedChildMakesOtherIds) {
  RandomBytes(8);  // whatever is prepared is prepared before the fork
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const pid_t child = fork();
  const std::string own = RandomBytes(64);
  if (child == 0) _exit(write(ends[1], own.data(), own.size()) == 64 ? 0 : 1);
  std::string other(64, '\0');
  ASSERT_EQ(read(ends[0], &other[0], other.size()), 64);
  waitpid(child, nullptr, 0);
  close(ends[0]);
  close(ends[1]);
  EXPECT_NE(own, other);
  EXPECT_EQ(RandomBytes(1000).size(), 1000U);
}

TEST(Outcomes, SpansThatAreRefusedWithoutAReasonAreCounted) {
  Scripted server;
  server.result.set_rejected_count(1);
  RunOnce(server, [](Attempt& attempt) -> std::optional<double> {
    attempt.StartSpan("a");
    attempt.Flush(kPatience);
    EXPECT_EQ(attempt.dropped_spans(), 1);
    return std::nullopt;
  });
}

TEST(Outcomes, SpansOfABatchThatAreRefusedAreCountedAndTheOthersNotSentAgain) {
  Scripted server;
  server.result.set_rejected_count(1);
  server.result.add_rejections()->set_span_count(1);
  std::int64_t dropped = 0;
  RunOnce(server, [&](Attempt& attempt) -> std::optional<double> {
    for (int i = 0; i < 10; ++i) attempt.StartSpan("s");
    attempt.Flush(kPatience);
    dropped = attempt.dropped_spans();
    return std::nullopt;
  });
  EXPECT_EQ(server.spans().size(), 10U);
  EXPECT_EQ(dropped, server.streams());  // one of each, however many went together
}

TEST(Outcomes, ClaimWithoutItsInputIsFilled) {
  Scripted server;
  server.leaves_out_input = true;
  std::string input;
  RunOnce(server, [&](Attempt& attempt) -> std::optional<double> {
    input = attempt.input_json();
    return std::nullopt;
  });
  EXPECT_EQ(input, "7");
}

TEST(Outcomes, ResourcesAreLoadedOncePerVersion) {
  Scripted server;
  server.versions = {1, 1, 2, 2, 1};
  RunnerOptions options;
  options.max_rollouts = 5;
  std::string models;
  const auto agent = [&](Attempt& attempt) -> std::optional<double> {
    models += attempt.resources().at("llm").llm().model();
    return std::nullopt;
  };
  Runner(Connect(server.address()), agent, options).Run();
  EXPECT_EQ(models, "11221");
  EXPECT_EQ(server.loads, 2);
}

TEST(Losses, FirstIsSaidAtOnceAndTheOthersOnceAMinute) {
  Losses losses;
  Losses::Time now;
  testing::internal::CaptureStderr();
  losses.Add(1, "size", "a", now);
  losses.Add(2, "size", "b", now + seconds(59));
  losses.Add(1, "refused", "c", now + seconds(59));
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "lightningstore: 1 spans dropped, 1 so far: a\nlightningstore: 1 spans dropped, 4 so far: c\n");
  testing::internal::CaptureStderr();
  losses.Summarize(now + seconds(60), false);
  losses.Add(5, "size", "d", now + seconds(61));
  losses.Summarize(now + seconds(61), true);
  losses.Summarize(now + seconds(200), true);
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "lightningstore: 2 spans dropped, 4 so far: b\nlightningstore: 5 spans dropped, 9 so far: d\n");
}

std::string WrongField(google::protobuf::Message* message) {
  try {
    MakeValid(message);
  } catch (const std::invalid_argument& wrong) {
    return wrong.what();
  }
  return "";
}

TEST(Text, IsRepairedButForIdsWhichAreNamed) {
  v1::EnqueueRolloutsRequest batch;
  batch.add_rollouts()->set_group_id("ж");
  EXPECT_EQ(WrongField(&batch), "");
  batch.add_rollouts()->set_group_id("\xff");
  EXPECT_EQ(WrongField(&batch), "rollouts[1].group_id must be valid UTF-8");

  v1::CancelRolloutsRequest cancel;
  cancel.add_rollout_ids("\xff");
  EXPECT_EQ(WrongField(&cancel), "rollout_ids[0] must be valid UTF-8");

  v1::AddResourcesRequest resources;
  auto& llm = *(*resources.mutable_resources())["model"].mutable_llm();
  llm.set_model("qwen \xff");
  EXPECT_EQ(WrongField(&resources), "");
  EXPECT_EQ(resources.resources().at("model").llm().model(), "qwen ?");
  (*resources.mutable_resources())["\xff"];
  EXPECT_NE(WrongField(&resources).find(".key must be valid UTF-8"), std::string::npos);
}

TEST(Text, OfAWorkerIdIsCheckedAtOnce) {
  RunnerOptions options;
  options.worker_id = "\xff";
  EXPECT_THROW(Runner(
                   Connect("127.0.0.1:1"), [](Attempt&) { return std::nullopt; }, options),
               std::invalid_argument);
}

}  // namespace
}  // namespace lightningstore
