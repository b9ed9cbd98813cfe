// Tells a runner within a second that a rollout it works on has finished: cancelled, for instance.
//
// Heartbeats say which attempts to stop, but are sent every 10 seconds. More of them would cost the server a
// call per second for each worker. So one WaitForRollouts stream, on which nothing is sent until something
// happens, covers the rollouts that the runner works on. Rollouts shorter than the delay never cause a call.
// A stream is replaced when a rollout that it does not cover gets older than the delay, and then covers all,
// so a runner opens at most one stream per delay.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "lightningstore/client.h"
#include "pauses.h"

namespace lightningstore {

// Watches the rollouts of a runner. Thread-safe.
class Finishes {
 public:
  // Time without a stream after one has failed with an error that is not retryable. Heartbeats still say
  // what to stop.
  static constexpr std::chrono::milliseconds kPause{10'000};

  // Starts the watching thread. `on_finish` is called, in another thread, when a rollout has finished that is
  // still watched. `stub` must outlive this.
  Finishes(v1::LightningStoreService::Stub* stub, std::function<void()> on_finish,
           std::chrono::milliseconds pause = kPause);
  // Ends the stream.
  ~Finishes();
  Finishes(const Finishes&) = delete;
  Finishes& operator=(const Finishes&) = delete;

  // Watches an attempt for its lifetime, except for the delay.
  class Watch {
   public:
    Watch(Finishes* finishes, const v1::AttemptRef& ref);
    ~Watch();
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;

   private:
    Finishes* const finishes_;
    const std::pair<std::string, std::string> key_;
  };

 private:
  using Clock = std::chrono::steady_clock;
  class Stream;

  void Run();
  // Reports the finish of a rollout, once, unless no attempt at it is watched any more.
  void Note(const std::string& rollout_id);
  // The caller of the functions below holds the lock.
  void Open(std::unique_lock<std::mutex>& lock);
  void Close(std::unique_lock<std::mutex>& lock);
  // Opens no stream until the pause after the end of one is over.
  void Postpone(const grpc::Status& status);
  // Sets the time of the next look to that of the attempt that has waited longest for a stream.
  void PlanLook();

  v1::LightningStoreService::Stub* const stub_;
  const std::function<void()> on_finish_;
  const std::chrono::milliseconds pause_;

  std::mutex mutex_;
  std::condition_variable changed_;
  // By rollout and attempt: when each is old enough to be watched; nullopt: the stream covers it.
  std::map<std::pair<std::string, std::string>, std::optional<Clock::time_point>> attempts_;
  int covered_ = 0;                        // attempts
  std::optional<Clock::time_point> look_;  // for attempts to cover
  Pauses pauses_;
  bool stopping_ = false;
  std::unique_ptr<Stream> stream_;  // used by the thread alone
  std::thread thread_;              // the last: it uses all others
};

}  // namespace lightningstore
