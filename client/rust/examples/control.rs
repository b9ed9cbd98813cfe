use lightningstore::proto::{
    Attempt, EnqueueRolloutsRequest, FieldMask, GroupSpec, ListRolloutsRequest, Resource, RolloutSpec,
    UpdateAttemptRequest, WatchGroupsRequest,
};
use lightningstore::{Client, Error};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let client = Client::new("")?;
    let model = Resource::llm("http://localhost:8000/v1", "qwen-step-1");
    let weights = client.update_resources("policy", [("model", model)]).await?;

    // Four samples, which complete together, with the newest weights at the claim of each.
    let group = GroupSpec { group_id: "task-1".into(), size: 4, ..Default::default() };
    let mut samples = EnqueueRolloutsRequest { groups: vec![group], ..Default::default() };
    for question in 1..5 {
        let spec = RolloutSpec::new(&json!({"question": question}))?.with_group("task-1");
        samples.rollouts.push(spec.with_resources("latest").with_label("run", "7"));
    }
    let watch = WatchGroupsRequest::default(); // from now on
    let mut completions = client.stub().watch_groups(watch).await?.into_inner();
    completions.message().await?; // the position of the stream: no later completion is missed
    client.call(samples).await?;
    while let Some(news) = completions.message().await? {
        let Some(group) = news.groups.first() else { continue };
        let mean = group.rewards.as_ref().map(|rewards| rewards.mean);
        let is_new = group.min_publish_number == weights.publish_number;
        println!("{} mean reward {mean:?}, with the new weights: {is_new}", group.group_id);
        break;
    }

    let best = ListRolloutsRequest {
        labels: [("run".into(), "7".into())].into(),
        order_by: "reward desc".into(),
        page_size: 1,
        ..Default::default()
    };
    for rollout in client.call(best).await?.rollouts {
        let scores = [("judge".to_owned(), 0.7)].into();
        let (rollout_id, attempt_id) = (rollout.rollout_id, "latest".into());
        let update = UpdateAttemptRequest {
            attempt: Some(Attempt { rollout_id, attempt_id, scores, ..Default::default() }),
            update_mask: Some(FieldMask { paths: vec!["scores.judge".into()] }), // other scores stay
            ..Default::default()
        };
        let judged = client.call(update).await?.attempt.unwrap_or_default();
        println!("best: {:?} {:?}", judged.reward, judged.scores);
    }
    Ok(())
}
