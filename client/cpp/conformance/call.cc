#include "call.h"

#include <google/protobuf/dynamic_message.h>
#include <google/protobuf/util/json_util.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/proto_buffer_writer.h>

#include <stdexcept>
#include <utility>
#include <vector>

#include "lightningstore/v1/namespace.grpc.pb.h"

namespace conformance {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::Message;
using google::protobuf::MethodDescriptor;
using google::protobuf::ServiceDescriptor;
using nlohmann::json;

constexpr double kTimeoutSeconds = 30;
// Wait for the end of a call that failed before it was accepted: it arrives with the initial metadata, or not
// at all.
constexpr std::chrono::milliseconds kAtOnce{50};

// Returns the method of a name, which no two services of the contract share; null if there is none.
const MethodDescriptor* FindMethod(const std::string& name) {
  for (const char* full_name : {lightningstore::v1::LightningStoreService::service_full_name(),
                                lightningstore::v1::NamespaceService::service_full_name()}) {
    const ServiceDescriptor* service =
        google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(full_name);
    if (service == nullptr) throw std::logic_error(std::string(full_name) + " is not linked in");
    const MethodDescriptor* method = service->FindMethodByName(name);
    if (method != nullptr) return method;
  }
  return nullptr;
}

std::unique_ptr<Message> NewMessage(const Descriptor* type) {
  return std::unique_ptr<Message>(
      google::protobuf::MessageFactory::generated_factory()->GetPrototype(type)->New());
}

grpc::ByteBuffer Parse(const Descriptor* type, const json& request) {
  const auto message = NewMessage(type);
  const auto status = google::protobuf::util::JsonStringToMessage(request.dump(), message.get());
  if (!status.ok()) throw std::invalid_argument(type->name() + ": " + status.ToString());
  grpc::ByteBuffer buffer;
  bool own = false;
  grpc::GenericSerialize<grpc::ProtoBufferWriter, Message>(*message, &buffer, &own);
  return buffer;
}

json Print(const Descriptor* type, grpc::ByteBuffer& buffer) {
  const auto message = NewMessage(type);
  if (!grpc::GenericDeserialize<grpc::ProtoBufferReader, Message>(&buffer, message.get()).ok()) {
    throw std::runtime_error("the answer is no " + type->name());
  }
  std::string text;
  const auto status = google::protobuf::util::MessageToJsonString(*message, &text);
  if (!status.ok()) throw std::runtime_error(status.ToString());
  return json::parse(text);
}

const char* CodeName(grpc::StatusCode code) {
  static constexpr const char* kNames[] = {
      "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
      "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
      "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
      "DATA_LOSS", "UNAUTHENTICATED"};
  return code >= 0 && code < static_cast<int>(std::size(kNames)) ? kNames[code] : "UNKNOWN";
}

json Describe(const grpc::Status& status) {
  const lightningstore::Error error(status);
  json found = {{"code", CodeName(error.code)}, {"message", error.what()}};
  if (!error.reason.empty()) {
    found.update({{"reason", error.reason}, {"domain", error.domain}, {"metadata", error.metadata}});
  }
  if (!error.fields.empty()) found["fields"] = error.fields;
  if (error.retry_delay) found["retry_delay"] = std::chrono::duration<double>(*error.retry_delay).count();
  return found;
}

// One call with its own completion queue, executed step by step.
class Exchange {
 public:
  Exchange(const std::shared_ptr<grpc::Channel>& channel, grpc::ClientContext* context,
           const MethodDescriptor& method)
      : stub_(channel),
        stream_(
            stub_.PrepareCall(context, "/" + method.service()->full_name() + "/" + method.name(), &queue_)) {}

  ~Exchange() {
    queue_.Shutdown();
    void* tag;
    bool ok;
    while (queue_.Next(&tag, &ok)) {
    }
  }

  bool Start() {
    stream_->StartCall(nullptr);
    return Wait();
  }
  bool Write(const grpc::ByteBuffer& message) {
    stream_->Write(message, nullptr);
    return Wait();
  }
  bool WritesDone() {
    stream_->WritesDone(nullptr);
    return Wait();
  }
  bool ReadInitialMetadata() {
    stream_->ReadInitialMetadata(nullptr);
    return Wait();
  }
  void BeginRead(grpc::ByteBuffer* message) { stream_->Read(message, nullptr); }
  bool Wait() {
    void* tag;
    bool ok = false;
    return queue_.Next(&tag, &ok) && ok;
  }
  // Waits a moment. Returns false if nothing happened; otherwise sets `*ok`.
  bool WaitBriefly(bool* ok) {
    void* tag;
    return queue_.AsyncNext(&tag, ok, std::chrono::system_clock::now() + kAtOnce) ==
           grpc::CompletionQueue::GOT_EVENT;
  }
  grpc::Status Finish() {
    grpc::Status status;
    stream_->Finish(&status, nullptr);
    Wait();
    return status;
  }

 private:
  grpc::CompletionQueue queue_;
  grpc::GenericStub stub_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
};

// Sends all requests. If that fails, the status says why.
void SendAll(Exchange& exchange, const std::vector<grpc::ByteBuffer>& requests) {
  if (!exchange.Start()) return;
  for (const grpc::ByteBuffer& request : requests) {
    if (!exchange.Write(request)) return;
  }
  exchange.WritesDone();
}

}  // namespace

bool IsMethod(const std::string& name) { return FindMethod(name) != nullptr; }

json MakeCall(const std::shared_ptr<grpc::Channel>& channel, grpc::ClientContext& context,
              const json& command, const std::function<void()>& started) {
  const MethodDescriptor& method = *FindMethod(command.at("method").get<std::string>());
  std::vector<grpc::ByteBuffer> requests;
  for (const json& request : command.at("requests")) requests.push_back(Parse(method.input_type(), request));
  if (!method.client_streaming() && requests.size() != 1) {
    throw std::invalid_argument(method.name() + " takes one request, not " + std::to_string(requests.size()));
  }
  const std::chrono::duration<double> timeout(command.value("timeout", kTimeoutSeconds));
  lightningstore::SetTimeout(context, std::chrono::duration_cast<std::chrono::milliseconds>(timeout));
  const json metadata = command.value("metadata", json::object());
  for (const auto& [key, value] : metadata.items()) {
    context.AddMetadata(key, value.get<std::string>());
  }
  Exchange exchange(channel, &context, method);
  SendAll(exchange, requests);
  exchange.ReadInitialMetadata();
  json responses = json::array();
  grpc::ByteBuffer message;
  exchange.BeginRead(&message);
  bool more = false;
  const bool at_once = exchange.WaitBriefly(&more);
  if (method.server_streaming() && (more || !at_once)) started();
  if (!at_once) more = exchange.Wait();
  while (more) {
    responses.push_back(Print(method.output_type(), message));
    exchange.BeginRead(&message);
    more = exchange.Wait();
  }
  const grpc::Status status = exchange.Finish();
  json answer = {{"responses", responses}};
  if (!status.ok()) {
    answer["error"] = Describe(status);
  } else if (method.server_streaming() && at_once && responses.empty()) {
    started();  // a stream of nothing
  }
  return answer;
}

}  // namespace conformance
