//! Spans on their way to the server.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use opentelemetry::trace::{Span as _, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, Span, SpanData, SpanExporter as _, SpanProcessor};
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::timeout;

use super::local::logged;
use super::scripted::{Script, World, away, serve};
use super::{make_spans, next, soon};
use crate::client::Client;
use crate::exporter::{MAX_SHUTDOWN, SpanExporter};
use crate::proto::*;

fn exporter_of(world: &World) -> SpanExporter {
    SpanExporter::new(&world.client).attempt("ro-1", "at-1")
}

fn lost_world() -> World {
    serve(|_| Script { ingest: Some(Box::new(|_| Err(away()))), ..Default::default() })
}

#[tokio::test]
async fn what_was_not_acknowledged_is_sent_again_and_nothing_else() {
    let world = serve(|kept| {
        let (kept, streams) = (kept.clone(), AtomicU32::new(0));
        let ingest = move |batches: Vec<SpanBatch>| {
            assert_eq!(batches[0].rollout_id, "ro-1");
            if streams.fetch_add(1, Ordering::Relaxed) < 5 { Err(away()) } else { Ok(kept.store(&batches)) }
        };
        Script { ingest: Some(Box::new(ingest)), ..Default::default() }
    });
    let exporter = exporter_of(&world);
    make_spans(&exporter, &["a", "b"]);
    soon(exporter.flush()).await;
    make_spans(&exporter, &["c"]);
    soon(exporter.flush()).await;
    assert_eq!(soon(exporter.shutdown(Duration::from_secs(5))).await, 0);
    assert_eq!(world.kept.all(), ["span a", "span b", "span c"]);
    assert_eq!(exporter.dropped(), 0);
}

#[tokio::test]
async fn spans_beyond_the_buffer_are_dropped_and_counted() {
    let world = lost_world();
    let exporter = exporter_of(&world).max_buffer_bytes(1000);
    let names: Vec<_> = (0..100).map(|n| format!("span {n}")).collect();
    make_spans(&exporter, &names.iter().map(String::as_str).collect::<Vec<_>>());
    let dropped = exporter.dropped();
    assert!(0 < dropped && dropped < 100, "{dropped}");
    assert!(timeout(Duration::from_millis(50), exporter.flush()).await.is_err());
    assert_eq!(soon(exporter.shutdown(Duration::from_millis(50))).await, 100 - dropped);
    make_spans(&exporter, &["late"]);
    assert_eq!(exporter.dropped(), 101); // those not stored at the end are lost, and counted
}

#[test] // outside of any runtime, as OpenTelemetry's SDK calls it
fn a_shutdown_holds_nobody_up_for_long() {
    let world = lost_world();
    let exporter = exporter_of(&world);
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    provider.tracer("test").start("a").end();
    let began = Instant::now();
    provider.shutdown().unwrap_err();
    assert!(began.elapsed() < 3 * MAX_SHUTDOWN);
    assert_eq!(exporter.dropped(), 1);
}

#[tokio::test] // the one thread of the runtime is blocked by it
async fn a_blocking_flush_waits_until_all_is_stored() {
    let world = serve(|_| Script::default());
    let exporter = exporter_of(&world);
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter.clone()).build();
    provider.tracer("test").start("a").end();
    provider.force_flush().unwrap(); // hands it to the exporter
    exporter.force_flush().unwrap();
    assert_eq!(world.kept.all(), ["span a"]);
    provider.shutdown().unwrap();
}

/// A processor that does not care for the end.
#[derive(Debug)]
struct Unflushed(SpanExporter);

impl SpanProcessor for Unflushed {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.0.add(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

#[tokio::test]
async fn what_the_last_clone_leaves_is_still_sent() {
    let (arrived, mut spans) = unbounded_channel();
    let ingest = move |batches: Vec<SpanBatch>| {
        arrived.send(batches.len()).unwrap();
        Ok(IngestResult::default())
    };
    let world = serve(|_| Script { ingest: Some(Box::new(ingest)), ..Default::default() });
    let client = Client::new(world.address.to_string()).unwrap();
    let exporter = SpanExporter::new(&client).attempt("ro-1", "at-1");
    let provider = SdkTracerProvider::builder().with_span_processor(Unflushed(exporter)).build();
    provider.tracer("test").start("a").end();
    drop((provider, client));
    assert_eq!(next(&mut spans).await, 1);
}

#[tokio::test]
async fn a_flush_ends_with_a_closed_client() {
    let world = lost_world();
    let exporter = exporter_of(&world);
    make_spans(&exporter, &["a"]);
    world.client.close();
    soon(exporter.flush()).await;
    make_spans(&exporter, &["b"]);
    soon(exporter.flush()).await;
    assert_eq!(exporter.dropped(), 2);
    let unused = exporter_of(&world);
    make_spans(&unused, &["c"]);
    soon(unused.flush()).await;
    assert_eq!(unused.dropped(), 1);
}

#[tokio::test]
async fn spans_say_themselves_where_they_belong() {
    let (filed, mut arrived) = unbounded_channel();
    let ingest = move |batches: Vec<SpanBatch>| {
        for batch in batches {
            let named = batch.resource.is_some_and(|resource| !resource.attributes.is_empty());
            for span in batch.spans {
                let ids = (batch.rollout_id.clone(), batch.attempt_id.clone());
                filed.send((span.name, ids.0, ids.1, batch.sequence_ids.clone(), named)).unwrap();
            }
        }
        Ok(IngestResult::default())
    };
    let world = serve(|_| Script { ingest: Some(Box::new(ingest)), ..Default::default() });
    let exporter = SpanExporter::new(&world.client);
    let ids = |rollout: &'static str, attempt: &'static str| {
        [
            KeyValue::new("agentlightning.rollout_id", rollout),
            KeyValue::new("agentlightning.attempt_id", attempt),
        ]
    };
    let resource = Resource::builder_empty().with_attributes(ids("ro-r", "at-r")).build();
    let provider =
        SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).with_resource(resource).build();
    let tracer = provider.tracer("test");
    tracer.start("resource").end();
    let number = KeyValue::new("agentlightning.span_sequence_id", 7);
    let attributes = ids("ro-s", "at-s").into_iter().chain([number]);
    tracer.span_builder("own").with_attributes(attributes).start(&tracer).end();
    make_spans(&exporter, &["nobody's"]);
    soon(exporter.flush()).await;
    let expected = ("resource".into(), "ro-r".into(), "at-r".into(), vec![], true);
    assert_eq!(next(&mut arrived).await, expected);
    assert_eq!(next(&mut arrived).await, ("own".into(), "ro-s".into(), "at-s".into(), vec![7], true));
    assert_eq!(exporter.dropped(), 1);
}

#[tokio::test]
async fn a_bad_span_costs_no_other() {
    let world = serve(|kept| {
        let kept = kept.clone();
        let ingest = move |batches: Vec<SpanBatch>| {
            let mut result = IngestResult::default();
            for (index, batch) in batches.into_iter().enumerate() {
                if !batch.spans.iter().any(|span| span.name == "bad") {
                    kept.store(&[batch]);
                    continue;
                }
                result.rejected_count += batch.spans.len() as i64;
                let reason = ErrorReason::FieldInvalid.into();
                let rejection = BatchRejection { message_index: index as i64, reason, ..Default::default() };
                result.rejections.push(rejection);
            }
            Ok(result)
        };
        Script { ingest: Some(Box::new(ingest)), ..Default::default() }
    });
    let exporter = exporter_of(&world);
    make_spans(&exporter, &["a", "bad", "b"]);
    soon(exporter.flush()).await;
    assert_eq!(world.kept.all(), ["span a", "span b"]);
    assert_eq!(exporter.dropped(), 1);
}

#[tokio::test]
async fn ids_beyond_the_limit_of_attributes_are_missed_aloud() {
    let world = serve(|_| Script::default());
    let exporter = SpanExporter::new(&world.client);
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let lines = logged(|| {
        let mut span = provider.tracer("test").start("crowded");
        (0..128).for_each(|n| span.set_attribute(KeyValue::new(format!("key {n}"), n)));
        span.set_attribute(KeyValue::new("agentlightning.rollout_id", "ro-1"));
        span.set_attribute(KeyValue::new("agentlightning.attempt_id", "at-1"));
        span.end();
    });
    assert_eq!(exporter.dropped(), 1);
    let told = lines.iter().any(|line| line.contains("span crowded, whose provider dropped attributes"));
    assert!(told, "{lines:?}");
}

#[tokio::test]
async fn spans_of_a_batch_that_are_refused_are_counted_and_the_others_not_sent_again() {
    let (asked, mut streams) = unbounded_channel();
    let ingest = move |batches: Vec<SpanBatch>| {
        asked.send(batches.len()).unwrap();
        let rejections = vec![BatchRejection { span_count: 2, ..Default::default() }];
        Ok(IngestResult { accepted_count: 1, rejected_count: 2, rejections, ..Default::default() })
    };
    let world = serve(|_| Script { ingest: Some(Box::new(ingest)), ..Default::default() });
    let exporter = exporter_of(&world);
    make_spans(&exporter, &["a", "b", "c"]);
    soon(exporter.flush()).await;
    assert_eq!(exporter.dropped(), 2);
    next(&mut streams).await;
    streams.try_recv().unwrap_err();
}

#[tokio::test]
async fn refusals_without_a_reason_are_counted() {
    let ingest = |_| Ok(IngestResult { rejected_count: 2, ..Default::default() });
    let world = serve(|_| Script { ingest: Some(Box::new(ingest)), ..Default::default() });
    let exporter = exporter_of(&world);
    make_spans(&exporter, &["a", "b"]);
    soon(exporter.flush()).await;
    assert_eq!(exporter.dropped(), 2);
}

#[tokio::test]
async fn messages_stay_small() {
    let (counted, mut counts) = unbounded_channel();
    let ingest = move |batches: Vec<SpanBatch>| {
        batches.iter().for_each(|batch| counted.send(batch.spans.len()).unwrap());
        Ok(IngestResult::default())
    };
    let world = serve(|_| Script { ingest: Some(Box::new(ingest)), ..Default::default() });
    let exporter = exporter_of(&world);
    let large = "x".repeat(400_000);
    make_spans(&exporter, &[&large, &large, &large, &"x".repeat(5_000_000)]);
    soon(exporter.flush()).await;
    let mut total = 0;
    while let Ok(count) = counts.try_recv() {
        assert!(count <= 2, "{count}");
        total += count;
    }
    assert_eq!((total, exporter.dropped()), (3, 1)); // the last is beyond the server's limit
}

#[tokio::test]
async fn rewards_hang_under_the_current_span() {
    let (arrived, mut spans) = unbounded_channel();
    let ingest = move |batches: Vec<SpanBatch>| {
        batches.into_iter().flat_map(|batch| batch.spans).for_each(|span| arrived.send(span).unwrap());
        Ok(IngestResult::default())
    };
    let world = serve(|_| Script { ingest: Some(Box::new(ingest)), ..Default::default() });
    let exporter = exporter_of(&world);
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let tracer = provider.tracer("test");
    let parent = tracer.in_span("step", |context| {
        crate::emit_reward(&tracer, 1.0).unwrap();
        context.span().span_context().span_id()
    });
    soon(exporter.flush()).await;
    assert_eq!(next(&mut spans).await.parent_span_id, parent.to_bytes());
}

#[tokio::test]
async fn an_upload_ends_when_the_client_is_closed_before_it_is_connected() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap(); // accepts and never says a word
    let client = Client::new(silent.local_addr().unwrap().to_string()).unwrap();
    let exporter = SpanExporter::new(&client).attempt("ro-1", "at-1");
    make_spans(&exporter, &["a"]);
    let mut stub = client.stub();
    let upload = tokio::spawn(async move { stub.ingest_spans(futures_util::stream::pending()).await });
    let flushing = exporter.clone();
    let flushed = tokio::spawn(async move { flushing.flush().await });
    let accepted = tokio::task::spawn_blocking(move || silent.accept().unwrap()); // the calls wait for it
    let _connection = soon(accepted).await.unwrap();
    client.close();
    assert!(soon(upload).await.unwrap().is_err());
    soon(flushed).await.unwrap();
    assert_eq!(exporter.dropped(), 1);
}
