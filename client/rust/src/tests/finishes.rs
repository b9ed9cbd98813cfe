//! How a runner learns that a rollout it works on has finished.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use super::runner::{Input, start};
use super::scripted::{Script, World, claim_of, serve};
use super::{next, soon};
use crate::failure::Failure;
use crate::finishes::Finishes;
use crate::outbox::AttemptKey;
use crate::proto::{
    HeartbeatRequest, HeartbeatResponse, Rollout, Stop, StopReason, WaitForRolloutsRequest,
    WaitForRolloutsResponse, WaitSummary,
};
use crate::runner::Runner;
use crate::task::Task;

/// Longer than any test: what arrives has not waited for a heartbeat.
const NEVER: Duration = Duration::from_secs(3600);

fn finish_of(id: &str) -> WaitForRolloutsResponse {
    let rollout = Rollout { rollout_id: id.into(), ..Default::default() };
    WaitForRolloutsResponse { rollouts: vec![rollout], summary: Some(WaitSummary::default()) }
}

/// Sends no span.
async fn until_cancelled(task: Task<Input>) -> Result<Option<f64>, Failure> {
    task.cancellation.cancelled().await;
    Ok(None)
}

fn sorted(mut ids: Vec<String>) -> Vec<String> {
    ids.sort();
    ids
}

#[tokio::test]
async fn the_finish_of_a_rollout_sends_a_heartbeat_that_says_why() {
    let cancelled = Arc::new(AtomicBool::new(false));
    let is_cancelled = cancelled.clone();
    let (beaten, mut beats) = unbounded_channel();
    let heartbeat = move |request: HeartbeatRequest| {
        beaten.send(()).unwrap();
        let mut answer = HeartbeatResponse::default();
        if is_cancelled.load(Ordering::SeqCst) {
            let attempt = request.attempts.first().cloned();
            answer.stops.push(Stop { attempt, reason: StopReason::RolloutCancelled.into() });
        }
        Ok(answer)
    };
    let (asked, mut waits) = unbounded_channel();
    let wait = move |request: WaitForRolloutsRequest| {
        asked.send(request.rollout_ids).unwrap();
        cancelled.store(true, Ordering::SeqCst);
        Ok(vec![Ok(finish_of("ro-1"))])
    };
    let mut world = serve(|_| Script {
        heartbeat: Some(Box::new(heartbeat)),
        wait: Some(Box::new(wait)),
        ..Default::default()
    });
    let runner = Runner::new(&world.client, until_cancelled).heartbeat_period(NEVER).max_rollouts(1);
    let ended = start(runner);
    world.queue.send(claim_of("ro-1", "1")).unwrap();
    assert_eq!(next(&mut waits).await, ["ro-1"]);
    let failure = world.failure().await;
    assert_eq!(
        (failure.r#type.as_str(), failure.message.as_str()),
        ("Cancelled", "the rollout was cancelled")
    );
    soon(ended).await.unwrap().unwrap();
    let mut count = 0;
    while beats.try_recv().is_ok() {
        count += 1;
    }
    assert_eq!(count, 2, "the first heartbeat, and one for the finish");
}

#[tokio::test]
async fn without_the_stream_heartbeats_say_what_to_stop() {
    let (asked, mut waits) = unbounded_channel();
    let heartbeat = move |request: HeartbeatRequest| {
        let mut answer = HeartbeatResponse::default();
        if waits.try_recv().is_ok() {
            let attempt = request.attempts.first().cloned();
            answer.stops.push(Stop { attempt, reason: StopReason::RolloutCancelled.into() });
        }
        Ok(answer)
    };
    let heartbeat = Mutex::new(heartbeat);
    let wait = move |_| {
        asked.send(()).unwrap();
        Err(Status::unimplemented("no such method"))
    };
    let mut world = serve(|_| Script {
        heartbeat: Some(Box::new(move |request| (heartbeat.lock().unwrap())(request))),
        wait: Some(Box::new(wait)),
        ..Default::default()
    });
    let runner = Runner::new(&world.client, until_cancelled).heartbeat_period(Duration::from_millis(50));
    let ended = start(runner.max_rollouts(1));
    world.queue.send(claim_of("ro-1", "1")).unwrap();
    assert_eq!(world.failure().await.r#type, "Cancelled");
    soon(ended).await.unwrap().unwrap();
}

/// Watches the rollouts of a server until it is dropped.
struct Watch {
    finishes: Arc<Finishes>,
    /// One event for each finish that is reported.
    reports: UnboundedReceiver<()>,
    _running: AbortOnDropHandle<()>,
}

impl Watch {
    fn start(world: &World, pause: Duration) -> Self {
        let (report, reports) = unbounded_channel();
        let finishes = Arc::new(Finishes::new(&world.client, pause, move || report.send(()).unwrap()));
        let watching = finishes.clone();
        let _running = AbortOnDropHandle::new(tokio::spawn(async move { watching.run().await }));
        Self { finishes, reports, _running }
    }

    fn add(&self, id: &str) {
        self.finishes.add(AttemptKey::new(id, "at-1"));
    }

    fn remove(&self, id: &str) {
        self.finishes.remove(&AttemptKey::new(id, "at-1"));
    }
}

#[tokio::test]
async fn one_stream_covers_all_rollouts_and_ends_with_the_last() {
    let (asked, mut waits) = unbounded_channel();
    let wait = move |request: WaitForRolloutsRequest| {
        asked.send(sorted(request.rollout_ids)).unwrap();
        Ok(Vec::new())
    };
    let (closed, mut closes) = unbounded_channel();
    let script = Script { wait: Some(Box::new(wait)), closed: Some(closed), ..Default::default() };
    let world = serve(|_| script);
    let watch = Watch::start(&world, NEVER);
    watch.add("ro-1");
    watch.add("ro-2");
    assert_eq!(next(&mut waits).await, ["ro-1", "ro-2"]);
    watch.remove("ro-1");
    watch.add("ro-3");
    assert_eq!(next(&mut waits).await, ["ro-2", "ro-3"]);
    next(&mut closes).await; // the first one, which the second replaces
    assert!(waits.try_recv().is_err() && closes.try_recv().is_err());
    watch.remove("ro-2");
    watch.remove("ro-3");
    next(&mut closes).await;
    watch.add("ro-4");
    assert_eq!(next(&mut waits).await, ["ro-4"]);
}

#[tokio::test]
async fn finishes_are_reported_while_the_rollout_is_worked_on_and_once() {
    let (asked, mut waits) = unbounded_channel();
    let wait = move |request: WaitForRolloutsRequest| {
        asked.send(sorted(request.rollout_ids)).unwrap();
        let mut finish = finish_of("ro-1");
        finish.rollouts.extend(finish_of("ro-2").rollouts);
        finish.summary = None;
        Ok(vec![Ok(finish)])
    };
    let (closed, _closes) = unbounded_channel();
    let script = Script { wait: Some(Box::new(wait)), closed: Some(closed), ..Default::default() };
    let world = serve(|_| script);
    let mut watch = Watch::start(&world, NEVER);
    watch.add("ro-2");
    watch.add("ro-3");
    assert_eq!(next(&mut waits).await, ["ro-2", "ro-3"]);
    next(&mut watch.reports).await; // not of ro-1, which the runner does not work on
    watch.add("ro-4");
    assert_eq!(next(&mut waits).await, ["ro-3", "ro-4"]);
    assert!(watch.reports.try_recv().is_err());
}

#[tokio::test]
async fn a_stream_that_fails_is_opened_again_after_the_pause() {
    let (asked, mut waits) = unbounded_channel();
    let tries = AtomicU32::new(0);
    let wait = move |request: WaitForRolloutsRequest| {
        asked.send(sorted(request.rollout_ids)).unwrap();
        match tries.fetch_add(1, Ordering::Relaxed) {
            0 => Err(Status::unimplemented("no such method")),
            _ => Ok(vec![Ok(finish_of("ro-2"))]),
        }
    };
    let world = serve(|_| Script { wait: Some(Box::new(wait)), ..Default::default() });
    let mut watch = Watch::start(&world, Duration::from_millis(700));
    watch.add("ro-1");
    assert_eq!(next(&mut waits).await, ["ro-1"]);
    watch.add("ro-2"); // old enough before the pause is over
    assert_eq!(next(&mut waits).await, ["ro-1", "ro-2"]);
    next(&mut watch.reports).await;
}
