#include "finishes.h"

#include <algorithm>
#include <set>

namespace lightningstore {
namespace {

using std::chrono::milliseconds;

// Time after the start of an agent until its rollout is watched. A finish before that is noticed then.
constexpr milliseconds kDelay{500};
constexpr milliseconds kLongestWatchPause{5'000};

}  // namespace

// One call, from Start to the status.
class Finishes::Stream final : public grpc::ClientReadReactor<v1::WaitForRolloutsResponse> {
 public:
  Stream(Finishes* owner, v1::WaitForRolloutsRequest request) : owner_(owner), request_(std::move(request)) {}

  void Start() {
    owner_->stub_->async()->WaitForRollouts(&context_, &request_, this);
    StartRead(&news_);
    StartCall();
  }
  void Cancel() { context_.TryCancel(); }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    for (const auto& rollout : news_.rollouts()) owner_->Note(rollout.rollout_id());
    {
      const std::lock_guard lock(owner_->mutex_);
      owner_->pauses_ = Pauses(kLongestWatchPause);
    }
    StartRead(&news_);
  }
  void OnDone(const grpc::Status& ended) override {
    const std::lock_guard lock(owner_->mutex_);
    status = ended;
    owner_->changed_.notify_all();
  }

  // Of the call, once it has ended. Guarded by the owner's lock.
  std::optional<grpc::Status> status;

 private:
  Finishes* const owner_;
  const v1::WaitForRolloutsRequest request_;
  grpc::ClientContext context_;
  v1::WaitForRolloutsResponse news_;
};

Finishes::Watch::Watch(Finishes* finishes, const v1::AttemptRef& ref)
    : finishes_(finishes), key_(ref.rollout_id(), ref.attempt_id()) {
  const std::lock_guard lock(finishes_->mutex_);
  finishes_->attempts_[key_] = Clock::now() + kDelay;
  if (finishes_->look_) return;
  finishes_->PlanLook();
  finishes_->changed_.notify_all();
}

Finishes::Watch::~Watch() {
  const std::lock_guard lock(finishes_->mutex_);
  const auto found = finishes_->attempts_.find(key_);
  if (found == finishes_->attempts_.end()) return;
  if (!found->second && --finishes_->covered_ == 0) finishes_->changed_.notify_all();
  finishes_->attempts_.erase(found);
}

Finishes::Finishes(v1::LightningStoreService::Stub* stub, std::function<void()> on_finish, milliseconds pause)
    : stub_(stub),
      on_finish_(std::move(on_finish)),
      pause_(pause),
      pauses_(kLongestWatchPause),
      thread_([this] { Run(); }) {}

Finishes::~Finishes() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

void Finishes::Run() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    if (stream_ != nullptr && stream_->status) {
      const grpc::Status status = *stream_->status;
      stream_.reset();
      if (covered_ > 0) Postpone(status);
    } else if (stream_ != nullptr && covered_ == 0) {
      Close(lock);
    } else if (look_ && *look_ <= Clock::now()) {
      PlanLook();
      if (look_ && *look_ <= Clock::now()) Open(lock);
    } else if (look_) {
      changed_.wait_until(lock, *look_);
    } else {
      changed_.wait(lock);
    }
  }
  Close(lock);
}

void Finishes::Open(std::unique_lock<std::mutex>& lock) {
  Close(lock);
  std::set<std::string> ids;
  for (auto& [key, due] : attempts_) {
    due.reset();
    ids.insert(key.first);
  }
  covered_ = static_cast<int>(attempts_.size());
  look_.reset();
  if (ids.empty()) return;
  v1::WaitForRolloutsRequest request;
  request.mutable_rollout_ids()->Add(ids.begin(), ids.end());
  stream_ = std::make_unique<Stream>(this, std::move(request));
  lock.unlock();  // gRPC may call the stream back in this thread, here and below
  stream_->Start();
  lock.lock();
}

void Finishes::Close(std::unique_lock<std::mutex>& lock) {
  if (stream_ == nullptr) return;
  lock.unlock();
  stream_->Cancel();
  lock.lock();
  changed_.wait(lock, [this] { return stream_->status.has_value(); });
  stream_.reset();
}

void Finishes::Postpone(const grpc::Status& status) {
  const Error failure(status);
  const bool may_pass = status.ok() || failure.IsTransient();  // OK: it has ended too early
  const auto later = Clock::now() + (may_pass ? pauses_.Next(failure) : pause_);
  for (auto& [key, due] : attempts_) due = later;
  covered_ = 0;
  look_ = later;
}

void Finishes::Note(const std::string& rollout_id) {
  bool is_watched = false;
  {
    const std::lock_guard lock(mutex_);
    const auto first = attempts_.lower_bound({rollout_id, ""});
    auto last = first;
    for (; last != attempts_.end() && last->first.first == rollout_id; ++last) {
      is_watched = true;
      if (!last->second) --covered_;
    }
    attempts_.erase(first, last);
    if (is_watched && covered_ == 0) changed_.notify_all();
  }
  if (is_watched) on_finish_();
}

void Finishes::PlanLook() {
  look_.reset();
  for (const auto& [key, due] : attempts_) {
    if (due && (!look_ || *due < *look_)) look_ = due;
  }
}

}  // namespace lightningstore
