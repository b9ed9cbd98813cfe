// Lost spans, counted and said on stderr.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

namespace lightningstore {

// Says each kind of loss: the first at once, what follows as a summary once a minute at most.
class Losses {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // Those of all attempts of the program: thousands of them may lose spans for one reason.
  static Losses& OfProgram();

  // Counts spans that are lost for a kind of reason, and says so when it is time; `why` is shown.
  void Add(std::int64_t count, const std::string& kind, const std::string& why, Time now);
  // Says what is not said yet: where it is time, or all of it.
  void Summarize(Time now, bool all);

 private:
  struct Kind {
    bool is_new = true;
    Time said;
    std::int64_t unsaid = 0;
    std::string why;
  };
  void SayIfDue(Kind& kind, Time now, bool all);

  std::mutex mutex_;
  std::map<std::string, Kind> kinds_;
  std::int64_t total_ = 0;
};

}  // namespace lightningstore
