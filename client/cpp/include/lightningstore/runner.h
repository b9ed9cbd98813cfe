// The Runner: claims rollouts, calls a function for each, and reports how it ended.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "lightningstore/attempt.h"
#include "lightningstore/client.h"

namespace lightningstore {

// Works on one attempt and returns the reward, or nothing for none.
//
// Returning is success. An exception, of whatever type, is a failure with its type and message, retried as
// the rollout's config says; a NonRetryable, also a nested one, is not. When the attempt is cancelled or
// superseded, `cancelled()` tells so; whatever the function then returns or throws, the attempt is not
// reported as succeeded.
using Agent = std::function<std::optional<double>(Attempt& attempt)>;

struct RunnerOptions {
  // What the runner is called. Empty: made of host name, process id and chance.
  std::string worker_id;
  // Rollouts at a time, each in a thread of its own.
  int concurrency = 1;
  // Ends the runner after so many. 0: no end.
  int max_rollouts = 0;
  // Modes of the rollouts to claim. Empty: any.
  std::vector<v1::RolloutMode> modes;
  // Between two heartbeats; a third of the shortest unresponsive timeout where that is less.
  std::chrono::milliseconds heartbeat_period = std::chrono::seconds(10);
};

// Heartbeats go out whatever the agents do, and spans are stored before an outcome is reported. While the
// server is away the runner goes on, and reports when it is back, for up to 10 minutes; a claim whose answer
// was lost is found again by its request id. What it cannot do it says on stderr.
class Runner {
 public:
  // Throws std::invalid_argument for a worker id that is not valid UTF-8.
  Runner(std::shared_ptr<grpc::Channel> channel, Agent agent, RunnerOptions options = {});

  // Works until Stop is called or max_rollouts are done. Throws the Error of a claim that waiting does not
  // mend, once what runs has finished. Runs once.
  void Run();
  // Does the same, and takes SIGINT and SIGTERM meanwhile, each as a call of Stop.
  void RunWithSignals();
  // Lets what runs finish, and claims no more; called again, it cancels what runs. Does not wait.
  void Stop();

 private:
  enum class Phase { kRunning, kStopping, kHurried };
  class Presence;

  void Work();
  bool TakeTurn();
  std::optional<v1::Rollout> Claim();
  std::optional<v1::Rollout> Rescue(const v1::DequeueRolloutsRequest& request);
  grpc::Status Poll(const v1::DequeueRolloutsRequest& request, v1::DequeueRolloutsResponse* answer);
  void Execute(v1::Rollout rollout);
  std::optional<v1::Failure> RunAgent(Attempt& attempt);
  grpc::Status FetchPayloads(v1::Rollout* rollout);
  grpc::Status Fetch(const v1::Rollout& rollout, Resources* resources);
  void Report(const v1::AttemptRef& ref, std::optional<v1::StopReason> stop,
              std::optional<v1::Failure> failure, std::int64_t spans);
  bool IsLive(const v1::AttemptRef& ref);
  grpc::Status Insist(const std::function<grpc::Status(grpc::ClientContext*)>& call);
  void Beat();
  v1::HeartbeatRequest BeatRequest() const;
  std::chrono::milliseconds BeatPeriod() const;

  const std::unique_ptr<v1::LightningStoreService::Stub> stub_;
  const Agent agent_;
  RunnerOptions options_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Phase phase_ = Phase::kRunning;
  std::set<Attempt*> running_;
  int left_;                        // turns that are not taken yet; negative: no end
  int finished_ = 0;                // attempts
  std::int64_t dropped_spans_ = 0;  // theirs
  bool ended_ = false;
  std::set<grpc::ClientContext*> polls_;
  grpc::ClientContext* beat_ = nullptr;
  std::optional<Error> failure_;
};

}  // namespace lightningstore
