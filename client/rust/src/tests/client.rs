//! Calls and streams that break.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use opentelemetry_proto::tonic::trace::v1::Span as OtlpSpan;
use serde_json::value::RawValue;
use tokio::sync::mpsc::unbounded_channel;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::Request;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::scripted::{Script, away, serve};
use super::{next, soon};
use crate::client::Client;
use crate::error::Error;
use crate::proto::*;

#[tokio::test]
async fn errors_tell_all() {
    let full = |_| {
        let mut details = ErrorDetails::new();
        let limit = HashMap::from([("limit".to_owned(), "7".to_owned())]);
        details.set_error_info("ERROR_REASON_QUEUE_FULL", "lightningstore", limit);
        details.set_retry_info(Some(Duration::from_millis(1500)));
        details.add_bad_request_violation("f", "d");
        Err(Status::with_error_details(Code::ResourceExhausted, "full", details))
    };
    let world = serve(|_| Script { enqueue: Some(Box::new(full)), ..Default::default() });
    let error = soon(world.client.enqueue([])).await.unwrap_err();
    assert_eq!(error.to_string(), "ResourceExhausted (ERROR_REASON_QUEUE_FULL): full");
    assert_eq!(error.code(), Some(Code::ResourceExhausted));
    let call = error.call().unwrap();
    assert_eq!((call.reason.as_str(), call.domain.as_str()), ("ERROR_REASON_QUEUE_FULL", "lightningstore"));
    assert_eq!(call.metadata["limit"], "7");
    assert_eq!(call.retry_delay, Some(Duration::from_millis(1500)));
    assert_eq!((call.fields[0].field.as_str(), call.fields[0].description.as_str()), ("f", "d"));
}

#[tokio::test]
async fn lost_answers_are_asked_for_again_with_the_same_request_id() {
    let (asked, mut ids) = unbounded_channel();
    let tries = AtomicU32::new(0);
    let enqueue = move |request: EnqueueRolloutsRequest| {
        asked.send(request.request_id).unwrap();
        if tries.fetch_add(1, Ordering::Relaxed) < 2 { Err(away()) } else { Ok(Default::default()) }
    };
    let world = serve(|_| Script { enqueue: Some(Box::new(enqueue)), ..Default::default() });
    soon(world.client.enqueue([])).await.unwrap();
    let first = next(&mut ids).await;
    assert!(!first.is_empty());
    assert_eq!([next(&mut ids).await, next(&mut ids).await], [first.clone(), first.clone()]);
    soon(world.client.enqueue([])).await.unwrap();
    assert_ne!(next(&mut ids).await, first);
}

#[tokio::test]
async fn a_server_that_stays_away_is_given_up() {
    let enqueue = |_| Err(away());
    let world = serve(|_| Script { enqueue: Some(Box::new(enqueue)), ..Default::default() });
    assert_eq!(soon(world.client.enqueue([])).await.unwrap_err().code(), Some(Code::Unavailable));
    let unreachable = Client::new("127.0.0.1:1").unwrap();
    let error = soon(unreachable.rollout("ro-1")).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::Unavailable));
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn inputs_arrive_whole() {
    let (asked, mut inputs) = unbounded_channel();
    let enqueue = move |request: EnqueueRolloutsRequest| {
        asked.send(String::from_utf8(request.rollouts[0].input_json.clone()).unwrap()).unwrap();
        Ok(Default::default())
    };
    let world = serve(|_| Script { enqueue: Some(Box::new(enqueue)), ..Default::default() });
    let raw = "{\"as\" :  1e2, \"given\": \"é\", \"large\": 123456789012345678901234567890}";
    for (spec, want) in [
        (RolloutSpec::new(&i64::MAX), "9223372036854775807"),
        (RolloutSpec::new(&u64::MAX), "18446744073709551615"),
        (RolloutSpec::new("<&>"), "\"<&>\""),
        (RolloutSpec::new(&RawValue::from_string(raw.into()).unwrap()), raw),
    ] {
        soon(world.client.enqueue([spec.unwrap()])).await.unwrap();
        assert_eq!(next(&mut inputs).await, want);
    }
    let back = Rollout { input_json: raw.into(), ..Default::default() };
    assert_eq!(back.input::<Box<RawValue>>().unwrap().get(), raw);
    assert!(matches!(back.input::<i64>(), Err(Error::Json(_))));
    assert_eq!(back.metadata::<HashMap<String, i64>>().unwrap(), HashMap::new());
    let no_json = HashMap::from([((1, 2), 3)]); // keys that are no texts
    assert!(matches!(RolloutSpec::new(&no_json), Err(Error::Json(_))));
}

fn finished(ids: &[&str]) -> WaitForRolloutsResponse {
    let named = |id: &&str| Rollout { rollout_id: (*id).into(), ..Default::default() };
    WaitForRolloutsResponse { rollouts: ids.iter().map(named).collect(), summary: None }
}

#[tokio::test]
async fn a_wait_goes_on_where_it_broke() {
    let (asked, mut requests) = unbounded_channel();
    let wait = move |request: WaitForRolloutsRequest| {
        asked.send(request.clone()).unwrap();
        let first = Ok(finished(&[&request.rollout_ids[0]]));
        let open_rollout_ids = request.rollout_ids[1..].to_vec();
        let summary = WaitSummary { finished_count: 1, open_count: 1, open_rollout_ids };
        let last = Ok(WaitForRolloutsResponse { rollouts: vec![], summary: Some(summary) });
        Ok(match request.rollout_ids.len() {
            3 => vec![first, Err(away())],
            _ => vec![first, last, Err(away())], // nothing is lost but the end
        })
    };
    let world = serve(|_| Script { wait: Some(Box::new(wait)), ..Default::default() });
    let mut waiting = world.client.wait(WaitForRolloutsRequest {
        rollout_ids: ["a", "b", "c"].map(Into::into).into(),
        min_count: Some(2),
        timeout: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
        ..Default::default()
    });
    let mut got = Vec::new();
    while let Some(rollout) = soon(waiting.try_next()).await.unwrap() {
        got.push(rollout.rollout_id);
    }
    assert_eq!(got, ["a", "b"]);
    assert_eq!(waiting.open_rollout_ids(), ["c"]);
    assert_eq!(next(&mut requests).await.min_count, Some(2));
    let again = next(&mut requests).await;
    assert_eq!((again.rollout_ids, again.min_count), (vec!["b".to_owned(), "c".to_owned()], Some(1)));
    assert!(again.timeout.unwrap().seconds < 3600);
    assert!(requests.try_recv().is_err());
}

#[tokio::test]
async fn a_wait_that_lost_only_its_end_asks_no_more() {
    let wait = |_| Ok(vec![Ok(finished(&["a"])), Err(away())]);
    let world = serve(|_| Script { wait: Some(Box::new(wait)), ..Default::default() });
    let request = WaitForRolloutsRequest { rollout_ids: vec!["a".into()], ..Default::default() };
    let got: Vec<_> = soon(world.client.wait(request).try_collect()).await.unwrap();
    assert_eq!(got.len(), 1);
}

#[tokio::test]
async fn a_failure_that_waiting_does_not_mend_ends_a_stream() {
    let wait = |_| Err(Status::not_found("nobody"));
    let world = serve(|_| Script { wait: Some(Box::new(wait)), ..Default::default() });
    let mut waiting = world.client.wait(WaitForRolloutsRequest::default());
    assert_eq!(soon(waiting.next()).await.unwrap().unwrap_err().code(), Some(Code::NotFound));
    assert!(soon(waiting.next()).await.is_none());
}

#[tokio::test]
async fn a_watch_goes_on_with_its_number() {
    let watch = |request: WatchRolloutsRequest| {
        let after = request.after_completion_number.unwrap_or(7);
        assert_eq!(request.store_id, if after == 7 { "" } else { "store" });
        let rollout = Rollout { completion_number: after + 1, ..Default::default() };
        let message = WatchRolloutsResponse {
            rollouts: vec![rollout],
            through_completion_number: after + 1,
            store_id: "store".into(),
        };
        Ok(vec![Ok(message), Err(away())])
    };
    let world = serve(|_| Script { watch: Some(Box::new(watch)), ..Default::default() });
    let mut watching = world.client.watch(WatchRolloutsRequest::default());
    for number in 8..=10 {
        assert_eq!(soon(watching.try_next()).await.unwrap().unwrap().completion_number, number);
    }
    assert_eq!(watching.store_id(), "store");
}

#[tokio::test]
async fn a_query_that_breaks_yields_each_span_once() {
    let tries = AtomicU32::new(0);
    let query = move |_| {
        let message = |id: u8| {
            let span = OtlpSpan { span_id: vec![id; 8], ..Default::default() };
            let sequence_ids = vec![i64::from(id)];
            let batch = SpanBatch {
                attempt_id: "at-1".into(),
                spans: vec![span],
                sequence_ids,
                ..Default::default()
            };
            Ok(QuerySpansResponse { batches: vec![batch] })
        };
        Ok(match tries.fetch_add(1, Ordering::Relaxed) {
            0 => vec![message(1), message(2), Err(away())],
            _ => vec![message(1), message(2), message(3)],
        })
    };
    let world = serve(|_| Script { query: Some(Box::new(query)), ..Default::default() });
    let spans: Vec<_> = soon(world.client.spans(QuerySpansRequest::default()).try_collect()).await.unwrap();
    assert_eq!(spans.iter().map(|span| span.sequence_id).collect::<Vec<_>>(), [1, 2, 3]);
}

fn part(attempt_id: &str, calls: usize, complete: bool) -> AttemptTriplets {
    AttemptTriplets {
        attempt: Some(AttemptRef { rollout_id: "ro-1".into(), attempt_id: attempt_id.into() }),
        triplets: vec![Triplet::default(); calls],
        complete,
        ..Default::default()
    }
}

#[tokio::test]
async fn triplets_come_whole_and_once_though_the_stream_breaks() {
    let tries = AtomicU32::new(0);
    let triplets = move |_| {
        let answer = |attempts| Ok(ListTripletsResponse { attempts });
        let begun = vec![part("at-1", 1, true), part("at-2", 2, false)];
        Ok(match tries.fetch_add(1, Ordering::Relaxed) {
            0 => vec![answer(begun), Err(away())],
            _ => vec![answer(begun), answer(vec![part("at-2", 3, true)])],
        })
    };
    let world = serve(|_| Script { triplets: Some(Box::new(triplets)), ..Default::default() });
    let all = world.client.triplets(ListTripletsRequest::default()).try_collect::<Vec<_>>();
    let counts = soon(all).await.unwrap().into_iter().map(|attempt| attempt.triplets.len());
    assert_eq!(counts.collect::<Vec<_>>(), [1, 5]);
}

#[tokio::test]
async fn a_closed_client_fails_at_once() {
    let wait = |_| Ok(vec![]);
    let world = serve(|_| Script { wait: Some(Box::new(wait)), ..Default::default() });
    let mut waiting = world.client.wait(WaitForRolloutsRequest::default());
    world.client.close();
    assert_eq!(soon(waiting.next()).await.unwrap().unwrap_err().code(), Some(Code::Cancelled));
    assert_eq!(soon(world.client.enqueue([])).await.unwrap_err().code(), Some(Code::Cancelled));
}

/// Its message would stay in a channel that has been read for the last time.
#[tokio::test]
async fn a_call_that_begins_while_the_client_is_closed_fails() {
    let world = serve(|_| Script::default());
    let mut transport = world.client.transport();
    soon(poll_fn(|context| transport.poll_ready(context))).await.unwrap();
    world.client.close();
    loop {
        let mut later = transport.clone();
        if soon(poll_fn(|context| later.poll_ready(context))).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    let error = soon(transport.call(Request::new(Body::empty()))).await.unwrap_err();
    assert_eq!(Status::from_error(error).message(), "the client is closed");
}

#[test]
fn a_client_serves_one_runtime_after_another() {
    let world = serve(|_| Script::default());
    for _ in 0..2 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(soon(world.client.enqueue([]))).unwrap();
    }
}

#[tokio::test]
async fn a_stub_outlives_its_client() {
    let world = serve(|_| Script::default());
    let mut stub = Client::new(world.address.to_string()).unwrap().stub();
    soon(stub.enqueue_rollouts(EnqueueRolloutsRequest::default())).await.unwrap();
}

#[tokio::test]
async fn the_thread_ends_with_the_last_clone() {
    let world = serve(|_| Script::default());
    let client = Client::new(world.address.to_string()).unwrap();
    soon(client.enqueue([])).await.unwrap();
    let (alive, mut ended) = unbounded_channel::<()>();
    client.background().spawn(async move { alive.closed().await });
    let clone = client.clone();
    drop(client);
    soon(clone.enqueue([])).await.unwrap();
    drop(clone);
    assert!(soon(ended.recv()).await.is_none()); // what ran there was dropped
}
