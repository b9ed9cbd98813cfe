#include "losses.h"

#include "pauses.h"

namespace lightningstore {
namespace {

// Minimum time between two summaries of the same kind.
constexpr std::chrono::seconds kQuiet{60};

}  // namespace

Losses& Losses::OfProgram() {
  static auto* const losses = new Losses;  // never destroyed: attempts may end after main
  return *losses;
}

void Losses::Add(std::int64_t count, const std::string& kind, const std::string& why, Time now) {
  const std::lock_guard lock(mutex_);
  total_ += count;
  Kind& lost = kinds_[kind];
  lost.unsaid += count;
  lost.why = why;
  SayIfDue(lost, now, false);
}

void Losses::Summarize(Time now, bool all) {
  const std::lock_guard lock(mutex_);
  for (auto& [name, kind] : kinds_) SayIfDue(kind, now, all);
}

void Losses::SayIfDue(Kind& kind, Time now, bool all) {
  if (kind.unsaid == 0 || !(all || kind.is_new || now - kind.said >= kQuiet)) return;
  Say(std::to_string(kind.unsaid) + " spans dropped, " + std::to_string(total_) + " so far: " + kind.why);
  kind.is_new = false;
  kind.said = now;
  kind.unsaid = 0;
}

}  // namespace lightningstore
