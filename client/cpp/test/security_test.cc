// TLS and tokens, against a server that wants both.
#include <gtest/gtest.h>

#include <filesystem>

#include "server.h"

// As README.md prints it.
std::shared_ptr<grpc::Channel> ConnectSecurely(const std::string& address, const std::string& certificate,
                                               const std::string& token) {
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = certificate;
  const auto credentials =
      grpc::CompositeChannelCredentials(grpc::SslCredentials(options), grpc::AccessTokenCredentials(token));
  return lightningstore::Connect(address, credentials);
}

namespace lightningstore::test {
namespace {

class Security : public testing::Test {
 protected:
  Security() {
    const std::string program = ServerProgram();
    const std::string python = std::filesystem::path(program).replace_filename("python");
    Program certificates({python, "-m", "trustme", "-q"}, folder_.path());
    EXPECT_EQ(certificates.Wait(), 0);
    Program tokens({program, "token", "new", "--file", Path("tokens"), "--name", "r", "--role", "runner"},
                   folder_.path());
    token_ = tokens.ReadLine();
    EXPECT_EQ(tokens.Wait(), 0);
    server_ = std::make_unique<Server>(
        "memory", std::vector<std::string>{"--tls-cert", Path("server.pem"), "--tls-key", Path("server.key"),
                                           "--auth-tokens", Path("tokens")});
  }

  std::string Path(const std::string& name) const { return folder_.path() + "/" + name; }

  // Returns the status of a heartbeat, which runners may send.
  static grpc::Status Beat(const std::shared_ptr<grpc::Channel>& channel) {
    grpc::ClientContext context;
    SetTimeout(context, std::chrono::seconds(10));
    v1::HeartbeatRequest request;
    request.set_worker_id("w");
    v1::HeartbeatResponse answer;
    return v1::LightningStoreService::NewStub(channel)->Heartbeat(&context, request, &answer);
  }

  const Folder folder_;
  std::string token_;
  std::unique_ptr<Server> server_;
};

TEST_F(Security, RightTokenOverTlsGetsIn) {
  const grpc::Status status = Beat(ConnectSecurely(server_->address(), ReadFile(Path("client.pem")), token_));
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(Security, WrongTokenIsToldSo) {
  const auto channel = ConnectSecurely(server_->address(), ReadFile(Path("client.pem")), token_ + "x");
  EXPECT_EQ(Beat(channel).error_code(), grpc::StatusCode::UNAUTHENTICATED);
}

TEST_F(Security, ServerOfAnotherAuthorityAndPlainTextGetNowhere) {
  const auto system = ConnectSecurely(server_->address(), "", token_);
  EXPECT_EQ(Beat(system).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Beat(Connect(server_->address())).error_code(), grpc::StatusCode::UNAVAILABLE);
}

}  // namespace
}  // namespace lightningstore::test
