#include "lightningstore/client.h"

#include <gtest/gtest.h>

#include <set>

#include "failure.h"
#include "server.h"

namespace lightningstore {
namespace {

using test::Server;

Error FailureOf(const grpc::Status& status) {
  try {
    Check(status);
  } catch (const Error& error) {
    return error;
  }
  throw std::logic_error("it did not fail");
}

TEST(Client, ErrorsCarryTheirReasonAndWhatItNames) {
  const Server server;
  grpc::ClientContext context;
  v1::GetRolloutRequest request;
  request.set_rollout_id("ro-nobody");
  v1::GetRolloutResponse answer;
  const Error error = FailureOf(server.NewStub()->GetRollout(&context, request, &answer));
  EXPECT_EQ(error.code, grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(error.reason, "ERROR_REASON_ROLLOUT_NOT_FOUND");
  EXPECT_EQ(error.domain, "lightningstore");
  EXPECT_EQ(error.metadata.at("rolloutId"), "ro-nobody");
  EXPECT_NE(std::string(error.what()).find("ro-nobody"), std::string::npos);
  EXPECT_FALSE(error.IsTransient());
}

TEST(Client, ErrorsNameTheFieldsThatAreWrong) {
  const Server server;
  grpc::ClientContext context;
  v1::EnqueueRolloutsRequest request;
  request.add_rollouts()->set_input_json("1");
  request.add_rollouts()->set_input_json("no JSON");
  v1::EnqueueRolloutsResponse answer;
  const Error error = FailureOf(server.NewStub()->EnqueueRollouts(&context, request, &answer));
  EXPECT_EQ(error.code, grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(error.fields, std::vector<std::string>{"rollouts[1].input_json"});
}

TEST(Client, ServerThatIsAwayIsTransient) {
  std::string address;
  {
    const Server server;
    address = server.address();
  }
  grpc::ClientContext context;
  SetTimeout(context, std::chrono::seconds(10));
  v1::GetServerInfoResponse answer;
  const auto stub = v1::LightningStoreService::NewStub(Connect(address));
  const Error error = FailureOf(stub->GetServerInfo(&context, {}, &answer));
  EXPECT_EQ(error.code, grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(error.IsTransient());
}

TEST(Client, DelaysAreReadOutOfTheDetails) {
  // google.rpc.Status with one google.rpc.RetryInfo of 1.5 s, as it is on the wire.
  const std::string info("\x0a\x08\x08\x01\x10\x80\xca\xb5\xee\x01", 10);
  const std::string url = "type.googleapis.com/google.rpc.RetryInfo";
  const std::string any = "\x0a" + std::string(1, static_cast<char>(url.size())) + url + "\x12\x0a" + info;
  const std::string details = "\x1a" + std::string(1, static_cast<char>(any.size())) + any;
  const Error error(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "busy", details));
  ASSERT_TRUE(error.retry_delay.has_value());
  EXPECT_EQ(*error.retry_delay, std::chrono::milliseconds(1500));
  EXPECT_TRUE(error.IsTransient());
  EXPECT_FALSE(Error(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "too large")).IsTransient());
}

TEST(Client, RequestIdsAreNew) {
  std::set<std::string> ids;
  for (int i = 0; i < 100; ++i) ids.insert(NewRequestId());
  EXPECT_EQ(ids.size(), 100U);
  EXPECT_EQ(ids.begin()->size(), 32U);
}

TEST(Failure, TextsAreCutAndMadeValid) {
  EXPECT_EQ(MakeFailure("T", "a\xff\xc3x\xe2\x82").message(), "a??x??");
  EXPECT_EQ(MakeFailure("T", "ж𝄞").message(), "ж𝄞");
  const std::string longest = MakeFailure("T", std::string(16'383, 'x') + "ж").message();
  EXPECT_EQ(longest, std::string(16'383, 'x'));
}

}  // namespace
}  // namespace lightningstore
