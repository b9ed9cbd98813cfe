// The Runner: claims rollouts, calls a function for each, and reports the outcomes.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
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

class Finishes;

// Works on one attempt and returns the reward, or nullopt for none.
//
// A function that returns has succeeded. An exception of any type is a failure with its type and message. It
// is retried according to the rollout's config, unless it is a NonRetryable, also a nested one. When the
// attempt is cancelled or superseded, `cancelled()` is true; then the attempt is not reported as succeeded,
// whatever the function returns or throws.
using Agent = std::function<std::optional<double>(Attempt& attempt)>;

struct RunnerOptions {
  // Id of the worker. Empty: generated from host name, process id and random digits.
  std::string worker_id;
  // Maximum number of rollouts at a time, each in a separate thread.
  int concurrency = 1;
  // Number of rollouts after which the runner ends. 0: no limit.
  int max_rollouts = 0;
  // Claims only rollouts with these modes. Empty: any.
  std::vector<v1::RolloutMode> modes;
  // Task queues to claim from; "" is the default queue. Empty: the default queue only.
  std::vector<std::string> queues;
  // Maximum time between heartbeats, reduced to a third of the shortest unresponsive timeout.
  std::chrono::milliseconds heartbeat_period = std::chrono::seconds(10);
  // Returns the publish number that heartbeats report, such as that of the weights which the worker's model
  // has loaded; 0: unchanged. Called in the thread of the heartbeats. Empty: that of the resources which the
  // agent was called with last.
  std::function<std::int64_t()> publish_number;
};

// Heartbeats are sent independently of the agents, and spans are stored before an outcome is reported. While
// the server is down, the runner continues, and reports when it is back, for up to 10 minutes. A claim whose
// response was lost is recovered by its request id. Warnings go to stderr.
class Runner {
 public:
  // Throws std::invalid_argument for a worker id that is not valid UTF-8.
  Runner(std::shared_ptr<grpc::Channel> channel, Agent agent, RunnerOptions options = {});

  // Works until Stop is called or max_rollouts are done. Throws the Error of a claim that is not retryable,
  // after the running agents have finished. A runner runs once.
  void Run();
  // Runs like Run, and handles SIGINT and SIGTERM, each as a call of Stop.
  void RunWithSignals();
  // Lets the running agents finish and claims no more. A second call cancels them. Does not wait.
  void Stop();

 private:
  enum class Phase { kRunning, kStopping, kHurried };
  class Presence;
  // How an attempt ended: with a failure, or with the reward that the agent returned, if any.
  struct Outcome {
    std::optional<v1::Failure> failure;
    std::optional<double> reward;
  };

  void Work();
  bool TakeTurn();
  std::optional<v1::Rollout> Claim();
  std::optional<v1::Rollout> Rescue(const v1::DequeueRolloutsRequest& request);
  grpc::Status Poll(const v1::DequeueRolloutsRequest& request, v1::DequeueRolloutsResponse* answer);
  void Execute(v1::Rollout rollout);
  Outcome RunAgent(Attempt& attempt);
  grpc::Status FetchPayloads(v1::Rollout* rollout);
  grpc::Status Fetch(const v1::Rollout& rollout, Resources* resources);
  grpc::Status Load(const v1::Attempt& attempt, v1::Resources* resources);
  void Report(const v1::AttemptRef& ref, std::optional<v1::StopReason> stop, Outcome outcome,
              std::int64_t spans);
  bool IsLive(const v1::AttemptRef& ref);
  grpc::Status Insist(const std::function<grpc::Status(grpc::ClientContext*)>& call);
  void Beat();
  // Sends the next heartbeat now, because its response says what has happened.
  void HurryBeat();
  v1::HeartbeatRequest BeatRequest() const;
  // Adds the publish number to report, which may come from user code.
  grpc::Status AddPublishNumber(v1::HeartbeatRequest* request) const;
  std::chrono::milliseconds BeatPeriod() const;

  const std::unique_ptr<v1::LightningStoreService::Stub> stub_;
  const Agent agent_;
  RunnerOptions options_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Phase phase_ = Phase::kRunning;
  std::set<Presence*> running_;
  int left_;                        // turns that are not taken yet; negative: no end
  int finished_ = 0;                // attempts
  std::int64_t dropped_spans_ = 0;  // theirs
  bool ended_ = false;
  bool hurried_ = false;  // the next heartbeat
  std::set<grpc::ClientContext*> polls_;
  grpc::ClientContext* beat_ = nullptr;
  std::optional<Error> failure_;
  std::deque<v1::Resources> kept_;  // loaded resources, the newest last
  Finishes* finishes_ = nullptr;    // of Run
  // Of the resources that the agent was called with last; 0: none.
  std::atomic<std::int64_t> publish_number_{0};
  // Set once the server has rejected the field of the reward, as those of earlier versions do.
  std::atomic<bool> without_rewards_{false};
};

}  // namespace lightningstore
