// How a runner learns that a rollout it works on has finished.
#include "finishes.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>

#include "events.h"
#include "lightningstore/runner.h"

namespace lightningstore {
namespace {

using std::chrono::milliseconds;
using test::Events;
using Ids = std::vector<std::string>;
using News = v1::WaitForRolloutsResponse;
using WaitService =
    v1::LightningStoreService::WithCallbackMethod_WaitForRollouts<v1::LightningStoreService::Service>;

// A response stream that sends at most one message. Ends with the message's summary, or when it is cancelled.
class Wait final : public grpc::ServerWriteReactor<News> {
 public:
  Wait(std::optional<News> news, Events<bool>* closed) : news_(std::move(news)), closed_(closed) {
    if (news_) StartWrite(&*news_);
  }
  // Ends it, once: a client may close what has ended, or what ends just then.
  void End(const grpc::Status& status) {
    if (!has_ended_.exchange(true)) Finish(status);
  }
  void OnWriteDone(bool) override {
    if (news_->has_summary()) End(grpc::Status::OK);
  }
  void OnCancel() override {
    closed_->Put(true);
    End(grpc::Status::CANCELLED);
  }
  void OnDone() override { delete this; }

 private:
  const std::optional<News> news_;
  Events<bool>* const closed_;
  std::atomic<bool> has_ended_{false};
};

// A server of waits, and of one rollout to claim.
class Waits final : public WaitService {
 public:
  Waits() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~Waits() override { server_->Shutdown(std::chrono::system_clock::now()); }

  std::shared_ptr<grpc::Channel> Channel() const { return Connect("127.0.0.1:" + std::to_string(port_)); }

  grpc::ServerWriteReactor<News>* WaitForRollouts(grpc::CallbackServerContext*,
                                                  const v1::WaitForRolloutsRequest* request) override {
    Ids ids(request->rollout_ids().begin(), request->rollout_ids().end());
    std::sort(ids.begin(), ids.end());
    asked.Put(std::move(ids));
    if (refusals-- > 0) {
      auto* refused = new Wait(std::nullopt, &closed);
      refused->End(grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "no such method"));
      return refused;
    }
    return new Wait(news, &closed);
  }

  grpc::Status DequeueRollouts(grpc::ServerContext*, const v1::DequeueRolloutsRequest*,
                               v1::DequeueRolloutsResponse* answer) override {
    v1::Rollout& rollout = *answer->add_rollouts();
    rollout.set_rollout_id("a");
    rollout.mutable_latest_attempt()->set_attempt_id("at-1");
    return grpc::Status::OK;
  }
  grpc::Status Heartbeat(grpc::ServerContext*, const v1::HeartbeatRequest* request,
                         v1::HeartbeatResponse* answer) override {
    if (asked.IsEmpty() || request->attempts().empty()) return grpc::Status::OK;
    v1::Stop& stop = *answer->add_stops();
    *stop.mutable_attempt() = request->attempts(0);
    stop.set_reason(v1::STOP_REASON_ROLLOUT_CANCELLED);
    return grpc::Status::OK;
  }

  // To be set before the calls.
  std::optional<News> news;
  std::atomic<int> refusals{0};
  // What the waits ask for, and one event for each that the client closes.
  Events<Ids> asked;
  Events<bool> closed;

 private:
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

News FinishOf(const Ids& ids) {
  News news;
  for (const std::string& id : ids) news.add_rollouts()->set_rollout_id(id);
  return news;
}

class FinishesTest : public testing::Test {
 protected:
  std::unique_ptr<Finishes::Watch> Add(const std::string& id) {
    v1::AttemptRef ref;
    ref.set_rollout_id(id);
    ref.set_attempt_id("at-1");
    return std::make_unique<Finishes::Watch>(&finishes_, ref);
  }

  Waits server_;
  Events<bool> reported_;
  std::unique_ptr<v1::LightningStoreService::Stub> stub_ =
      v1::LightningStoreService::NewStub(server_.Channel());
  Finishes finishes_{stub_.get(), [this] { reported_.Put(true); }, milliseconds(700)};
};

TEST_F(FinishesTest, OneStreamCoversAllRolloutsAndEndsWithTheLast) {
  auto a = Add("a"), b = Add("b");
  EXPECT_EQ(server_.asked.Next(), Ids({"a", "b"}));
  a.reset();
  auto c = Add("c");
  EXPECT_EQ(server_.asked.Next(), Ids({"b", "c"}));
  server_.closed.Next();  // the first one, which the second replaces
  EXPECT_TRUE(server_.asked.IsEmpty());
  EXPECT_TRUE(server_.closed.IsEmpty());
  b.reset();
  c.reset();
  server_.closed.Next();
  const auto d = Add("d");
  EXPECT_EQ(server_.asked.Next(), Ids({"d"}));
}

TEST_F(FinishesTest, AreReportedWhileTheRolloutIsWorkedOnAndOnce) {
  server_.news = FinishOf({"a", "b"});
  const auto b = Add("b"), c = Add("c");
  EXPECT_EQ(server_.asked.Next(), Ids({"b", "c"}));
  reported_.Next();  // not of a, which the runner does not work on
  const auto d = Add("d");
  EXPECT_EQ(server_.asked.Next(), Ids({"c", "d"}));
  EXPECT_TRUE(reported_.IsEmpty());
}

TEST_F(FinishesTest, StreamThatFailsIsOpenedAgainAfterThePause) {
  server_.refusals = 1;
  server_.news = FinishOf({"b"});
  const auto a = Add("a");
  EXPECT_EQ(server_.asked.Next(), Ids({"a"}));
  const auto b = Add("b");  // old enough before the pause is over
  EXPECT_EQ(server_.asked.Next(), Ids({"a", "b"}));
  reported_.Next();
}

TEST_F(FinishesTest, StreamThatEndsTooEarlyIsOpenedAgain) {
  server_.news = News();
  server_.news->mutable_summary();
  const auto a = Add("a");
  EXPECT_EQ(server_.asked.Next(), Ids({"a"}));
  EXPECT_EQ(server_.asked.Next(), Ids({"a"}));
}

TEST(FinishesOfARunner, AreLeftToHeartbeatsWithoutTheStream) {
  Waits server;
  server.refusals = 1'000;
  RunnerOptions options;
  options.max_rollouts = 1;
  options.heartbeat_period = milliseconds(50);
  std::promise<std::optional<v1::StopReason>> stopped;
  Runner runner(
      server.Channel(),
      [&](Attempt& attempt) -> std::optional<double> {
        attempt.WaitUntilCancelled(std::chrono::seconds(30));
        stopped.set_value(attempt.stop_reason());
        return std::nullopt;
      },
      options);
  runner.Run();
  EXPECT_EQ(stopped.get_future().get(), v1::STOP_REASON_ROLLOUT_CANCELLED);
}

}  // namespace
}  // namespace lightningstore
