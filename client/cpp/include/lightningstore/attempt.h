// The attempt that an agent works on, and its spans.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "lightningstore/client.h"
#include "lightningstore/reward.h"

namespace lightningstore {

using Resources = std::map<std::string, v1::Resource>;

class Attempt;

// Thrown by an agent for a failure that another attempt cannot avoid.
class NonRetryable : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Thrown by Attempt::Check if the attempt must stop.
class Cancelled : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A span of an attempt, from its construction to its end. Not thread-safe.
class Span {
 public:
  Span(Span&& other) noexcept;
  ~Span() { End(); }
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;

  Span& Set(const std::string& key, const std::string& value);
  Span& Set(const std::string& key, const char* value) { return Set(key, std::string(value)); }
  Span& Set(const std::string& key, std::int64_t value);
  Span& Set(const std::string& key, double value);
  // Sets the end time and queues the span; later changes are lost.
  void End();
  // The OTLP message, for all other fields of a span.
  opentelemetry::proto::trace::v1::Span& otlp() { return span_; }

 private:
  friend class Attempt;
  Span(Attempt* attempt, opentelemetry::proto::trace::v1::Span span);
  opentelemetry::proto::common::v1::AnyValue* Value(const std::string& key);

  Attempt* attempt_;
  opentelemetry::proto::trace::v1::Span span_;
};

// A claimed rollout. A separate thread sends the spans as they end. Thread-safe, but not usable in forked
// children, which do not have that thread: spans that end there are lost, with a message on stderr.
class Attempt {
 public:
  // Starts the sending thread. `stub` must outlive the attempt.
  Attempt(v1::LightningStoreService::Stub* stub, v1::Rollout rollout, Resources resources);
  // Drops the spans that have not been sent.
  ~Attempt();
  Attempt(const Attempt&) = delete;
  Attempt& operator=(const Attempt&) = delete;

  const v1::Rollout& rollout() const { return rollout_; }
  // The JSON text of the input.
  const std::string& input_json() const { return rollout_.input_json(); }
  // The resources by name. A ProxyLLM has the URL of this attempt.
  const Resources& resources() const { return resources_; }
  v1::AttemptRef Ref() const;

  // Starts a span, as a child of `parent` if it is not null.
  Span StartSpan(const std::string& name, const Span* parent = nullptr);
  // Records a reward as a span `agentlightning.annotation`. Throws std::invalid_argument, and records
  // nothing, for a number that is not finite.
  void EmitReward(double value);
  // Records a reward with several dimensions in one span. The first is the primary dimension. Throws
  // std::invalid_argument also for an empty list, an empty name and a duplicate name.
  void EmitReward(const std::vector<NamedReward>& dimensions);

  // Returns whether to stop: the rollout was cancelled or finished, another attempt has replaced this one, or
  // the runner is stopping.
  bool cancelled() const;
  // Waits until the attempt must stop, at most for `timeout`; returns whether it must.
  bool WaitUntilCancelled(std::chrono::milliseconds timeout) const;
  // Throws Cancelled if the attempt must stop.
  void Check() const;

  // Requests the attempt to stop; unspecified means by this program.
  void Cancel(v1::StopReason reason);
  // Returns why the attempt must stop; nullopt while it continues.
  std::optional<v1::StopReason> stop_reason() const;
  // Waits until all spans so far are stored or dropped, or the time is over; returns how many have ended so
  // far.
  std::int64_t Flush(std::chrono::milliseconds timeout);
  // Returns the number of spans lost so far: too large, beyond the buffer, or rejected.
  std::int64_t dropped_spans() const;

 private:
  friend class Span;
  void Add(opentelemetry::proto::trace::v1::Span span);
  // Counts lost spans and reports them. The caller holds the lock, as for all functions below.
  void Drop(std::int64_t count, const std::string& kind, const std::string& why);
  void Send();
  // Returns a message of this attempt without spans.
  v1::IngestSpansRequest NewMessage() const;
  // Removes the oldest spans from the queue, as many as fit into one message.
  v1::IngestSpansRequest Cut();
  // Splits a message into one message per span.
  std::vector<v1::IngestSpansRequest> Singly(v1::IngestSpansRequest message) const;
  // Sends messages over one stream until it is answered; nullopt if they are dropped.
  std::optional<v1::IngestResult> Deliver(const std::vector<v1::IngestSpansRequest>& messages,
                                          std::unique_lock<std::mutex>& lock);
  // Makes one try, and releases the lock meanwhile.
  grpc::Status TryOnce(const std::vector<v1::IngestSpansRequest>& messages, v1::IngestSpansResponse* answer,
                       std::unique_lock<std::mutex>& lock);

  v1::LightningStoreService::Stub* const stub_;
  const v1::Rollout rollout_;
  const Resources resources_;
  const std::string trace_id_;
  const pid_t process_;

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::vector<opentelemetry::proto::trace::v1::Span> pending_;
  std::size_t pending_bytes_ = 0;
  std::int64_t ended_ = 0;    // spans
  std::int64_t settled_ = 0;  // of these stored or dropped
  std::int64_t dropped_ = 0;
  bool flushing_ = false;
  bool closing_ = false;
  bool hurried_ = false;  // given up by this program: a server that is away is waited for no longer
  std::optional<v1::StopReason> stop_;
  grpc::ClientContext* sending_ = nullptr;
  std::thread sender_;  // the last: it uses all others
};

}  // namespace lightningstore
