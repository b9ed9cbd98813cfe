#include "channel.h"

#include <grpcpp/alarm.h>
#include <grpcpp/support/client_interceptor.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <stdexcept>
#include <utility>
#include <vector>

namespace lightningstore {
namespace {

using grpc::experimental::ClientInterceptorFactoryInterface;
using grpc::experimental::ClientRpcInfo;
using grpc::experimental::InterceptionHookPoints;
using grpc::experimental::Interceptor;
using grpc::experimental::InterceptorBatchMethods;

constexpr int kKeepaliveMs = 20'000;
constexpr int kKeepaliveTimeoutMs = 10'000;
constexpr char kNamespaceKey[] = "x-lightning-namespace";
constexpr std::size_t kMaxNamespace = 63;
// Parts of gRPC's messages for a connection that was never made, in lower case.
constexpr const char* kUnreached[] = {"failed to connect", "resolving", "resolution", "handshake"};

bool IsAlphanumeric(char mark) { return (mark >= 'a' && mark <= 'z') || (mark >= '0' && mark <= '9'); }

// Adds a namespace to every call that does not name one itself.
class Namespace final : public ClientInterceptorFactoryInterface {
 public:
  explicit Namespace(std::string name) : name_(std::move(name)) {}

  Interceptor* CreateClientInterceptor(ClientRpcInfo*) override { return new Header(name_); }

 private:
  class Header final : public Interceptor {
   public:
    explicit Header(const std::string& name) : name_(name) {}

    void Intercept(InterceptorBatchMethods* methods) override {
      if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
        auto& metadata = *methods->GetSendInitialMetadata();
        if (metadata.count(kNamespaceKey) == 0) metadata.emplace(kNamespaceKey, name_);
      }
      methods->Proceed();
    }

   private:
    const std::string& name_;  // of the factory, which the channel keeps for longer than its calls
  };

  const std::string name_;
};

}  // namespace

void CheckNamespace(const std::string& name) {
  if (name.empty()) return;
  const bool is_valid = name.size() <= kMaxNamespace && IsAlphanumeric(name.front()) &&
                        IsAlphanumeric(name.back()) && std::all_of(name.begin(), name.end(), [](char mark) {
                          return IsAlphanumeric(mark) || mark == '-' || mark == '_' || mark == '.';
                        });
  if (is_valid) return;
  throw std::invalid_argument(
      "the namespace must be 1 to 63 of the characters a-z, 0-9, -, _ and ., with a letter or digit first "
      "and "
      "last, not \"" +
      name + "\"");
}

std::shared_ptr<grpc::Channel> NewChannel(ChannelOptions options) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetMaxSendMessageSize(-1);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // A new channel is a new connection.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 5'000);
  std::vector<std::unique_ptr<ClientInterceptorFactoryInterface>> interceptors;
  if (!options.namespace_name.empty()) {
    interceptors.push_back(std::make_unique<Namespace>(options.namespace_name));
  }
  auto credentials = options.credentials;
  if (credentials == nullptr) credentials = grpc::InsecureChannelCredentials();
  return grpc::experimental::CreateCustomChannelWithInterceptors(options.address, credentials, arguments,
                                                                 std::move(interceptors));
}

}  // namespace lightningstore
