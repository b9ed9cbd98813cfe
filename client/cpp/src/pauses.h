// Pauses between tries, and messages on stderr.
#pragma once

#include <algorithm>
#include <chrono>
#include <iostream>
#include <random>
#include <string>

#include "lightningstore/client.h"

namespace lightningstore {

class Pauses {
 public:
  explicit Pauses(std::chrono::milliseconds longest) : longest_(longest) {}

  // Returns the pause after a failure: doubling, with jitter, at least the delay that the server requested.
  std::chrono::milliseconds Next(const Error& failure) {
    thread_local std::minstd_rand dice{std::random_device{}()};
    const std::chrono::milliseconds pause{
        std::uniform_int_distribution<std::int64_t>(next_.count() / 2, next_.count())(dice)};
    next_ = std::min(next_ * 2, longest_);
    if (!failure.retry_delay) return pause;
    return std::max(pause, std::chrono::ceil<std::chrono::milliseconds>(*failure.retry_delay));
  }

 private:
  std::chrono::milliseconds next_{100};
  std::chrono::milliseconds longest_;
};

inline void Say(const std::string& words) { std::cerr << "lightningstore: " + words + "\n"; }

}  // namespace lightningstore
