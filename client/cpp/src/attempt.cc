#include "lightningstore/attempt.h"

#include <unistd.h>

#include <atomic>
#include <utility>

#include "losses.h"
#include "pauses.h"
#include "text.h"

namespace lightningstore {
namespace {

namespace otlp = opentelemetry::proto;
using std::chrono::milliseconds;

constexpr std::size_t kShownName = 100;
// Maximum time that a span waits to be sent together with others.
constexpr milliseconds kLinger{50};
// A message ends before it exceeds this size, unless a single span does: small enough for every limit.
constexpr std::size_t kMessageBytes = 1 << 20;
// The server's limit for one span.
constexpr std::size_t kSpanBytes = 4 << 20;
// Maximum bytes of spans that wait for a server that is down; further ones are dropped.
constexpr std::size_t kPendingBytes = 64 << 20;
constexpr milliseconds kSendTimeout{60'000};
constexpr milliseconds kLongestSendPause{2'000};
// Time for sending the spans of an attempt that this program abandoned.
constexpr milliseconds kGrace{5'000};
// Number of internal errors after which spans are dropped: the server cannot process them.
constexpr int kMaxDefects = 5;

std::uint64_t Now() {
  const auto since = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(since).count();
}

// Returns whether all `count` spans of a message are rejected for a reason that does not apply to the whole
// message. If fewer are rejected, for example because their ids exist, the others are stored.
bool IsAboutSpan(const v1::IngestResult& result, int count) {
  if (result.rejections().empty() || count < 2) return false;
  const std::int64_t refused = result.rejections(0).span_count();
  if (refused > 0 && refused < count) return false;
  const v1::ErrorReason reason = result.rejections(0).reason();
  return reason != v1::ERROR_REASON_ROLLOUT_NOT_FOUND && reason != v1::ERROR_REASON_ATTEMPT_NOT_FOUND;
}

}  // namespace

Span::Span(Attempt* attempt, otlp::trace::v1::Span span) : attempt_(attempt), span_(std::move(span)) {}

Span::Span(Span&& other) noexcept
    : attempt_(std::exchange(other.attempt_, nullptr)), span_(std::move(other.span_)) {}

otlp::common::v1::AnyValue* Span::Value(const std::string& key) {
  auto* attribute = span_.add_attributes();
  attribute->set_key(key);
  return attribute->mutable_value();
}

Span& Span::Set(const std::string& key, const std::string& value) {
  Value(key)->set_string_value(value);
  return *this;
}

Span& Span::Set(const std::string& key, std::int64_t value) {
  Value(key)->set_int_value(value);
  return *this;
}

Span& Span::Set(const std::string& key, double value) {
  Value(key)->set_double_value(value);
  return *this;
}

void Span::End() {
  Attempt* attempt = std::exchange(attempt_, nullptr);
  if (attempt == nullptr) return;
  span_.set_end_time_unix_nano(std::max(Now(), span_.start_time_unix_nano()));
  attempt->Add(span_);
}

Attempt::Attempt(v1::LightningStoreService::Stub* stub, v1::Rollout rollout, Resources resources)
    : stub_(stub),
      rollout_(std::move(rollout)),
      resources_(std::move(resources)),
      trace_id_(RandomBytes(16)),
      process_(getpid()),
      sender_([this] { Send(); }) {}

Attempt::~Attempt() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    if (sending_ != nullptr) sending_->TryCancel();
    changed_.notify_all();
  }
  sender_.join();
}

v1::AttemptRef Attempt::Ref() const {
  v1::AttemptRef ref;
  ref.set_rollout_id(rollout_.rollout_id());
  ref.set_attempt_id(rollout_.latest_attempt().attempt_id());
  return ref;
}

Span Attempt::StartSpan(const std::string& name, const Span* parent) {
  otlp::trace::v1::Span span;
  span.set_trace_id(trace_id_);
  span.set_span_id(RandomBytes(8));
  if (parent != nullptr) span.set_parent_span_id(parent->span_.span_id());
  span.set_name(name);
  span.set_kind(otlp::trace::v1::Span::SPAN_KIND_INTERNAL);
  span.set_start_time_unix_nano(Now());
  return Span(this, std::move(span));
}

bool Attempt::cancelled() const { return stop_reason().has_value(); }

bool Attempt::WaitUntilCancelled(milliseconds timeout) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, timeout, [this] { return stop_.has_value(); });
}

void Attempt::Check() const {
  if (const auto reason = stop_reason()) throw Cancelled("stopped: " + v1::StopReason_Name(*reason));
}

void Attempt::Cancel(v1::StopReason reason) {
  const std::lock_guard lock(mutex_);
  if (!stop_) stop_ = reason;
  hurried_ = hurried_ || reason == v1::STOP_REASON_UNSPECIFIED;
  changed_.notify_all();
}

std::optional<v1::StopReason> Attempt::stop_reason() const {
  const std::lock_guard lock(mutex_);
  return stop_;
}

std::int64_t Attempt::Flush(milliseconds timeout) {
  std::unique_lock lock(mutex_);
  const std::int64_t all = ended_;
  const auto settled = [&] { return settled_ >= all; };
  flushing_ = true;
  changed_.notify_all();
  if (!changed_.wait_for(lock, timeout, [&] { return settled() || hurried_; }) ||
      !changed_.wait_for(lock, kGrace, settled)) {
    Say(std::to_string(all - settled_) + " spans of " + rollout_.rollout_id() + " were not stored in time");
  }
  flushing_ = false;
  return all;
}

std::int64_t Attempt::dropped_spans() const {
  const std::lock_guard lock(mutex_);
  return dropped_;
}

void Attempt::Add(otlp::trace::v1::Span span) {
  if (getpid() != process_) {
    static std::atomic<bool> said{false};
    if (!said.exchange(true)) Say("spans that end in a forked child of an agent are lost");
    return;
  }
  const std::size_t size = span.ByteSizeLong();
  if (size <= kSpanBytes) MakeValid(&span);  // a span has no ids of text
  const std::lock_guard lock(mutex_);
  ++ended_;
  if (size > kSpanBytes || pending_bytes_ + size > kPendingBytes) {
    ++settled_;
    const std::string name = Clean(span.name(), kShownName);
    if (size > kSpanBytes) {
      Drop(1, "size", std::to_string(size) + " bytes, " + std::to_string(kSpanBytes) + " at most: " + name);
    } else {
      Drop(1, "pending", "the buffer is full: " + name);
    }
    return;
  }
  pending_bytes_ += size;
  pending_.push_back(std::move(span));
  changed_.notify_all();
}

void Attempt::Drop(std::int64_t count, const std::string& kind, const std::string& why) {
  dropped_ += count;
  Losses::OfProgram().Add(count, kind, rollout_.rollout_id() + ": " + why, std::chrono::steady_clock::now());
}

void Attempt::Send() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return closing_ || !pending_.empty(); });
    changed_.wait_for(lock, kLinger,
                      [this] { return closing_ || flushing_ || pending_bytes_ >= kMessageBytes; });
    if (closing_) return;
    std::vector<v1::IngestSpansRequest> messages{Cut()};
    const int count = messages[0].batch().spans_size();
    auto result = Deliver(messages, lock);
    if (!closing_ && result && IsAboutSpan(*result, count)) {
      // An invalid span fails its whole message, although the others are valid.
      messages = Singly(std::move(messages[0]));
      result = Deliver(messages, lock);
    }
    if (closing_) return;
    if (result && result->rejected_count() > 0) {
      const bool has_reason = !result->rejections().empty();
      Drop(result->rejected_count(),
           has_reason ? v1::ErrorReason_Name(result->rejections(0).reason()) : "refused",
           "rejected by the server, " + (has_reason ? result->rejections(0).message() : "without a reason"));
    }
    settled_ += count;
    changed_.notify_all();
  }
}

v1::IngestSpansRequest Attempt::NewMessage() const {
  v1::IngestSpansRequest message;
  v1::SpanBatch& batch = *message.mutable_batch();
  batch.set_rollout_id(rollout_.rollout_id());
  batch.set_attempt_id(rollout_.latest_attempt().attempt_id());
  batch.mutable_scope()->set_name("lightningstore/cpp");
  return message;
}

v1::IngestSpansRequest Attempt::Cut() {
  v1::IngestSpansRequest message = NewMessage();
  std::size_t count = 0, bytes = 0;
  while (count < pending_.size()) {
    const std::size_t size = pending_[count].ByteSizeLong();
    if (count > 0 && bytes + size > kMessageBytes) break;
    bytes += size;
    message.mutable_batch()->add_spans()->Swap(&pending_[count++]);
  }
  pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(count));
  pending_bytes_ -= bytes;
  return message;
}

std::vector<v1::IngestSpansRequest> Attempt::Singly(v1::IngestSpansRequest message) const {
  std::vector<v1::IngestSpansRequest> messages;
  for (otlp::trace::v1::Span& span : *message.mutable_batch()->mutable_spans()) {
    messages.push_back(NewMessage());
    messages.back().mutable_batch()->add_spans()->Swap(&span);
  }
  return messages;
}

std::optional<v1::IngestResult> Attempt::Deliver(const std::vector<v1::IngestSpansRequest>& messages,
                                                 std::unique_lock<std::mutex>& lock) {
  Pauses pauses(kLongestSendPause);
  for (int defects = 0;;) {
    v1::IngestSpansResponse answer;
    const grpc::Status status = TryOnce(messages, &answer, lock);
    if (status.ok()) return answer.result();
    const Error failure(status);
    const bool is_defect = failure.code == grpc::StatusCode::INTERNAL;
    if (!failure.IsTransient() && (!is_defect || ++defects >= kMaxDefects)) {
      std::int64_t count = 0;
      for (const auto& message : messages) count += message.batch().spans_size();
      Drop(count, "not sent", failure.what());
      return std::nullopt;
    }
    if (changed_.wait_for(lock, pauses.Next(failure), [this] { return closing_; })) return std::nullopt;
  }
}

grpc::Status Attempt::TryOnce(const std::vector<v1::IngestSpansRequest>& messages,
                              v1::IngestSpansResponse* answer, std::unique_lock<std::mutex>& lock) {
  grpc::ClientContext context;
  SetTimeout(context, kSendTimeout);
  sending_ = &context;
  lock.unlock();
  const auto writer = stub_->IngestSpans(&context, answer);
  for (const auto& message : messages) {
    if (!writer->Write(message)) break;  // Finish says why
  }
  writer->WritesDone();
  const grpc::Status status = writer->Finish();
  for (const v1::Stop& stop : answer->result().stops()) Cancel(stop.reason());
  lock.lock();
  sending_ = nullptr;
  return status;
}

}  // namespace lightningstore
