// Connections that break under a call, and what comes of the call.
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <deque>
#include <future>
#include <stdexcept>
#include <thread>

#include "lightningstore/runner.h"

namespace lightningstore {
namespace {

using grpc::StatusCode;
using std::chrono::milliseconds;
using std::chrono::seconds;

// Speaks as much HTTP/2 as it takes to break calls: the first of each connection is answered by given frames.
class Breaker {
 public:
  explicit Breaker(std::string frames)
      : frames_(std::move(frames)), listener_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (bind(listener_, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(listener_, 5) != 0 ||
        getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
      throw std::runtime_error("no port");
    }
    address_ = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
    server_ = std::thread([this] {
      for (int connection; (connection = accept(listener_, nullptr, nullptr)) >= 0; close(connection)) {
        Serve(connection);
      }
    });
  }
  ~Breaker() {
    shutdown(listener_, SHUT_RDWR);
    server_.join();
    close(listener_);
  }

  const std::string& address() const { return address_; }

 private:
  void Serve(int connection) const {
    const std::string settings("\0\0\0\4\0\0\0\0\0", 9);
    send(connection, settings.data(), settings.size(), MSG_NOSIGNAL);
    std::string header(24, '\0');  // the preface, then a frame's each time
    while (recv(connection, header.data(), header.size(), MSG_WAITALL) == ssize_t(header.size())) {
      if (header.size() == 24) {
        header.resize(9);
        continue;
      }
      std::string payload(
          (std::uint8_t(header[0]) << 16) + (std::uint8_t(header[1]) << 8) + std::uint8_t(header[2]), '\0');
      recv(connection, payload.data(), payload.size(), MSG_WAITALL);
      if (header[3] != 1) continue;  // no HEADERS
      send(connection, frames_.data(), frames_.size(), MSG_NOSIGNAL);
      if (frames_[3] == 7) return;  // GOAWAY
    }
  }

  const std::string frames_;
  const int listener_;
  std::string address_;
  std::thread server_;
};

// HEADERS of an answer: 200, application/grpc.
const std::string kBegin = std::string("\0\0\x14\1\4\0\0\0\1\x88\x0f\x10\x10", 13) + "application/grpc";
const std::string kEnd("\0\0\0\0\1\0\0\0\1", 9);

std::string Reset(char code) { return std::string("\0\0\4\3\0\0\0\0\1\0\0\0", 12) + code; }
std::string GoAway(char last, char code) {
  return std::string("\0\0\x8\7\0\0\0\0\0\0\0\0", 12) + last + std::string(3, '\0') + code;
}

TEST(Break, IsTransientHoweverItLooks) {
  const std::vector<std::pair<std::string, StatusCode>> breaks = {
      {Reset(0), StatusCode::INTERNAL},          {Reset(1), StatusCode::INTERNAL},
      {Reset(2), StatusCode::INTERNAL},          {Reset(3), StatusCode::INTERNAL},
      {Reset(5), StatusCode::INTERNAL},          {Reset(7), StatusCode::UNAVAILABLE},
      {Reset(8), StatusCode::CANCELLED},         {Reset(11), StatusCode::RESOURCE_EXHAUSTED},
      {kBegin + Reset(2), StatusCode::INTERNAL}, {kBegin + Reset(8), StatusCode::CANCELLED},
      {kBegin + kEnd, StatusCode::UNKNOWN},      {GoAway(0, 0), StatusCode::UNAVAILABLE},
      {GoAway(1, 0), StatusCode::UNAVAILABLE},   {GoAway(1, 2), StatusCode::UNAVAILABLE},
  };
  for (const auto& [frames, code] : breaks) {
    const Breaker server(frames);
    const auto stub = v1::LightningStoreService::NewStub(Connect(server.address()));
    grpc::ClientContext context;
    SetTimeout(context, seconds(10));
    v1::GetServerInfoResponse answer;
    const Error error(stub->GetServerInfo(&context, {}, &answer));
    EXPECT_EQ(error.code, code) << error.what();
    EXPECT_TRUE(error.IsTransient()) << error.what();
  }
}

TEST(Break, IsNotWhatTheServerSaysOrWhatWaitingDoesNotMend) {
  EXPECT_FALSE(Error(grpc::Status(StatusCode::INTERNAL, "a defect")).IsTransient());
  EXPECT_FALSE(Error(grpc::Status(StatusCode::RESOURCE_EXHAUSTED, "Received message larger")).IsTransient());
  EXPECT_FALSE(Error(grpc::Status(StatusCode::INVALID_ARGUMENT, "RST_STREAM")).IsTransient());
  Error said(grpc::Status(StatusCode::INTERNAL, "RST_STREAM"));
  said.reason = "ERROR_REASON_INTERNAL";
  EXPECT_FALSE(said.IsTransient());
}

// A store of one rollout whose calls have their effect and then fail as a test says.
class Script final : public v1::LightningStoreService::Service {
 public:
  Script() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~Script() override { server_->Shutdown(std::chrono::system_clock::now()); }

  std::string address() const { return "127.0.0.1:" + std::to_string(port_); }

  // What the next calls of each method fail with. To be set before they are made.
  std::deque<grpc::Status> dequeue, resources, ingest, update;
  std::promise<void> claimed;
  int spans = 0;
  int ingests = 0;
  v1::UpdateAttemptRequest outcome;

 private:
  static grpc::Status Next(std::deque<grpc::Status>& failures) {
    if (failures.empty()) return grpc::Status::OK;
    const grpc::Status next = failures.front();
    failures.pop_front();
    return next;
  }

  grpc::Status DequeueRollouts(grpc::ServerContext*, const v1::DequeueRolloutsRequest* request,
                               v1::DequeueRolloutsResponse* answer) override {
    if (claim_.empty()) {
      claim_ = request->request_id();
      claimed.set_value();
    }
    if (request->request_id() != claim_) {
      std::this_thread::sleep_for(milliseconds(50));
      return grpc::Status::OK;
    }
    v1::Rollout& rollout = *answer->add_rollouts();
    rollout.set_rollout_id("r");
    rollout.mutable_latest_attempt()->set_attempt_id("a");
    rollout.mutable_latest_attempt()->set_resources_id("s");
    return Next(dequeue);
  }
  grpc::Status GetResources(grpc::ServerContext*, const v1::GetResourcesRequest*,
                            v1::GetResourcesResponse*) override {
    return Next(resources);
  }
  grpc::Status Heartbeat(grpc::ServerContext*, const v1::HeartbeatRequest*, v1::HeartbeatResponse*) override {
    return grpc::Status::OK;
  }
  grpc::Status IngestSpans(grpc::ServerContext*, grpc::ServerReader<v1::IngestSpansRequest>* reader,
                           v1::IngestSpansResponse*) override {
    int count = 0;
    for (v1::IngestSpansRequest request; reader->Read(&request);) count += request.batch().spans_size();
    ++ingests;
    const grpc::Status status = Next(ingest);
    if (status.ok()) spans += count;
    return status;
  }
  grpc::Status UpdateAttempt(grpc::ServerContext*, const v1::UpdateAttemptRequest* request,
                             v1::UpdateAttemptResponse*) override {
    outcome = *request;
    return Next(update);
  }

  int port_ = 0;
  std::string claim_;  // the id of the request that got the rollout
  std::unique_ptr<grpc::Server> server_;
};

std::optional<double> LeavesASpan(Attempt& attempt) {
  attempt.StartSpan("s");
  return std::nullopt;
}

RunnerOptions One() {
  RunnerOptions options;
  options.max_rollouts = 1;
  return options;
}

const grpc::Status kReset(StatusCode::INTERNAL, "Received RST_STREAM with error code 2");
const grpc::Status kCalm(StatusCode::RESOURCE_EXHAUSTED, "Received RST_STREAM with error code 11");
const grpc::Status kRemoved(StatusCode::UNKNOWN, "Stream removed");
const grpc::Status kCancelled(StatusCode::CANCELLED, "CANCELLED");
const grpc::Status kDefect(StatusCode::INTERNAL, "a defect");

TEST(Break, CostsTheRunnerNothing) {
  Script store;
  store.dequeue = {kReset, kRemoved};
  store.resources = {kCalm, kCancelled};
  store.ingest = {kRemoved, kReset};
  store.update = {kCancelled, kCalm};
  Runner(Connect(store.address()), LeavesASpan, One()).Run();
  EXPECT_EQ(store.spans, 1);
  EXPECT_EQ(store.outcome.attempt().status(), v1::ATTEMPT_STATUS_SUCCEEDED);
  EXPECT_TRUE(store.update.empty());  // it was repeated until it was answered
}

TEST(Break, StopInThePauseLeavesNoClaimBehind) {
  Script store;
  store.dequeue = {kReset};
  Runner runner(Connect(store.address()), LeavesASpan);
  auto running = std::async(std::launch::async, [&] { runner.Run(); });
  store.claimed.get_future().wait();
  std::this_thread::sleep_for(milliseconds(20));
  runner.Stop();
  running.get();
  EXPECT_EQ(store.outcome.attempt().status(), v1::ATTEMPT_STATUS_SUCCEEDED);
}

TEST(Defect, MayPassWithinSomeTries) {
  Script store;
  store.ingest = {kDefect, kDefect, kDefect, kDefect};
  Runner(Connect(store.address()), LeavesASpan, One()).Run();
  EXPECT_EQ(store.spans, 1);
}

TEST(Defect, ThatStaysCostsTheSpansAlone) {
  Script store;
  store.ingest = std::deque<grpc::Status>(100, kDefect);
  Runner(
      Connect(store.address()),
      [](Attempt& attempt) {
        attempt.StartSpan("s");
        attempt.Flush(seconds(30));
        EXPECT_EQ(attempt.dropped_spans(), 1);
        return std::nullopt;
      },
      One())
      .Run();
  EXPECT_EQ(store.ingests, 5);
  EXPECT_EQ(store.outcome.attempt().status(), v1::ATTEMPT_STATUS_SUCCEEDED);
}

}  // namespace
}  // namespace lightningstore
