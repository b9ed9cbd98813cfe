// What an agent works on, and the spans that it leaves.
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

// Thrown by an agent whose failure another attempt would only repeat.
class NonRetryable : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Thrown by Attempt::Check in an attempt that is to stop.
class Cancelled : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A piece of work of an attempt, from its making to its end. To be used by one thread.
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
  // Stops the clock and hands the span over; what is set later is lost.
  void End();
  // The OTLP message itself, for all else that a span may have.
  opentelemetry::proto::trace::v1::Span& otlp() { return span_; }

 private:
  friend class Attempt;
  Span(Attempt* attempt, opentelemetry::proto::trace::v1::Span span);
  opentelemetry::proto::common::v1::AnyValue* Value(const std::string& key);

  Attempt* attempt_;
  opentelemetry::proto::trace::v1::Span span_;
};

// A claimed rollout. A thread of its own sends the spans as they end. May be used by several threads, but not
// by forked children, which have no such thread: spans that end there are lost, and that is said on stderr.
class Attempt {
 public:
  // Starts to send. `stub` has to outlive it.
  Attempt(v1::LightningStoreService::Stub* stub, v1::Rollout rollout, Resources resources);
  // Drops the spans that are not sent yet.
  ~Attempt();
  Attempt(const Attempt&) = delete;
  Attempt& operator=(const Attempt&) = delete;

  const v1::Rollout& rollout() const { return rollout_; }
  // The JSON text of the input.
  const std::string& input_json() const { return rollout_.input_json(); }
  // By name. The endpoint of a ProxyLLM is that of this attempt.
  const Resources& resources() const { return resources_; }
  v1::AttemptRef Ref() const;

  // Begins a span, the child of `parent` if there is one.
  Span StartSpan(const std::string& name, const Span* parent = nullptr);
  // Stores a reward, as a span `agentlightning.annotation`. Throws std::invalid_argument, and stores nothing,
  // for a number that is not finite.
  void EmitReward(double value);
  // Does the same for several dimensions, in one span. The first is the reward that counts where one number
  // is wanted. Throws std::invalid_argument also for no dimension, an empty name and one that is given twice.
  void EmitReward(const std::vector<NamedReward>& dimensions);

  // Tells whether to stop: the rollout was cancelled or finished, another attempt took over, or the runner
  // was told to end.
  bool cancelled() const;
  // Waits until that is so, at most for `timeout`; returns whether it is.
  bool WaitUntilCancelled(std::chrono::milliseconds timeout) const;
  // Throws Cancelled if it is.
  void Check() const;

  // Tells it to stop; unspecified: by this program.
  void Cancel(v1::StopReason reason);
  // Why it is to stop; nothing while it goes on.
  std::optional<v1::StopReason> stop_reason() const;
  // Waits until all spans so far are stored or dropped, or the time is over; returns how many ended so far.
  std::int64_t Flush(std::chrono::milliseconds timeout);
  // Number of spans lost so far: larger than the server takes, too many while it is away, or refused.
  std::int64_t dropped_spans() const;

 private:
  friend class Span;
  void Add(opentelemetry::proto::trace::v1::Span span);
  // Counts lost spans and says so. With the lock, as all that follows.
  void Drop(std::int64_t count, const std::string& kind, const std::string& why);
  void Send();
  // Returns a message of this attempt without spans.
  v1::IngestSpansRequest NewMessage() const;
  // Takes the oldest spans, as many as go into one message.
  v1::IngestSpansRequest Cut();
  // Takes a message apart, into one for each of its spans.
  std::vector<v1::IngestSpansRequest> Singly(v1::IngestSpansRequest message) const;
  // Sends messages over one stream until it is answered; nothing if they are given up.
  std::optional<v1::IngestResult> Deliver(const std::vector<v1::IngestSpansRequest>& messages,
                                          std::unique_lock<std::mutex>& lock);
  // Makes one try, without the lock meanwhile.
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
