#include "lightningstore/client.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <system_error>

#include "status_details.pb.h"

namespace lightningstore {
namespace {

constexpr char kDefaultAddress[] = "127.0.0.1:4747";
constexpr int kKeepaliveMs = 20'000;
constexpr int kKeepaliveTimeoutMs = 10'000;

std::string FullName(const google::protobuf::Any& any) {
  return any.type_url().substr(any.type_url().rfind('/') + 1);
}

// Returns whether the error of gRPC means that the connection broke during the call.
bool IsBreak(grpc::StatusCode code, const std::string& message) {
  if (code != grpc::StatusCode::INTERNAL && code != grpc::StatusCode::UNKNOWN &&
      code != grpc::StatusCode::RESOURCE_EXHAUSTED) {
    return false;
  }
  return message.find("RST_STREAM") != std::string::npos ||
         message.find("Stream removed") != std::string::npos;
}

}  // namespace

std::shared_ptr<grpc::Channel> Connect(std::string address,
                                       std::shared_ptr<grpc::ChannelCredentials> credentials) {
  if (address.empty()) {
    const char* named = std::getenv("LIGHTNINGSTORE_ADDRESS");
    address = named != nullptr && *named != '\0' ? named : kDefaultAddress;
  }
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // A new channel is a new connection.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 5'000);
  if (credentials == nullptr) credentials = grpc::InsecureChannelCredentials();
  return grpc::CreateCustomChannel(address, credentials, arguments);
}

std::string RandomBytes(int count) {
  constexpr std::size_t kMostAtOnce = 256;  // that getentropy gives
  std::string bytes(static_cast<std::size_t>(count), '\0');
  do {
    for (std::size_t i = 0; i < bytes.size(); i += kMostAtOnce) {
      if (getentropy(&bytes[i], std::min(kMostAtOnce, bytes.size() - i)) != 0) {
        throw std::system_error(errno, std::generic_category(), "no random bytes for ids");
      }
    }
  } while (bytes.find_first_not_of('\0') == std::string::npos);
  return bytes;
}

std::string NewRequestId() {
  std::string id;
  for (const unsigned char byte : RandomBytes(16)) {
    id.push_back("0123456789abcdef"[byte >> 4]);
    id.push_back("0123456789abcdef"[byte & 15]);
  }
  return id;
}

void SetTimeout(grpc::ClientContext& context, std::chrono::milliseconds timeout) {
  context.set_deadline(std::chrono::system_clock::now() + timeout);
}

Error::Error(const grpc::Status& status)
    : std::runtime_error(status.error_message()), code(status.error_code()) {
  wire::Status details;
  if (!details.ParseFromString(status.error_details())) return;
  for (const auto& any : details.details()) {
    const std::string name = FullName(any);
    if (name == "google.rpc.ErrorInfo") {
      wire::ErrorInfo info;
      if (!info.ParseFromString(any.value())) continue;
      reason = info.reason();
      domain = info.domain();
      metadata.insert(info.metadata().begin(), info.metadata().end());
    } else if (name == "google.rpc.BadRequest") {
      wire::BadRequest bad;
      if (!bad.ParseFromString(any.value())) continue;
      for (const auto& violation : bad.field_violations()) fields.push_back(violation.field());
    } else if (name == "google.rpc.RetryInfo") {
      wire::RetryInfo info;
      if (!info.ParseFromString(any.value())) continue;
      retry_delay = std::chrono::seconds(info.retry_delay().seconds()) +
                    std::chrono::nanoseconds(info.retry_delay().nanos());
    }
  }
}

bool Error::IsTransient() const {
  if (code == grpc::StatusCode::UNAVAILABLE || code == grpc::StatusCode::DEADLINE_EXCEEDED || retry_delay) {
    return true;
  }
  if (!reason.empty()) return false;  // the server's word; the rest gRPC makes up
  return code == grpc::StatusCode::CANCELLED || IsBreak(code, what());
}

void Check(const grpc::Status& status) {
  if (!status.ok()) throw Error(status);
}

}  // namespace lightningstore
