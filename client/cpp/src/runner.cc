#include "lightningstore/runner.h"

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <stdexcept>
#include <thread>
#include <utility>

#include "failure.h"
#include "finishes.h"
#include "lightningstore/resources.h"
#include "losses.h"
#include "pauses.h"
#include "text.h"

namespace lightningstore {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// Maximum time that the server waits for a claimable rollout, and the additional time to wait for its
// response.
constexpr int kPollSeconds = 20;
constexpr milliseconds kPollTimeout{30'000};
// Time limit for asking what a poll had claimed when it was interrupted by a stop.
constexpr milliseconds kLastAnswer{600};
constexpr int kLastTries = 3;
// Timeout of one try of a call that is retried, and the maximum time of retries.
constexpr milliseconds kTryTimeout{5'000};
constexpr milliseconds kOutage{600'000};
constexpr milliseconds kLongestPause{5'000};
// Heartbeats per unresponsive timeout, so that one or two may get lost.
constexpr int kBeatsPerTimeout = 3;
constexpr milliseconds kShortestPeriod{50};
constexpr milliseconds kRetryPeriod{1'000};
// Number of cached resources, so that a batch of rollouts loads them once.
constexpr std::size_t kKeptResources = 4;

std::string NewWorkerId() {
  char host[200] = "worker";
  gethostname(host, sizeof host - 1);
  return Clean(host) + "-" + std::to_string(getpid()) + "-" + NewRequestId().substr(0, 6);
}

// Ends a forked child that returns from the agent: it must neither report nor claim in addition to its
// parent.
class NoForkedChild {
 public:
  NoForkedChild() : process_(getpid()) {}
  ~NoForkedChild() {
    if (getpid() == process_) return;
    Say("a forked child returned from the agent and was ended; call _exit in the child");
    _exit(EXIT_FAILURE);
  }
  NoForkedChild(const NoForkedChild&) = delete;
  NoForkedChild& operator=(const NoForkedChild&) = delete;

 private:
  const pid_t process_;
};

v1::UpdateAttemptRequest OutcomeRequest(const v1::AttemptRef& ref, const std::optional<v1::Failure>& failure,
                                        std::optional<double> reward, std::int64_t spans) {
  v1::UpdateAttemptRequest request;
  v1::Attempt& record = *request.mutable_attempt();
  record.set_rollout_id(ref.rollout_id());
  record.set_attempt_id(ref.attempt_id());
  record.set_status(failure ? v1::ATTEMPT_STATUS_FAILED : v1::ATTEMPT_STATUS_SUCCEEDED);
  request.mutable_update_mask()->add_paths("status");
  if (failure) {
    *record.mutable_failure() = *failure;
    request.mutable_update_mask()->add_paths("failure");
  }
  if (reward) {
    record.set_reward(*reward);
    request.mutable_update_mask()->add_paths("reward");
  }
  request.set_sent_span_count(spans);
  request.set_request_id(NewRequestId());
  return request;
}

// Returns whether the server does not know a field of an update.
bool IsUnknownPath(const grpc::Status& status) {
  if (status.error_code() != grpc::StatusCode::INVALID_ARGUMENT) return false;
  const std::vector<std::string> fields = Error(status).fields;
  return std::any_of(fields.begin(), fields.end(),
                     [](const std::string& field) { return field.rfind("update_mask", 0) == 0; });
}

}  // namespace

// Registers a claim for heartbeats and Stop, for its lifetime.
class Runner::Presence {
 public:
  Presence(Runner* runner, const v1::Rollout& rollout)
      : runner_(runner), period_(BeatPeriodOf(rollout.config())) {
    ref_.set_rollout_id(rollout.rollout_id());
    ref_.set_attempt_id(rollout.latest_attempt().attempt_id());
    const std::lock_guard lock(runner_->mutex_);
    runner_->running_.insert(this);
    if (runner_->phase_ == Phase::kHurried) Cancel(v1::STOP_REASON_UNSPECIFIED);
    runner_->changed_.notify_all();  // perhaps it wants more heartbeats
  }
  ~Presence() {
    const std::lock_guard lock(runner_->mutex_);
    runner_->running_.erase(this);
    ++runner_->finished_;
    runner_->dropped_spans_ += dropped_spans();
  }
  Presence(const Presence&) = delete;
  Presence& operator=(const Presence&) = delete;

  // Creates the attempt, once its resources are there.
  Attempt& Begin(v1::Rollout rollout, Resources resources) {
    const std::lock_guard lock(runner_->mutex_);
    attempt_.emplace(runner_->stub_.get(), std::move(rollout), std::move(resources));
    if (stop_) attempt_->Cancel(*stop_);
    return *attempt_;
  }
  const v1::AttemptRef& ref() const { return ref_; }

  // For holders of the runner's lock.
  void Cancel(v1::StopReason reason) {
    if (!stop_) stop_ = reason;
    if (attempt_) attempt_->Cancel(reason);
  }
  std::optional<milliseconds> period() const { return period_; }
  std::int64_t dropped_spans() const { return attempt_ ? attempt_->dropped_spans() : 0; }

 private:
  // Returns the time between heartbeats that a rollout requires.
  static std::optional<milliseconds> BeatPeriodOf(const v1::RolloutConfig& config) {
    if (!config.has_unresponsive_timeout()) return std::nullopt;
    const milliseconds silence{config.unresponsive_timeout().seconds() * 1000 +
                               config.unresponsive_timeout().nanos() / 1'000'000};
    return std::max(silence / kBeatsPerTimeout, kShortestPeriod);
  }

  Runner* const runner_;
  const std::optional<milliseconds> period_;
  v1::AttemptRef ref_;
  std::optional<v1::StopReason> stop_;
  std::optional<Attempt> attempt_;
};

Runner::Runner(std::shared_ptr<grpc::Channel> channel, Agent agent, RunnerOptions options)
    : stub_(v1::LightningStoreService::NewStub(std::move(channel))),
      agent_(std::move(agent)),
      options_(std::move(options)),
      left_(options_.max_rollouts > 0 ? options_.max_rollouts : -1) {
  if (options_.worker_id.empty()) options_.worker_id = NewWorkerId();
  if (!IsClean(options_.worker_id)) throw std::invalid_argument("worker_id must be valid UTF-8");
}

void Runner::Run() {
  Finishes finishes(stub_.get(), [this] { HurryBeat(); });
  finishes_ = &finishes;
  std::thread beats([this] { Beat(); });
  std::vector<std::thread> workers;
  for (int i = 0; i < std::max(options_.concurrency, 1); ++i) workers.emplace_back([this] { Work(); });
  for (std::thread& worker : workers) worker.join();
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    if (beat_ != nullptr) beat_->TryCancel();
    changed_.notify_all();
  }
  beats.join();
  Losses::OfProgram().Summarize(steady_clock::now(), true);
  if (failure_) throw *failure_;
}

void Runner::Stop() {
  const std::lock_guard lock(mutex_);
  phase_ = phase_ == Phase::kRunning ? Phase::kStopping : Phase::kHurried;
  for (grpc::ClientContext* poll : polls_) poll->TryCancel();
  if (phase_ == Phase::kHurried) {
    for (Presence* presence : running_) presence->Cancel(v1::STOP_REASON_UNSPECIFIED);
  }
  changed_.notify_all();
}

void Runner::Work() {
  try {
    while (TakeTurn()) {
      const auto rollout = Claim();
      if (!rollout) return;
      Execute(*rollout);
    }
  } catch (const Error& failure) {
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = failure;
    if (phase_ == Phase::kRunning) phase_ = Phase::kStopping;
    for (grpc::ClientContext* poll : polls_) poll->TryCancel();
    changed_.notify_all();
  }
}

bool Runner::TakeTurn() {
  const std::lock_guard lock(mutex_);
  if (left_ == 0) return false;
  if (left_ > 0) --left_;
  return true;
}

// The same request is repeated unchanged until it is answered, so that a claim whose response was lost is
// recovered by its request id.
std::optional<v1::Rollout> Runner::Claim() {
  v1::DequeueRolloutsRequest request;
  request.set_limit(1);
  request.mutable_modes()->Add(options_.modes.begin(), options_.modes.end());
  request.mutable_queues()->Add(options_.queues.begin(), options_.queues.end());
  request.set_worker_id(options_.worker_id);
  request.mutable_wait()->set_seconds(kPollSeconds);
  request.set_request_id(NewRequestId());
  Pauses pauses(kLongestPause);
  bool is_open = false;  // sent but not answered: it may have claimed something
  while (true) {
    {
      const std::lock_guard lock(mutex_);
      if (phase_ != Phase::kRunning) break;
    }
    v1::DequeueRolloutsResponse answer;
    const grpc::Status status = Poll(request, &answer);
    if (status.ok() && answer.rollouts_size() > 0) return answer.rollouts(0);
    if (status.ok()) {
      request.set_request_id(NewRequestId());
      is_open = false;
      continue;
    }
    const Error failure(status);
    std::unique_lock lock(mutex_);
    const auto stopping = [this] { return phase_ != Phase::kRunning; };
    if (!stopping() && !failure.IsTransient()) throw failure;
    if (!stopping() && !is_open) Say(std::string("claim failed, retrying: ") + failure.what());
    is_open = true;
    changed_.wait_for(lock, pauses.Next(failure), stopping);
  }
  return is_open ? Rescue(request) : std::nullopt;
}

// Returns what an interrupted poll had claimed.
std::optional<v1::Rollout> Runner::Rescue(const v1::DequeueRolloutsRequest& request) {
  for (int i = 0; i < kLastTries; ++i) {
    grpc::ClientContext context;
    SetTimeout(context, kLastAnswer);
    v1::DequeueRolloutsResponse answer;
    if (stub_->DequeueRollouts(&context, request, &answer).ok()) {
      if (answer.rollouts_size() == 0) return std::nullopt;
      return answer.rollouts(0);
    }
    std::this_thread::sleep_for(milliseconds(100));
  }
  Say("stopping; the result of the last poll is not known");
  return std::nullopt;
}

grpc::Status Runner::Poll(const v1::DequeueRolloutsRequest& request, v1::DequeueRolloutsResponse* answer) {
  grpc::ClientContext context;
  SetTimeout(context, kPollTimeout);
  {
    const std::lock_guard lock(mutex_);
    polls_.insert(&context);
    if (phase_ != Phase::kRunning) context.TryCancel();
  }
  const grpc::Status status = stub_->DequeueRollouts(&context, request, answer);
  const std::lock_guard lock(mutex_);
  polls_.erase(&context);
  return status;
}

void Runner::Execute(v1::Rollout rollout) {
  Presence presence(this, rollout);  // from the claim on, however long its resources take
  // Whatever is thrown is reported, because an attempt without a report would stay live.
  Outcome outcome;
  try {
    Resources resources;
    grpc::Status fetched = FetchPayloads(&rollout);
    if (fetched.ok()) fetched = Fetch(rollout, &resources);
    Attempt& attempt = presence.Begin(std::move(rollout), std::move(resources));
    if (fetched.ok()) {
      outcome = RunAgent(attempt);
    } else {
      outcome.failure = MakeFailure("lightningstore::Error", fetched.error_message());
    }
    const std::int64_t spans = attempt.Flush(kOutage);
    Report(presence.ref(), attempt.stop_reason(), std::move(outcome), spans);
    return;
  } catch (...) {
    outcome = {CurrentFailure(), std::nullopt};
  }
  Report(presence.ref(), std::nullopt, std::move(outcome), 0);
}

Runner::Outcome Runner::RunAgent(Attempt& attempt) {
  if (attempt.cancelled()) return {};  // Report says so
  try {
    std::optional<double> reward;
    {
      const Finishes::Watch watch(finishes_, attempt.Ref());
      const NoForkedChild here;  // the last: a forked child gets no further
      reward = agent_(attempt);
    }
    if (reward && !attempt.cancelled()) attempt.EmitReward(*reward);
    return {std::nullopt, reward};
  } catch (...) {
    return {CurrentFailure(), std::nullopt};
  }
}

// Loads the input of a claim that was omitted from its response, as in repeated responses.
grpc::Status Runner::FetchPayloads(v1::Rollout* rollout) {
  if (!rollout->payloads_omitted()) return grpc::Status::OK;
  v1::GetRolloutRequest request;
  request.set_rollout_id(rollout->rollout_id());
  v1::GetRolloutResponse answer;
  const grpc::Status status =
      Insist([&](grpc::ClientContext* context) { return stub_->GetRollout(context, request, &answer); });
  rollout->set_input_json(answer.rollout().input_json());
  rollout->set_metadata_json(answer.rollout().metadata_json());
  rollout->clear_payloads_omitted();
  return status;
}

grpc::Status Runner::Fetch(const v1::Rollout& rollout, Resources* resources) {
  v1::Resources loaded;
  const grpc::Status status = Load(rollout.latest_attempt(), &loaded);
  if (status.ok() && !rollout.latest_attempt().resources_id().empty()) {
    publish_number_ = loaded.publish_number();
  }
  for (const auto& [name, resource] : loaded.resources()) {
    v1::Resource& kept = (*resources)[name] = resource;
    if (!resource.has_proxy_llm()) continue;
    *kept.mutable_llm() = resource.proxy_llm().llm();
    // The server never sends an empty id, so this is the URL of the attempt.
    kept.mutable_llm()->set_endpoint(
        BaseUrl(resource.proxy_llm(), rollout.rollout_id(), rollout.latest_attempt().attempt_id()));
  }
  return status;
}

// Returns the resources of an attempt, from the cache if it has the claim's version.
grpc::Status Runner::Load(const v1::Attempt& attempt, v1::Resources* resources) {
  if (attempt.resources_id().empty()) return grpc::Status::OK;
  {
    const std::lock_guard lock(mutex_);
    for (const v1::Resources& kept : kept_) {
      if (kept.resources_id() != attempt.resources_id() || kept.version() != attempt.resources_version())
        continue;
      *resources = kept;
      return grpc::Status::OK;
    }
  }
  v1::GetResourcesRequest request;
  request.set_resources_id(attempt.resources_id());
  request.set_version(attempt.resources_version());
  v1::GetResourcesResponse answer;
  const grpc::Status status =
      Insist([&](grpc::ClientContext* context) { return stub_->GetResources(context, request, &answer); });
  if (!status.ok()) return status;
  *resources = answer.resources();  // the current version from servers that keep no others
  const std::lock_guard lock(mutex_);
  kept_.push_back(*resources);
  if (kept_.size() > kKeptResources) kept_.pop_front();
  return status;
}

void Runner::Report(const v1::AttemptRef& ref, std::optional<v1::StopReason> stop, Outcome outcome,
                    std::int64_t spans) {
  auto& [failure, reward] = outcome;
  if (stop) {
    // Whatever the agent returned: its outcome no longer counts.
    reward.reset();
    failure = MakeFailure("Cancelled", *stop == v1::STOP_REASON_UNSPECIFIED ? "the runner is stopping"
                                                                            : v1::StopReason_Name(*stop));
    if (!IsLive(ref)) return;
  }
  if (failure) Say(ref.rollout_id() + " failed: " + failure->type() + ": " + failure->message());
  if (without_rewards_) reward.reset();
  v1::UpdateAttemptResponse answer;
  const auto update = [&, &failure = failure, &reward = reward] {
    const v1::UpdateAttemptRequest request = OutcomeRequest(ref, failure, reward, spans);
    return Insist(
        [&](grpc::ClientContext* context) { return stub_->UpdateAttempt(context, request, &answer); });
  };
  grpc::Status status = update();
  if (reward && IsUnknownPath(status)) {
    Say("the server knows no rewards in reports, so they are in spans only: " + status.error_message());
    without_rewards_ = true;
    reward.reset();
    status = update();
  }
  if (status.error_code() == grpc::StatusCode::INVALID_ARGUMENT) {
    Say(ref.rollout_id() +
        ": the server rejected the report; reporting a minimal failure: " + status.error_message());
    failure = RefusedReport(failure, status.error_message());
    reward.reset();
    status = update();
  }
  if (!status.ok()) Say(ref.rollout_id() + " was not reported: " + status.error_message());
  if (answer.missing_span_count() > 0) {
    Say(ref.rollout_id() + " has " + std::to_string(answer.missing_span_count()) + " missing spans");
  }
}

// Returns whether a cancelled attempt must still be ended. An expiry set by the watchdog is kept.
bool Runner::IsLive(const v1::AttemptRef& ref) {
  v1::GetAttemptRequest request;
  request.set_rollout_id(ref.rollout_id());
  request.set_attempt_id(ref.attempt_id());
  v1::GetAttemptResponse answer;
  Insist([&](grpc::ClientContext* context) { return stub_->GetAttempt(context, request, &answer); });
  const v1::AttemptStatus status = answer.attempt().status();
  return status == v1::ATTEMPT_STATUS_PREPARING || status == v1::ATTEMPT_STATUS_RUNNING;
}

// Repeats a call while the server is down.
grpc::Status Runner::Insist(const std::function<grpc::Status(grpc::ClientContext*)>& call) {
  const auto until = steady_clock::now() + kOutage;
  Pauses pauses(kLongestPause);
  while (true) {
    grpc::ClientContext context;
    SetTimeout(context, kTryTimeout);
    const grpc::Status status = call(&context);
    if (status.ok()) return status;
    const Error failure(status);
    if (!failure.IsTransient() || steady_clock::now() > until) return status;
    std::unique_lock lock(mutex_);
    if (changed_.wait_for(lock, pauses.Next(failure), [this] { return phase_ == Phase::kHurried; })) {
      return status;
    }
  }
}

void Runner::Beat() {
  bool failing = false;
  std::unique_lock lock(mutex_);
  while (!ended_) {
    const auto began = steady_clock::now();
    hurried_ = false;
    v1::HeartbeatRequest request = BeatRequest();
    grpc::ClientContext context;
    SetTimeout(context, std::max(BeatPeriod(), kRetryPeriod));
    beat_ = &context;
    lock.unlock();
    v1::HeartbeatResponse answer;
    grpc::Status status = AddPublishNumber(&request);
    if (status.ok()) status = stub_->Heartbeat(&context, request, &answer);
    lock.lock();
    beat_ = nullptr;
    if (ended_) return;
    const bool got_through = status.ok();
    if (!got_through && !failing) Say("heartbeat failed, retrying: " + status.error_message());
    if (got_through && failing) Say("heartbeats succeed again");
    failing = !got_through;
    for (const v1::Stop& stop : answer.stops()) {
      for (Presence* presence : running_) {
        if (presence->ref().rollout_id() == stop.attempt().rollout_id() &&
            presence->ref().attempt_id() == stop.attempt().attempt_id()) {
          presence->Cancel(stop.reason());
        }
      }
    }
    // A new claim may require an earlier heartbeat.
    const auto due = [&] {
      return began + (got_through ? BeatPeriod() : std::min(BeatPeriod(), kRetryPeriod));
    };
    while (!ended_ && !hurried_ && steady_clock::now() < due()) changed_.wait_until(lock, due());
  }
}

void Runner::HurryBeat() {
  const std::lock_guard lock(mutex_);
  hurried_ = true;
  changed_.notify_all();
}

v1::HeartbeatRequest Runner::BeatRequest() const {
  v1::HeartbeatRequest request;
  request.set_worker_id(options_.worker_id);
  std::int64_t dropped = dropped_spans_;
  for (const Presence* presence : running_) {
    *request.add_attempts() = presence->ref();
    dropped += presence->dropped_spans();
  }
  request.set_stats_json("{\"running\": " + std::to_string(running_.size()) +
                         ", \"finished\": " + std::to_string(finished_) +
                         ", \"concurrency\": " + std::to_string(std::max(options_.concurrency, 1)) +
                         ", \"dropped_spans\": " + std::to_string(dropped) + "}");
  return request;
}

grpc::Status Runner::AddPublishNumber(v1::HeartbeatRequest* request) const {
  if (!options_.publish_number) {
    request->set_publish_number(publish_number_);
    return grpc::Status::OK;
  }
  try {
    request->set_publish_number(options_.publish_number());
    return grpc::Status::OK;
  } catch (...) {  // it must not end the heartbeats
    return grpc::Status(grpc::StatusCode::UNKNOWN, "publish_number: " + CurrentFailure().message());
  }
}

milliseconds Runner::BeatPeriod() const {
  milliseconds period = options_.heartbeat_period;
  for (const Presence* presence : running_) {
    if (presence->period()) period = std::min(period, *presence->period());
  }
  return period;
}

}  // namespace lightningstore
