//! Against the real server.

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use opentelemetry::trace::{Span as _, Tracer};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::timeout;

use super::runner::start;
use super::{next, soon};
use crate::client::Client;
use crate::failure::Failure;
use crate::proto::*;
use crate::reward::{ANNOTATION, find_final_reward};
use crate::runner::Runner;
use crate::spans::Span;
use crate::task::Task;

/// The server to test with: LIGHTNINGSTORE_SERVER, else the checkout's.
fn program() -> PathBuf {
    if let Some(program) = std::env::var_os("LIGHTNINGSTORE_SERVER") {
        return program.into();
    }
    let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.venv/bin/lightningstore");
    let wanted = "make one with `make .venv/stamp`, or name one by LIGHTNINGSTORE_SERVER";
    assert!(program.exists(), "no server at {}: {wanted}", program.display());
    program
}

/// Starts a server; returns it with its address once it listens. It is killed when it is dropped.
async fn serve(arguments: &[&str]) -> (Child, String) {
    let mut command = Command::new(program());
    command.arg("serve").args(arguments).stdout(Stdio::piped()).kill_on_drop(true);
    let mut server = command.spawn().unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let line = soon(lines.next_line()).await.unwrap().expect("a server that starts");
    let port = line.rsplit("127.0.0.1:").next().unwrap().chars().take_while(char::is_ascii_digit);
    let address = format!("127.0.0.1:{}", port.collect::<String>());
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    (server, address)
}

const IN_MEMORY: [&str; 4] = ["--port", "0", "--backend", "memory"];

#[derive(Deserialize, Serialize)]
struct Question {
    question: i64,
}

/// No double holds it.
const LARGE: i64 = 9_007_199_254_740_993;

async fn answers(task: Task<Question>) -> Result<f64, Failure> {
    let weights: Vec<f64> = task.resources.custom("weights")?;
    let llm = task.resources.llm("llm").ok_or_else(|| Failure::new("no llm"))?;
    let wanted = format!("http://h/rollout/{}/attempt/{}/v1", task.rollout_id(), task.attempt_id());
    if llm.endpoint != wanted {
        return Err(Failure::new(&llm.endpoint));
    }
    if task.input.question != LARGE {
        return Err(Failure::new("only one is right").not_retryable());
    }
    task.tracer.in_span("think", |_| task.emit_rewards(&[("care", 3.0), ("speed", 2.0)], Some("speed")))?;
    Ok(weights[0])
}

async fn spans_of(client: &Client, rollout_id: &str) -> Vec<Span> {
    let request = QuerySpansRequest { rollout_id: rollout_id.into(), ..Default::default() };
    soon(client.spans(request).try_collect()).await.unwrap()
}

fn names(spans: &[Span]) -> Vec<&str> {
    spans.iter().map(|span| span.otlp.name.as_str()).collect()
}

#[tokio::test]
async fn a_whole_life() {
    let (_server, address) = serve(&IN_MEMORY).await;
    let client = Client::new(address).unwrap();
    let weights = Resource::custom("weights", &[0.5]).unwrap();
    let llm = Resource::proxy_llm("http://h/v1", "m");
    client.add_resources([("llm", llm), ("weights", weights)]).await.unwrap();
    let config = || RolloutConfig::default().with_retries(3, [AttemptStatus::Failed]);
    let spec =
        |question| RolloutSpec::new(&Question { question }).unwrap().with_group("g").with_config(config());
    let metadata = HashMap::from([("by", "test")]);
    let specs = [spec(LARGE), spec(1).with_priority(7).with_metadata(&metadata).unwrap()];
    let rollouts = client.enqueue(specs).await.unwrap();
    assert_eq!(rollouts[1].metadata::<HashMap<String, String>>().unwrap()["by"], "test");
    start(Runner::new(&client, answers).concurrency(2));
    let request = WaitForRolloutsRequest { group_ids: vec!["g".into()], ..Default::default() };
    let finished: Vec<_> = soon(client.wait(request).try_collect()).await.unwrap();
    let outcomes: HashMap<_, _> = finished.iter().map(|r| (r.rollout_id.as_str(), r)).collect();
    assert_eq!(outcomes[rollouts[0].rollout_id.as_str()].status(), RolloutStatus::Succeeded);
    let failed = outcomes[rollouts[1].rollout_id.as_str()];
    assert_eq!((failed.status(), failed.attempt_count), (RolloutStatus::Failed, 1));

    let spans = spans_of(&client, &rollouts[0].rollout_id).await;
    assert_eq!(names(&spans), [ANNOTATION, "think", ANNOTATION]);
    assert_eq!(spans.iter().map(|span| span.sequence_id).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(find_final_reward(&spans), Some(0.5));
    assert_eq!(find_final_reward(&spans[..2]), Some(2.0));
    let second = spans[0].attribute("agentlightning.reward.1.name").unwrap().value.clone();
    assert_eq!(second, Some(Value::StringValue("care".into())));
    let watch = WatchRolloutsRequest { after_completion_number: Some(1), ..Default::default() };
    let next = soon(client.watch(watch).try_next()).await.unwrap().unwrap();
    assert_eq!(next.rollout_id, finished[1].rollout_id);
    let error = client.rollout("nobody").await.unwrap_err();
    assert_eq!(error.reason(), ErrorReason::RolloutNotFound.as_str_name());
}

#[tokio::test]
async fn a_cancelled_rollout_is_not_succeeded() {
    let (_server, address) = serve(&IN_MEMORY).await;
    let client = Client::new(address).unwrap();
    let (began, mut working) = unbounded_channel();
    let agent = move |task: Task<Option<i64>>| {
        let began = began.clone();
        async move {
            began.send(task.attempt_id().to_owned())?;
            task.cancellation.cancelled().await;
            Ok(1.0)
        }
    };
    let runner = Runner::new(&client, agent).max_rollouts(1).heartbeat_period(Duration::from_millis(100));
    let ended = start(runner);
    let id = client.enqueue([RolloutSpec::new(&()).unwrap()]).await.unwrap().remove(0).rollout_id;
    let attempt_id = next(&mut working).await;
    client.cancel([id.as_str()]).await.unwrap();
    soon(ended).await.unwrap().unwrap();
    let rollout = client.rollout(id).await.unwrap();
    assert_eq!(rollout.status(), RolloutStatus::Cancelled);
    assert_eq!((rollout.attempt_id(), rollout.attempt_count), (attempt_id.as_str(), 1));
    assert_eq!(rollout.latest_attempt.unwrap().status(), AttemptStatus::Failed);
}

/// A port for a server that has to come back at the same address: below those that systems give to outgoing
/// connections, one of which might take it while the server is away.
fn free_port() -> u16 {
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    std::iter::repeat_with(|| rand::random_range(20_000..32_000))
        .take(100)
        .find(is_free)
        .expect("a free port")
}

#[tokio::test]
async fn a_killed_server_costs_nothing() {
    const COUNT: i64 = 12;
    let port = free_port().to_string();
    let folder = std::env::temp_dir().join(format!("lightningstore-killed-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("store.db");
    let arguments = ["--port", &port, "--backend", "sqlite", "--db", file.to_str().unwrap()];
    let (mut server, address) = serve(&arguments).await;
    let client = Client::new(address).unwrap();
    let spec = |question| RolloutSpec::new(&Question { question }).unwrap().with_group("g");
    client.enqueue((0..COUNT).map(spec)).await.unwrap();
    let (began, mut working) = unbounded_channel();
    let (ended, mut done) = unbounded_channel();
    let gate = Arc::new(Semaphore::new(0));
    let go_on = gate.clone();
    let agent = move |task: Task<Question>| {
        let (began, ended, go_on) = (began.clone(), ended.clone(), go_on.clone());
        async move {
            task.tracer.start("before").end();
            began.send(())?;
            drop(go_on.acquire().await?);
            task.tracer.start("after").end();
            ended.send(())?;
            Ok(task.input.question as f64)
        }
    };
    start(Runner::new(&client, agent).concurrency(4));
    for _ in 0..4 {
        next(&mut working).await;
    }
    // Four work, their claims stored, their spans perhaps not.
    server.kill().await.unwrap();
    gate.add_permits(4);
    for _ in 0..4 {
        next(&mut done).await; // while the server is away
    }
    let (_server, _) = serve(&arguments).await;
    let request = WaitForRolloutsRequest { group_ids: vec!["g".into()], ..Default::default() };
    let finished = timeout(Duration::from_secs(120), client.wait(request).try_collect::<Vec<_>>());
    let mut rewards = Vec::new();
    for rollout in finished.await.unwrap().unwrap() {
        assert_eq!((rollout.status(), rollout.attempt_count), (RolloutStatus::Succeeded, 1));
        let spans = spans_of(&client, &rollout.rollout_id).await;
        assert_eq!(names(&spans), ["before", "after", ANNOTATION]);
        rewards.push(find_final_reward(&spans).unwrap());
    }
    rewards.sort_by(f64::total_cmp);
    assert_eq!(rewards, (0..COUNT).map(|n| n as f64).collect::<Vec<_>>());
    std::fs::remove_dir_all(folder).unwrap();
}
