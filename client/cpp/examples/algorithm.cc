#include <lightningstore/client.h>
#include <lightningstore/reward.h>

#include <iostream>
#include <nlohmann/json.hpp>

namespace v1 = lightningstore::v1;
using lightningstore::Check;

// Makes a call with a deadline; throws a lightningstore::Error if it fails.
template <typename Request, typename Answer>
Answer Call(v1::LightningStoreService::Stub& store,
            grpc::Status (v1::LightningStoreService::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                    Answer*),
            const Request& request) {
  grpc::ClientContext context;
  lightningstore::SetTimeout(context, std::chrono::seconds(10));
  Answer answer;
  Check((store.*method)(&context, request, &answer));
  return answer;
}

int main() {
  using Stub = v1::LightningStoreService::Stub;
  const auto store = v1::LightningStoreService::NewStub(lightningstore::Connect());

  v1::AddResourcesRequest resources;
  auto& llm = *(*resources.mutable_resources())["model"].mutable_proxy_llm()->mutable_llm();
  llm.set_endpoint("http://localhost:8000/v1");
  llm.set_model("qwen");
  Call(*store, &Stub::AddResources, resources);

  v1::EnqueueRolloutsRequest batch;
  batch.set_request_id(lightningstore::NewRequestId());  // repeated, the call has its effect once
  for (int n = 0; n < 8; ++n) {
    auto& rollout = *batch.add_rollouts();
    rollout.set_input_json(nlohmann::json{{"question", n}}.dump());
    rollout.mutable_config()->set_max_attempts(3);
    rollout.mutable_config()->add_retry_condition(v1::ATTEMPT_STATUS_FAILED);
  }
  v1::WaitForRolloutsRequest wait;
  const auto enqueued = Call(*store, &Stub::EnqueueRollouts, batch);
  for (const auto& rollout : enqueued.rollouts()) wait.add_rollout_ids(rollout.rollout_id());

  grpc::ClientContext waiting;
  const auto finished = store->WaitForRollouts(&waiting, wait);
  for (v1::WaitForRolloutsResponse news; finished->Read(&news);) {
    for (const auto& rollout : news.rollouts()) {  // each once, as it finishes
      v1::QuerySpansRequest query;
      query.set_rollout_id(rollout.rollout_id());
      query.set_attempt_id("latest");
      grpc::ClientContext reading;
      const auto answer = store->QuerySpans(&reading, query);
      std::vector<v1::SpanBatch> spans;
      for (v1::QuerySpansResponse part; answer->Read(&part);) {
        spans.insert(spans.end(), part.batches().begin(), part.batches().end());
      }
      Check(answer->Finish());
      const std::optional<double> reward = lightningstore::FindFinalReward(spans);
      std::cout << rollout.input_json() << " " << v1::RolloutStatus_Name(rollout.status()) << " "
                << (reward ? std::to_string(*reward) : "no reward") << std::endl;
    }
  }
  Check(finished->Finish());
}
