//! Claims, heartbeats and the end of a runner.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use tokio::sync::Notify;
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::JoinHandle;

use super::scripted::{Script, away, claim_of, serve};
use super::{Dropped, PATIENCE, next, soon};
use crate::error::Error;
use crate::failure::Failure;
use crate::heartbeats::Heartbeats;
use crate::outbox::AttemptKey;
use crate::proto::*;
use crate::runner::Runner;
use crate::task::Task;

pub(super) type Input = Box<RawValue>;

pub(super) async fn idle(_: Task<Input>) -> Result<Option<f64>, Failure> {
    Ok(None)
}

pub(super) fn start(runner: Runner) -> JoinHandle<Result<(), Error>> {
    tokio::spawn(runner.run())
}

fn one_claim() -> DequeueRolloutsResponse {
    DequeueRolloutsResponse { rollouts: vec![claim_of("ro-1", "1")] }
}

#[tokio::test]
async fn a_lost_claim_is_found_by_its_request_id() {
    let (asked, mut ids) = unbounded_channel();
    let tries = AtomicU32::new(0);
    let dequeue = move |request: DequeueRolloutsRequest| {
        asked.send(request.request_id).unwrap();
        match tries.fetch_add(1, Ordering::Relaxed) {
            0 => Err(tonic::Status::cancelled("from a server that is shutting down")),
            1 => Err(tonic::Status::deadline_exceeded("late")),
            2..6 => Err(away()),
            _ => Ok(one_claim()),
        }
    };
    let mut world = serve(|_| Script { dequeue: Some(Box::new(dequeue)), ..Default::default() });
    let ended = start(Runner::new(&world.client, idle).max_rollouts(1));
    let first = next(&mut ids).await;
    assert!(!first.is_empty());
    for _ in 0..6 {
        assert_eq!(next(&mut ids).await, first);
    }
    soon(ended).await.unwrap().unwrap();
    assert_eq!(world.outcome().await.status(), AttemptStatus::Succeeded);
}

#[tokio::test]
async fn a_claim_that_was_under_way_at_the_stop_is_worked_on() {
    let (asked, mut ids) = unbounded_channel();
    let (has_stopped, stopped) = std::sync::mpsc::channel();
    let stopped = Mutex::new(stopped);
    let tries = AtomicU32::new(0);
    let dequeue = move |request: DequeueRolloutsRequest| {
        asked.send(request.request_id).unwrap();
        if tries.fetch_add(1, Ordering::Relaxed) == 0 {
            stopped.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            std::thread::sleep(Duration::from_millis(300)); // its answer comes after the stop
        }
        Ok(one_claim())
    };
    let mut world = serve(|_| Script { dequeue: Some(Box::new(dequeue)), ..Default::default() });
    let runner = Runner::new(&world.client, idle);
    let handle = runner.handle();
    let ended = start(runner);
    let id = next(&mut ids).await;
    handle.stop();
    has_stopped.send(()).unwrap();
    soon(ended).await.unwrap().unwrap();
    assert_eq!(next(&mut ids).await, id);
    assert_eq!(world.outcome().await.status(), AttemptStatus::Succeeded);
}

#[tokio::test]
async fn a_runner_that_was_stopped_before_claims_nothing() {
    let (asked, mut ids) = unbounded_channel();
    let dequeue = move |request: DequeueRolloutsRequest| {
        asked.send(request.request_id).unwrap();
        Ok(one_claim())
    };
    let world = serve(|_| Script { dequeue: Some(Box::new(dequeue)), ..Default::default() });
    let runner = Runner::new(&world.client, idle);
    runner.handle().stop();
    soon(runner.run()).await.unwrap();
    assert!(ids.try_recv().is_err());
}

#[tokio::test]
async fn a_graceful_stop_finishes_what_runs() {
    let mut world = serve(|_| Script::default());
    let (began, mut working) = unbounded_channel();
    let finish = Arc::new(Notify::new());
    let go_on = finish.clone();
    let agent = move |task: Task<Input>| {
        let (began, go_on) = (began.clone(), go_on.clone());
        async move {
            let told = go_on.notified();
            began.send(task.rollout_id().to_owned())?;
            told.await;
            assert!(!task.cancellation.is_cancelled());
            Ok(None)
        }
    };
    let runner = Runner::new(&world.client, agent).concurrency(2);
    let handle = runner.handle();
    let ended = start(runner);
    world.queue.send(claim_of("ro-1", "1")).unwrap();
    world.queue.send(claim_of("ro-2", "1")).unwrap();
    next(&mut working).await; // they run side by side
    next(&mut working).await;
    handle.stop();
    world.queue.send(claim_of("ro-3", "1")).unwrap();
    finish.notify_waiters();
    soon(ended).await.unwrap().unwrap();
    for _ in 0..2 {
        assert_eq!(world.outcome().await.status(), AttemptStatus::Succeeded);
    }
    assert!(world.updates.try_recv().is_err(), "claimed after the stop");
}

#[tokio::test]
async fn no_more_run_at_a_time_than_there_are_places() {
    let mut world = serve(|_| Script::default());
    let active = Arc::new((AtomicU32::new(0), AtomicU32::new(0)));
    let seen = active.clone();
    let agent = move |_: Task<Input>| {
        let active = seen.clone();
        async move {
            let now = active.0.fetch_add(1, Ordering::SeqCst) + 1;
            active.1.fetch_max(now, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await; // long enough to overlap
            active.0.fetch_sub(1, Ordering::SeqCst);
            Ok(None)
        }
    };
    for number in 0..6 {
        world.queue.send(claim_of(&format!("ro-{number}"), "1")).unwrap();
    }
    let runner = Runner::new(&world.client, agent).concurrency(2).max_rollouts(6);
    soon(runner.run()).await.unwrap();
    for _ in 0..6 {
        assert_eq!(world.outcome().await.status(), AttemptStatus::Succeeded);
    }
    assert!(active.1.load(Ordering::SeqCst) <= 2);
}

#[tokio::test]
async fn a_cancelled_runner_cancels_what_runs() {
    let mut world = serve(|_| Script::default());
    let (began, mut working) = unbounded_channel();
    let agent = move |task: Task<Input>| {
        let began = began.clone();
        async move {
            began.send(())?;
            task.cancellation.cancelled().await;
            assert_eq!(task.stop_reason(), Some(StopReason::Unspecified));
            Ok(1.0)
        }
    };
    let runner = Runner::new(&world.client, agent);
    let handle = runner.handle();
    let ended = start(runner);
    world.queue.send(claim_of("ro-1", "1")).unwrap();
    next(&mut working).await;
    handle.cancel();
    soon(ended).await.unwrap().unwrap();
    let failure = world.failure().await;
    assert_eq!((failure.r#type.as_str(), failure.message.as_str()), ("Cancelled", "the runner is stopping"));
}

#[tokio::test]
async fn a_function_that_heeds_nothing_is_left_behind() {
    let mut world = serve(|_| Script::default());
    let (began, mut working) = unbounded_channel();
    let agent = move |_: Task<Input>| {
        let began = began.clone();
        async move {
            began.send(())?;
            std::future::pending::<Result<Option<f64>, Failure>>().await
        }
    };
    let runner = Runner::new(&world.client, agent);
    let handle = runner.handle();
    let ended = start(runner);
    world.queue.send(claim_of("ro-1", "1")).unwrap();
    next(&mut working).await;
    handle.cancel();
    soon(ended).await.unwrap().unwrap();
    assert_eq!(world.failure().await.r#type, "Cancelled");
}

#[tokio::test]
async fn a_dropped_runner_aborts_its_functions_and_falls_silent() {
    let (beat, mut beats) = unbounded_channel();
    let heartbeat = move |request: HeartbeatRequest| {
        let _ = beat.send(request.attempts.len());
        Ok(HeartbeatResponse::default())
    };
    let mut world = serve(|_| Script { heartbeat: Some(Box::new(heartbeat)), ..Default::default() });
    let (gone, mut aborted) = unbounded_channel();
    let agent = move |_: Task<Input>| {
        let dropped = Dropped(gone.clone());
        async move {
            let _dropped = dropped;
            std::future::pending::<Result<Option<f64>, Failure>>().await
        }
    };
    let ended = start(Runner::new(&world.client, agent).heartbeat_period(Duration::from_millis(50)));
    world.queue.send(claim_of("ro-1", "1")).unwrap();
    while next(&mut beats).await == 0 {}
    ended.abort();
    next(&mut aborted).await;
    // The heartbeats' half of the channel is the script's; a call that is under way may still arrive.
    let mut late = 0;
    while tokio::time::timeout(Duration::from_millis(500), beats.recv()).await.is_ok() {
        late += 1;
        assert!(late < 3, "heartbeats go on");
    }
    assert!(world.updates.try_recv().is_err());
}

#[tokio::test]
async fn heartbeats_of_many_attempts_are_split() {
    let (beaten, mut beats) = unbounded_channel();
    let heartbeat = move |request: HeartbeatRequest| {
        beaten.send(request.attempts.len()).unwrap();
        Ok(HeartbeatResponse::default())
    };
    let world = serve(|_| Script { heartbeat: Some(Box::new(heartbeat)), ..Default::default() });
    let beating = Heartbeats {
        client: world.client.clone(),
        worker_id: "w".into(),
        period: Duration::from_secs(3600),
        running: Default::default(),
        stats: Box::new(|| serde_json::json!({})),
        publish_number: Arc::new(|| None),
        changed: Default::default(),
        hurried: Default::default(),
        attempts: Default::default(),
    };
    for number in 0..2_500 {
        let rollout = claim_of(&format!("ro-{number}"), "1");
        beating.add(AttemptKey::new(&rollout.rollout_id, "at-1"), &rollout);
    }
    let beaten = tokio::spawn(async move { beating.run().await });
    for expected in [1_000, 1_000, 500] {
        assert_eq!(next(&mut beats).await, expected);
    }
    beaten.abort();
}

#[tokio::test]
async fn a_claim_asks_for_no_more_than_one_call_gives() {
    let (asked, mut limits) = unbounded_channel();
    let dequeue = move |request: DequeueRolloutsRequest| {
        asked.send(request.limit).unwrap();
        Ok(one_claim())
    };
    let world = serve(|_| Script { dequeue: Some(Box::new(dequeue)), ..Default::default() });
    let runner = Runner::new(&world.client, idle).concurrency(20_000);
    let handle = runner.handle();
    start(runner);
    assert_eq!(next(&mut limits).await, 1_000);
    handle.cancel();
}

#[tokio::test] // a single thread, which the function holds up
async fn heartbeats_keep_up_with_a_short_timeout_whatever_the_function_does() {
    let (beat, beats) = std::sync::mpsc::channel();
    let heartbeat = move |request: HeartbeatRequest| {
        if request.attempts.len() == 1 {
            let _ = beat.send(Instant::now());
        }
        Ok(HeartbeatResponse::default())
    };
    let mut world = serve(|_| Script { heartbeat: Some(Box::new(heartbeat)), ..Default::default() });
    let beats = Arc::new(Mutex::new(beats));
    let agent = move |_: Task<Input>| {
        let beats = beats.clone();
        async move {
            let beats = beats.lock().unwrap();
            let first = beats.recv_timeout(PATIENCE)?;
            for _ in 0..3 {
                beats.recv_timeout(PATIENCE)?; // blocks
            }
            Ok(first.elapsed().as_secs_f64())
        }
    };
    let began = Instant::now();
    start(Runner::new(&world.client, agent).max_rollouts(1));
    let mut rollout = claim_of("ro-1", "1");
    rollout.config = Some(RolloutConfig::default().with_unresponsive_timeout(Duration::from_millis(900)));
    world.queue.send(rollout).unwrap();
    assert_eq!(world.outcome().await.status(), AttemptStatus::Succeeded);
    assert!(began.elapsed() < Duration::from_secs(25), "three take 30 without it");
}

#[tokio::test]
async fn the_run_ends_with_what_waiting_does_not_mend() {
    let refuse = |_| Err(tonic::Status::permission_denied("not you"));
    let world = serve(|_| Script { dequeue: Some(Box::new(refuse)), ..Default::default() });
    let error = soon(Runner::new(&world.client, idle).run()).await.unwrap_err();
    assert_eq!(error.code(), Some(tonic::Code::PermissionDenied));
    world.client.close();
    let error = soon(Runner::new(&world.client, idle).run()).await.unwrap_err();
    assert_eq!(error.code(), Some(tonic::Code::Cancelled));
}
