// Runner::RunWithSignals.
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <stdexcept>
#include <thread>

#include "lightningstore/runner.h"

namespace lightningstore {
namespace {

// The pipe that the handler writes to; a signal handler may do little else.
std::atomic<int> signals{-1};

void Take(int) {
  const char one = 1;
  if (write(signals, &one, 1) < 0) return;  // full: there are many already
}

class Handler {
 public:
  explicit Handler(int number) : number_(number) {
    struct sigaction action {};
    action.sa_handler = Take;
    action.sa_flags = SA_RESTART;
    sigaction(number, &action, &before_);
  }
  ~Handler() { sigaction(number_, &before_, nullptr); }
  Handler(const Handler&) = delete;
  Handler& operator=(const Handler&) = delete;

 private:
  const int number_;
  struct sigaction before_ {};
};

}  // namespace

void Runner::RunWithSignals() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error("no pipe for signals");
  signals = ends[1];
  std::thread taker([this, from = ends[0]] {
    char what;
    while (read(from, &what, 1) == 1 && what == 1) Stop();
  });
  const auto finish = [&] {
    const char end = 0;
    if (write(ends[1], &end, 1) == 1) taker.join();
    close(ends[0]);
    close(ends[1]);
  };
  try {
    const Handler interrupt(SIGINT), terminate(SIGTERM);
    Run();
  } catch (...) {
    finish();
    throw;
  }
  finish();
}

}  // namespace lightningstore
