// What happens in other threads, for tests to wait for.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <utility>

namespace lightningstore::test {

// How long a test waits for what must happen.
constexpr std::chrono::seconds kPatience{30};

// Events in their order.
template <typename Event>
class Events {
 public:
  void Put(Event event) {
    const std::lock_guard lock(mutex_);
    events_.push_back(std::move(event));
    changed_.notify_all();
  }
  // Waits for the next one, which must come.
  Event Next() {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, kPatience, [this] { return !events_.empty(); })) {
      throw std::runtime_error("no event in time");
    }
    Event event = std::move(events_.front());
    events_.pop_front();
    return event;
  }
  bool IsEmpty() const {
    const std::lock_guard lock(mutex_);
    return events_.empty();
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Event> events_;
};

}  // namespace lightningstore::test
