//! The namespace that the calls of a client name.

use futures_util::TryStreamExt;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use super::runner::{Input, start};
use super::scripted::{Script, World, claim_of, serve_with};
use super::{make_spans, next, soon};
use crate::client::Client;
use crate::error::Error;
use crate::exporter::SpanExporter;
use crate::failure::Failure;
use crate::proto::*;
use crate::runner::Runner;
use crate::task::Task;

const KEY: &str = "x-lightning-namespace";

/// A server and a client of a namespace; the metadata of all calls.
fn serve(namespace: &str) -> (World, UnboundedReceiver<MetadataMap>) {
    let (shown, calls) = unbounded_channel();
    let refuse = |_| Err(Status::not_found("nothing"));
    let script = Script {
        metadata: Some(shown),
        wait: Some(Box::new(|_| Ok(vec![Err(Status::not_found("nothing"))]))),
        watch: Some(Box::new(|_| Ok(vec![Err(Status::not_found("nothing"))]))),
        rollout: Some(Box::new(refuse)),
        ..Default::default()
    };
    let connect = |address: std::net::SocketAddr| {
        Client::builder().address(address.to_string()).namespace(namespace).build().unwrap()
    };
    (serve_with(|_| script, None, connect), calls)
}

async fn agent(task: Task<Input>) -> Result<f64, Failure> {
    use opentelemetry::trace::Tracer;
    task.tracer.in_span("step", |_| {});
    Ok(1.0)
}

/// Makes calls of all shapes. Returns the metadata of each.
async fn all_calls(namespace: &str) -> Vec<MetadataMap> {
    let (mut world, mut calls) = serve(namespace);
    let client = world.client.clone();
    soon(client.rollout("ro-1")).await.unwrap_err();
    soon(client.wait(Default::default()).try_collect::<Vec<_>>()).await.unwrap_err();
    soon(client.watch(Default::default()).try_collect::<Vec<_>>()).await.unwrap_err();
    soon(client.spans(Default::default()).try_collect::<Vec<_>>()).await.unwrap();
    soon(client.triplets(Default::default()).try_collect::<Vec<_>>()).await.unwrap();
    soon(client.stub().heartbeat(HeartbeatRequest::default())).await.unwrap();
    let exporter = SpanExporter::new(&client).attempt("ro-1", "at-1");
    make_spans(&exporter, &["a"]);
    soon(exporter.flush()).await;
    let mut seen = Vec::new();
    for _ in 0..7 {
        seen.push(next(&mut calls).await);
    }
    let ended = start(Runner::new(&client, agent).max_rollouts(1));
    world.queue.send(claim_of("ro-1", "1")).unwrap();
    world.outcome().await;
    soon(ended).await.unwrap().unwrap();
    let of_runner = std::iter::from_fn(|| calls.try_recv().ok());
    seen.extend(of_runner);
    assert!(seen.len() >= 7 + 3, "a claim, spans and the report at least, not {}", seen.len());
    seen
}

#[tokio::test]
async fn every_call_names_the_namespace() {
    for metadata in all_calls("run-7").await {
        let named: Vec<_> = metadata.get_all(KEY).iter().collect();
        assert_eq!(named, ["run-7"], "{metadata:?}");
    }
}

#[tokio::test]
async fn without_a_namespace_nothing_is_sent() {
    assert!(all_calls("").await.iter().all(|metadata| !metadata.contains_key(KEY)));
}

#[tokio::test]
async fn a_request_that_names_another_namespace_keeps_it() {
    let (world, mut calls) = serve("run-7");
    let mut request = Request::new(HeartbeatRequest::default());
    request.metadata_mut().insert(KEY, "run-8".parse().unwrap());
    soon(world.client.stub().heartbeat(request)).await.unwrap();
    let named: Vec<_> = next(&mut calls).await.get_all(KEY).iter().cloned().collect();
    assert_eq!(named, ["run-8"]);
}

#[test]
fn names_are_checked_when_the_client_is_built() {
    let build = |name: &str| Client::builder().namespace(name).build();
    let longest = "x".repeat(63);
    for name in ["a", "0", "default", "run-7", "team.run_7", &longest] {
        build(name).unwrap();
    }
    let too_long = "x".repeat(64);
    for name in ["A", "a b", "-a", "a-", ".", "_a", "a.", "ä", "a/b", "a\n", " ", &too_long] {
        let Err(Error::Argument(message)) = build(name) else { panic!("{name:?} is accepted") };
        assert!(message.contains("1 to 63") && message.contains(&format!("{name:?}")), "{message}");
    }
}
