// Counts lost spans and reports them on stderr.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

namespace lightningstore {

// Reports losses by kind: the first at once, later ones in a summary, at most one per minute.
class Losses {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // The losses of all attempts of the program, because thousands of attempts may lose spans for one reason.
  static Losses& OfProgram();

  // Counts lost spans of a kind and reports them when it is time; `why` is printed.
  void Add(std::int64_t count, const std::string& kind, const std::string& why, Time now);
  // Reports what has not been reported: the summaries that are due, or all of them.
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
