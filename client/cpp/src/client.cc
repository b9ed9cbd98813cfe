#include "lightningstore/client.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <system_error>
#include <utility>

#include "channel.h"
#include "pauses.h"
#include "status_details.pb.h"

namespace lightningstore {
namespace {

constexpr char kDefaultAddress[] = "127.0.0.1:4747";

// Returns a text, else that of an environment variable, else a default.
std::string FirstOf(const std::string& text, const char* variable, const char* otherwise) {
  if (!text.empty()) return text;
  const char* named = std::getenv(variable);
  return named != nullptr && *named != '\0' ? named : otherwise;
}

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
                                       std::shared_ptr<grpc::ChannelCredentials> credentials,
                                       std::string namespace_name) {
  ChannelOptions options;
  options.address = FirstOf(address, "LIGHTNINGSTORE_ADDRESS", kDefaultAddress);
  options.credentials = std::move(credentials);
  options.namespace_name = FirstOf(namespace_name, "LIGHTNINGSTORE_NAMESPACE", "");
  CheckNamespace(options.namespace_name);
  options.warn = Say;
  return NewChannel(std::move(options));
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
