//! What a runner reports.

use std::fmt::{self, Display, Formatter};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use opentelemetry::trace::{Span as _, Tracer};
use tokio::sync::mpsc::unbounded_channel;

use super::next;
use super::runner::{Input, idle, start};
use super::scripted::{Script, World, away, claim_of, serve};
use crate::failure::Failure;
use crate::proto::*;
use crate::reward::ANNOTATION;
use crate::runner::Runner;
use crate::task::Task;

fn stops(reason: StopReason) -> Vec<Stop> {
    let attempt = AttemptRef { rollout_id: "ro-1".into(), attempt_id: "at-1".into() };
    vec![Stop { attempt: Some(attempt), reason: reason.into() }]
}

async fn stopped_though_it_returns_a_reward(mut world: World) {
    let (told, mut reasons) = unbounded_channel();
    let agent = move |task: Task<Input>| {
        let told = told.clone();
        async move {
            task.tracer.start("step").end();
            task.cancellation.cancelled().await;
            told.send(task.stop_reason())?;
            Ok(1.0) // in spite of the cancellation
        }
    };
    let runner = Runner::new(&world.client, agent).max_rollouts(1);
    start(runner.heartbeat_period(Duration::from_millis(100)));
    world.queue.send(claim_of("ro-1", "1")).unwrap();
    assert_eq!(next(&mut reasons).await, Some(StopReason::Superseded));
    assert_eq!(world.failure().await.r#type, "Cancelled");
    assert!(!world.kept.all().contains(&format!("span {ANNOTATION}")));
}

#[tokio::test]
async fn a_stop_told_by_a_heartbeat_is_never_success() {
    let heartbeat = |request: HeartbeatRequest| {
        let told = if request.attempts.is_empty() { vec![] } else { stops(StopReason::Superseded) };
        Ok(HeartbeatResponse { stops: told, worker: None })
    };
    let world = serve(|_| Script { heartbeat: Some(Box::new(heartbeat)), ..Default::default() });
    stopped_though_it_returns_a_reward(world).await;
}

#[tokio::test]
async fn a_stop_told_by_an_ingest_is_never_success() {
    let world = serve(|kept| {
        let kept = kept.clone();
        let ingest = move |batches: Vec<SpanBatch>| {
            Ok(IngestResult { stops: stops(StopReason::Superseded), ..kept.store(&batches) })
        };
        Script { ingest: Some(Box::new(ingest)), ..Default::default() }
    });
    stopped_though_it_returns_a_reward(world).await;
}

#[tokio::test]
async fn a_stop_told_with_the_last_spans_is_no_success() {
    let ingest = |_| Ok(IngestResult { stops: stops(StopReason::RolloutCancelled), ..Default::default() });
    let mut world = serve(|_| Script { ingest: Some(Box::new(ingest)), ..Default::default() });
    start(Runner::new(&world.client, |_: Task<Input>| async { Ok(1.0) }).max_rollouts(1));
    world.queue.send(claim_of("ro-1", "1")).unwrap();
    let failure = world.failure().await;
    assert_eq!(
        (failure.r#type.as_str(), failure.message.as_str()),
        ("Cancelled", "the rollout was cancelled")
    );
}

#[tokio::test]
async fn an_attempt_that_the_server_does_not_know_is_not_reported() {
    let ingest = |_| Ok(IngestResult { stops: stops(StopReason::UnknownAttempt), ..Default::default() });
    let mut world = serve(|_| Script { ingest: Some(Box::new(ingest)), ..Default::default() });
    let ended = start(Runner::new(&world.client, |_: Task<Input>| async { Ok(1.0) }).max_rollouts(1));
    world.queue.send(claim_of("ro-1", "1")).unwrap();
    super::soon(ended).await.unwrap().unwrap();
    assert!(world.updates.try_recv().is_err());
}

#[derive(Debug, thiserror::Error)]
#[error("outer")]
struct Outer(#[source] std::num::ParseIntError);

async fn fails(task: Task<String>) -> Result<Option<f64>, Failure> {
    match task.input.as_str() {
        "error" => Err(Outer("x".parse::<u8>().unwrap_err()))?,
        "text" => Err(Failure::new("text").kind("Kind")),
        "final" => Err(Failure::new("final").not_retryable()),
        "panic" => panic!("help {}", task.rollout_id()),
        "endless" => Ok(Some(f64::NAN)),
        other => Err(Failure::new(other)),
    }
}

#[tokio::test]
async fn failures_have_type_and_message() {
    let outer = std::any::type_name::<Outer>();
    for (input, kind, message, retryable) in [
        ("error", outer, "outer: invalid digit found in string", None),
        ("text", "Kind", "text", None),
        ("final", "Failure", "final", Some(false)),
        ("panic", "panic", "help ro-1", None),
        ("endless", "lightningstore::error::Error", "a reward must be a finite number, not NaN", None),
    ] {
        let mut world = serve(|_| Script::default());
        start(Runner::new(&world.client, fails).max_rollouts(1));
        world.queue.send(claim_of("ro-1", &format!("{input:?}"))).unwrap();
        let update = next(&mut world.updates).await;
        let attempt = update.attempt.unwrap();
        assert_eq!(attempt.status(), AttemptStatus::Failed);
        assert_eq!(update.update_mask.unwrap().paths, ["status", "failure"]);
        let failure = attempt.failure.unwrap();
        assert_eq!((failure.r#type.as_str(), failure.message.as_str()), (kind, message));
        assert_eq!(failure.retryable, retryable);
    }
}

/// A panic's payload that panics when it is dropped, with another one.
struct Explosive(u32);

impl Drop for Explosive {
    fn drop(&mut self) {
        if self.0 > 0 {
            std::panic::panic_any(Explosive(self.0 - 1));
        }
    }
}

/// An error that is its own cause, and can or cannot be formatted.
#[derive(Debug)]
enum Wild {
    Ring,
    Silent,
    Shy,
    Endless,
}

impl Display for Wild {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring => f.write_str("ring"),
            Self::Silent => panic!("no text"),
            Self::Shy => Err(fmt::Error),
            Self::Endless => loop {
                f.write_str("é")?;
            },
        }
    }
}

impl std::error::Error for Wild {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Shy => panic!("no source"),
            _ => Some(self),
        }
    }
}

async fn is_wild(task: Task<String>) -> Result<Option<f64>, Failure> {
    match task.input.as_str() {
        "payload" => std::panic::panic_any(7),
        "explosive" => std::panic::panic_any(Explosive(3)),
        "ring" => Err(Wild::Ring)?,
        "silent" => Err(Wild::Silent)?,
        "shy" => Err(Wild::Shy)?,
        "endless" => Err(Wild::Endless)?,
        "silent text" => Err(Failure::new(Wild::Silent)),
        "infinite" => Ok(Some(f64::NEG_INFINITY)),
        other => Err(Failure::new("long").kind(other.repeat(1000))),
    }
}

#[tokio::test]
async fn whatever_a_function_does_is_reported() {
    let wild = std::any::type_name::<Wild>();
    let (unformatted, endless) = ("a message that cannot be formatted", "é".repeat(8_192));
    for (input, kind, message) in [
        ("payload", "panic", "a panic without a text"),
        ("explosive", "panic", "a panic without a text"),
        ("ring", wild, "ring"),
        ("silent", wild, unformatted),
        ("shy", wild, unformatted),
        ("endless", wild, &endless),
        ("silent text", "Failure", unformatted),
        ("infinite", "lightningstore::error::Error", "a reward must be a finite number, not -inf"),
        ("kind", &"kind".repeat(64), "long"),
    ] {
        let mut world = serve(|_| Script::default());
        let ended = start(Runner::new(&world.client, is_wild).max_rollouts(1));
        world.queue.send(claim_of("ro-1", &format!("{input:?}"))).unwrap();
        let failure = world.failure().await;
        assert_eq!((failure.r#type.as_str(), failure.message.as_str()), (kind, message), "{input}");
        super::soon(ended).await.unwrap().unwrap();
    }
}

/// A log that breaks over each failure of an attempt.
struct Broken;

impl tracing::Subscriber for Broken {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        assert!(!event.metadata().target().starts_with("lightningstore::work"), "the log is broken");
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test] // whose one thread has the log
async fn a_log_that_panics_costs_no_report() {
    let _log = tracing::subscriber::set_default(Broken);
    let mut world = serve(|_| Script::default());
    let ended = start(Runner::new(&world.client, fails).max_rollouts(1));
    world.queue.send(claim_of("ro-1", "\"text\"")).unwrap();
    assert_eq!(world.failure().await.message, "text");
    super::soon(ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_report_that_is_refused_is_repeated_as_a_plain_failure() {
    for (input, retryable) in [("\"final\"", Some(false)), ("\"fine\"", None)] {
        let (told, mut reports) = unbounded_channel();
        let refuse = move |request: UpdateAttemptRequest| {
            let failure = request.attempt.unwrap_or_default().failure;
            let is_plain = failure.as_ref().is_some_and(|failure| failure.r#type == "ReportRefused");
            told.send(failure).unwrap();
            if is_plain { Ok(()) } else { Err(tonic::Status::invalid_argument("täglich")) }
        };
        let mut world = serve(|_| Script { update: Some(Box::new(refuse)), ..Default::default() });
        let agent = |task: Task<String>| async move {
            if task.input == "fine" { Ok(None) } else { fails(task).await }
        };
        start(Runner::new(&world.client, agent).max_rollouts(1));
        world.queue.send(claim_of("ro-1", input)).unwrap();
        let failure = world.failure().await;
        assert_eq!(next(&mut reports).await.is_none(), retryable.is_none());
        let message = "the server rejected the report: InvalidArgument: t\\u{e4}glich";
        assert_eq!((failure.message.as_str(), failure.retryable), (message, retryable));
    }
}

#[tokio::test]
async fn a_claim_without_its_input_is_filled() {
    let tries = AtomicU32::new(0);
    let rollout = move |request: GetRolloutRequest| match tries.fetch_add(1, Ordering::Relaxed) {
        0 => Err(away()),
        _ => Ok(GetRolloutResponse { rollout: Some(claim_of(&request.rollout_id, "7")) }),
    };
    let mut world = serve(|_| Script { rollout: Some(Box::new(rollout)), ..Default::default() });
    let agent = |task: Task<i32>| async move {
        assert_eq!((task.input, task.attempt_id()), (7, "at-1"));
        Ok(None)
    };
    start(Runner::new(&world.client, agent).max_rollouts(1));
    world.queue.send(Rollout { payloads_omitted: true, ..claim_of("ro-1", "") }).unwrap();
    assert_eq!(world.outcome().await.status(), AttemptStatus::Succeeded);
}

#[tokio::test]
async fn an_input_that_does_not_fit_is_not_retried() {
    let mut world = serve(|_| Script::default());
    start(Runner::new(&world.client, |_: Task<i32>| async { Ok(None) }).max_rollouts(1));
    world.queue.send(claim_of("ro-1", "\"text\"")).unwrap();
    let failure = world.failure().await;
    assert!(failure.message.contains("invalid type"), "{}", failure.message);
    assert_eq!(failure.retryable, Some(false));
}

#[tokio::test]
async fn spans_are_stored_before_the_outcome_though_both_fail_at_first() {
    let mut world = serve(|kept| {
        let kept = kept.clone();
        let (ingests, updates) = (AtomicU32::new(0), AtomicU32::new(0));
        let fails = |count: &AtomicU32| count.fetch_add(1, Ordering::Relaxed) < 5;
        let ingest = move |batches: Vec<SpanBatch>| {
            if fails(&ingests) { Err(away()) } else { Ok(kept.store(&batches)) }
        };
        let update = move |_| if fails(&updates) { Err(away()) } else { Ok(()) };
        Script { ingest: Some(Box::new(ingest)), update: Some(Box::new(update)), ..Default::default() }
    });
    let agent = |task: Task<Input>| async move {
        task.tracer.start("step").end();
        Ok(0.5)
    };
    start(Runner::new(&world.client, agent).max_rollouts(1));
    world.queue.send(claim_of("ro-1", "1")).unwrap();
    let update = next(&mut world.updates).await;
    assert_eq!(update.sent_span_count, Some(2));
    let reward = format!("span {ANNOTATION}");
    assert_eq!(world.kept.all(), ["span step", &reward, "update ATTEMPT_STATUS_SUCCEEDED"]);
}

#[tokio::test]
async fn resources_that_are_gone_fail_the_attempt() {
    let mut world = serve(|_| Script::default()); // which knows no GetResources
    start(Runner::new(&world.client, idle).max_rollouts(1));
    let mut rollout = claim_of("ro-1", "1");
    rollout.latest_attempt.as_mut().unwrap().resources_id = "rs-1".into();
    world.queue.send(rollout).unwrap();
    let failure = world.failure().await;
    assert!(failure.message.starts_with("Unimplemented"), "{}", failure.message);
}
