use std::time::Duration;

use futures_util::TryStreamExt;
use lightningstore::proto::{
    AttemptStatus, QuerySpansRequest, Resource, RolloutConfig, RolloutSpec, WaitForRolloutsRequest,
};
use lightningstore::{Client, Error, find_final_reward};
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let client = Client::new("")?;
    let model = Resource::proxy_llm("http://localhost:8000/v1", "qwen");
    client.add_resources([("model", model)]).await?;

    let config = RolloutConfig::default()
        .with_unresponsive_timeout(Duration::from_secs(30))
        .with_retries(3, [AttemptStatus::Failed, AttemptStatus::Unresponsive]);
    let mut specs = Vec::new();
    for question in 5..9 {
        let spec = RolloutSpec::new(&json!({"question": question}))?;
        specs.push(spec.with_group("step-1").with_config(config.clone()));
    }
    client.enqueue(specs).await?;

    let group = WaitForRolloutsRequest { group_ids: vec!["step-1".into()], ..Default::default() };
    let mut finished = client.wait(group);
    while let Some(rollout) = finished.try_next().await? {
        // each once, as it finishes
        let query = QuerySpansRequest {
            rollout_id: rollout.rollout_id.clone(),
            attempt_id: "latest".into(),
            ..Default::default()
        };
        let spans: Vec<_> = client.spans(query).try_collect().await?;
        let input: Value = rollout.input()?;
        println!("{input} {:?} {:?}", rollout.status(), find_final_reward(&spans));
    }
    Ok(())
}
