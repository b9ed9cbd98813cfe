// A first call to a server that is not there: a warning soon, and an error that helps.
#include <gtest/gtest.h>

#include <future>

#include "channel.h"
#include "events.h"
#include "lightningstore/client.h"
#include "server.h"

namespace lightningstore {
namespace {

using std::chrono::milliseconds;
using test::Events;

const std::string kHint = ": is `lightningstore serve` running there?";

// A server that answers heartbeats, the first of them when it is allowed to.
class Answerer final : public v1::LightningStoreService::Service {
 public:
  Answerer() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~Answerer() override { server_->Shutdown(std::chrono::system_clock::now()); }

  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  grpc::Status Heartbeat(grpc::ServerContext*, const v1::HeartbeatRequest*, v1::HeartbeatResponse*) override {
    called.Put(true);
    if (may_answer.valid()) may_answer.wait();
    return grpc::Status::OK;
  }

  std::shared_future<void> may_answer;
  Events<bool> called;

 private:
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

std::string Nowhere() { return Answerer().address(); }

class ContactTest : public testing::Test {
 protected:
  std::shared_ptr<grpc::Channel> NewChannel(const std::string& address,
                                            milliseconds first_answer = milliseconds(50)) {
    ChannelOptions options;
    options.address = address;
    options.first_answer = first_answer;
    options.warn = [this](const std::string& words) { said_.Put(words); };
    return lightningstore::NewChannel(std::move(options));
  }

  static grpc::Status Beat(const std::shared_ptr<grpc::Channel>& channel) {
    grpc::ClientContext context;
    SetTimeout(context, std::chrono::seconds(30));
    v1::HeartbeatResponse answer;
    return v1::LightningStoreService::NewStub(channel)->Heartbeat(&context, {}, &answer);
  }

  Events<std::string> said_;
};

TEST(Contact, IsMissedAfterTwoSeconds) { EXPECT_EQ(kFirstAnswer, std::chrono::seconds(2)); }

TEST_F(ContactTest, WarningAndErrorNameTheAddress) {
  const std::string address = Nowhere();
  const auto channel = NewChannel(address);
  const grpc::Status status = Beat(channel);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message().find("no server answers at " + address + kHint), 0U)
      << status.error_message();
  EXPECT_TRUE(Error(status).IsTransient());
  EXPECT_EQ(said_.Next(), "no server has answered at " + address + " for 0.05 s" + kHint);
  Beat(channel);
  EXPECT_TRUE(said_.IsEmpty());
}

TEST_F(ContactTest, AnswerThatTakesLongIsNotReported) {
  Answerer store;
  std::promise<void> go_on;
  store.may_answer = go_on.get_future().share();
  const auto channel = NewChannel(store.address());
  ASSERT_TRUE(channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(30)));
  auto status = std::async(std::launch::async, [&] { return Beat(channel); });
  store.called.Next();
  const std::string nowhere = Nowhere();
  const auto other = NewChannel(nowhere);  // its time ends after that of the first
  Beat(other);
  EXPECT_NE(said_.Next().find(nowhere), std::string::npos);
  EXPECT_TRUE(said_.IsEmpty());
  go_on.set_value();
  EXPECT_TRUE(status.get().ok());
}

TEST_F(ContactTest, ErrorOfAServerThatHasAnsweredHasNoHint) {
  auto store = std::make_unique<Answerer>();
  const auto channel = NewChannel(store->address());
  EXPECT_TRUE(Beat(channel).ok());
  store.reset();
  const grpc::Status status = Beat(channel);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message().find("lightningstore serve"), std::string::npos) << status.error_message();
}

TEST_F(ContactTest, ChannelThatEndsBeforeIsNotReported) {
  const std::string first = Nowhere(), second = Nowhere();
  constexpr milliseconds kLong{3'000};  // than which a call that fails takes less
  Beat(NewChannel(first, kLong));
  const auto channel = NewChannel(second, kLong);
  Beat(channel);
  EXPECT_NE(said_.Next().find(second), std::string::npos);
  EXPECT_TRUE(said_.IsEmpty());
}

TEST(Contact, IsMissedByARunnerOnStderr) {
  const test::Folder folder;
  const std::string address = Nowhere();
  test::Program runner({"/bin/sh", "-c", "exec " LIGHTNINGSTORE_RUNNER " 2>&1"}, folder.path(), address);
  const std::string warning = "lightningstore: no server has answered at " + address + " for 2 s" + kHint;
  std::string line;
  do {
    line = runner.ReadLine();
  } while (!line.empty() && line != warning);
  EXPECT_EQ(line, warning);
}

}  // namespace
}  // namespace lightningstore
