#include <lightningstore/client.h>

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

  v1::UpdateResourcesRequest weights;
  weights.set_resources_id("policy");
  (*weights.mutable_resources())["model"].mutable_llm()->set_endpoint("http://localhost:8000/v1");
  const auto published = Call(*store, &Stub::UpdateResources, weights).resources();

  // Four samples, which complete together, with the newest weights at the claim of each.
  v1::EnqueueRolloutsRequest samples;
  samples.set_request_id(lightningstore::NewRequestId());
  auto& spec = *samples.add_groups();
  spec.set_group_id("task-1");
  spec.set_size(4);
  for (int n = 0; n < 4; ++n) {
    auto& rollout = *samples.add_rollouts();
    rollout.set_input_json(nlohmann::json{{"question", n}}.dump());
    rollout.set_group_id("task-1");
    rollout.set_resources_id("latest");
    (*rollout.mutable_labels())["run"] = "7";
  }
  grpc::ClientContext watching;
  const auto completions = store->WatchGroups(&watching, v1::WatchGroupsRequest());
  v1::WatchGroupsResponse news;
  completions->Read(&news);  // the position of the stream: no later completion is missed
  Call(*store, &Stub::EnqueueRollouts, samples);
  while (completions->Read(&news) && news.groups().empty()) continue;
  if (news.groups().empty()) Check(completions->Finish());
  for (const auto& group : news.groups()) {
    std::cout << group.group_id() << " mean reward " << group.rewards().mean() << ", with the new weights: "
              << (group.min_publish_number() == published.publish_number() ? "yes" : "no") << std::endl;
  }
  watching.TryCancel();

  v1::ListRolloutsRequest best;
  (*best.mutable_labels())["run"] = "7";
  best.set_order_by("reward desc");
  best.set_page_size(1);
  const auto listed = Call(*store, &Stub::ListRollouts, best);
  for (const auto& rollout : listed.rollouts()) {
    v1::UpdateAttemptRequest judgement;
    judgement.mutable_attempt()->set_rollout_id(rollout.rollout_id());
    judgement.mutable_attempt()->set_attempt_id("latest");
    (*judgement.mutable_attempt()->mutable_scores())["judge"] = 0.7;
    judgement.mutable_update_mask()->add_paths("scores.judge");  // other scores stay
    const auto judged = Call(*store, &Stub::UpdateAttempt, judgement).attempt();
    std::cout << "best: " << judged.reward() << ", judged " << judged.scores().at("judge") << std::endl;
  }
}
