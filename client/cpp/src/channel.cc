#include "channel.h"

#include <grpcpp/alarm.h>
#include <grpcpp/support/client_interceptor.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <iterator>
#include <mutex>
#include <sstream>
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

// Whether a connection of the channel was made. Calls to a server that is down may be retried for long, so
// that programs can start in any order; a wrong address would then look like a call that hangs.
class Contact {
 public:
  explicit Contact(const ChannelOptions& options) : address_(options.address), warn_(options.warn) {}

  void SetChannel(const std::shared_ptr<grpc::Channel>& channel) { channel_ = channel; }

  // Returns whether there was a connection, now or at an earlier call of this function.
  bool IsMade() {
    if (made_) return true;
    const auto channel = channel_.lock();
    if (channel != nullptr && channel->GetState(false) == GRPC_CHANNEL_READY) made_ = true;
    return made_;
  }
  void Make() { made_ = true; }

  void Report(std::chrono::milliseconds waited) {
    if (IsMade() || channel_.expired() || !warn_) return;
    std::ostringstream words;
    words << "no server has answered at " << address_ << " for "
          << std::chrono::duration<double>(waited).count() << " s: is `lightningstore serve` running there?";
    warn_(words.str());
  }

  // Adds the hint to the status of a call if no connection was made.
  void Explain(grpc::Status* status) const {
    if (status->error_code() != grpc::StatusCode::UNAVAILABLE || !IsUnreached(status->error_message()))
      return;
    *status = grpc::Status(status->error_code(),
                           "no server answers at " + address_ +
                               ": is `lightningstore serve` running there? gRPC: " + status->error_message(),
                           status->error_details());
  }

 private:
  static bool IsUnreached(std::string message) {
    for (char& mark : message) mark = static_cast<char>(std::tolower(static_cast<unsigned char>(mark)));
    return std::any_of(std::begin(kUnreached), std::end(kUnreached),
                       [&](const char* part) { return message.find(part) != std::string::npos; });
  }

  const std::string address_;
  const std::function<void(const std::string&)> warn_;
  std::weak_ptr<grpc::Channel> channel_;
  std::atomic<bool> made_{false};
};

// Observes calls until a connection was made, and times the first one.
class Observer final : public ClientInterceptorFactoryInterface {
 public:
  Observer(std::shared_ptr<Contact> contact, std::chrono::milliseconds limit)
      : contact_(std::move(contact)), limit_(limit) {}

  Interceptor* CreateClientInterceptor(ClientRpcInfo*) override {
    if (over_) return nullptr;
    std::call_once(timed_, [this] {
      // The alarm ends with the channel, and calls back then too.
      alarm_.Set(std::chrono::system_clock::now() + limit_,
                 [contact = std::weak_ptr(contact_), limit = limit_](bool expired) {
                   const auto kept = contact.lock();
                   if (expired && kept != nullptr) kept->Report(limit);
                 });
    });
    return new Observation(this);
  }

 private:
  class Observation final : public Interceptor {
   public:
    explicit Observation(Observer* observer) : observer_(observer) {}

    void Intercept(InterceptorBatchMethods* methods) override {
      Contact& contact = *observer_->contact_;
      if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_MESSAGE) &&
          methods->GetRecvMessage() != nullptr) {
        contact.Make();
      }
      if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::POST_RECV_STATUS)) {
        grpc::Status* status = methods->GetRecvStatus();
        if (status->ok()) contact.Make();
        if (!contact.IsMade()) contact.Explain(status);
      }
      if (contact.IsMade()) observer_->over_ = true;
      methods->Proceed();
    }

   private:
    Observer* const observer_;  // which the channel keeps for longer than its calls
  };

  const std::shared_ptr<Contact> contact_;
  const std::chrono::milliseconds limit_;
  std::atomic<bool> over_{false};
  std::once_flag timed_;
  grpc::Alarm alarm_;
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
  const auto contact = std::make_shared<Contact>(options);
  interceptors.push_back(std::make_unique<Observer>(contact, options.first_answer));
  auto credentials = options.credentials;
  if (credentials == nullptr) credentials = grpc::InsecureChannelCredentials();
  auto channel = grpc::experimental::CreateCustomChannelWithInterceptors(options.address, credentials,
                                                                         arguments, std::move(interceptors));
  contact->SetChannel(channel);
  return channel;
}

}  // namespace lightningstore
