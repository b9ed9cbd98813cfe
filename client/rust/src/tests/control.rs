//! What a runner claims and reports for training control.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::unbounded_channel;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::next;
use super::runner::{Input, idle, start};
use super::scripted::{Script, claim_of, serve};
use crate::proto::*;
use crate::reward::ANNOTATION;
use crate::runner::Runner;
use crate::task::Task;

fn mask(update: &UpdateAttemptRequest) -> Vec<String> {
    update.update_mask.clone().unwrap_or_default().paths
}

#[tokio::test]
async fn claims_name_the_queues() {
    let (told, mut claims) = unbounded_channel();
    let dequeue = move |request: DequeueRolloutsRequest| {
        told.send(request.queues).unwrap();
        Ok(DequeueRolloutsResponse { rollouts: vec![claim_of("ro-1", "1")] })
    };
    let world = serve(|_| Script { dequeue: Some(Box::new(dequeue)), ..Default::default() });
    start(Runner::new(&world.client, idle).queues(["gpu", ""]).max_rollouts(1));
    assert_eq!(next(&mut claims).await, ["gpu", ""]);
}

#[tokio::test]
async fn the_reward_is_in_the_report() {
    let mut world = serve(|_| Script::default());
    start(Runner::new(&world.client, |_: Task<Input>| async { Ok(0.0) }).max_rollouts(1));
    world.queue.send(claim_of("ro-1", "1")).unwrap();
    let update = next(&mut world.updates).await;
    assert_eq!(mask(&update), ["status", "reward"]);
    assert_eq!(update.attempt.unwrap_or_default().reward, Some(0.0));
    assert!(world.kept.all().contains(&format!("span {ANNOTATION}")));
}

#[tokio::test]
async fn an_older_server_gets_reports_without_rewards() {
    let (told, mut reports) = unbounded_channel();
    let update = move |request: UpdateAttemptRequest| {
        let mask = mask(&request);
        told.send(mask.clone()).unwrap();
        if !mask.contains(&"reward".to_owned()) {
            return Ok(());
        }
        let details = ErrorDetails::with_bad_request_violation("update_mask.paths[1]", "unknown");
        Err(Status::with_error_details(Code::InvalidArgument, "unknown", details))
    };
    let mut world = serve(|_| Script { update: Some(Box::new(update)), ..Default::default() });
    start(Runner::new(&world.client, |_: Task<Input>| async { Ok(1.0) }).max_rollouts(2));
    for id in ["ro-1", "ro-2"] {
        world.queue.send(claim_of(id, "1")).unwrap();
        let attempt = world.outcome().await;
        assert_eq!((attempt.status(), attempt.reward), (AttemptStatus::Succeeded, None));
    }
    // Only the first report is repeated.
    for expected in [&["status", "reward"][..], &["status"], &["status"]] {
        assert_eq!(next(&mut reports).await, expected);
    }
    assert!(reports.try_recv().is_err());
    let rewards = world.kept.all().iter().filter(|what| what.ends_with(ANNOTATION)).count();
    assert_eq!(rewards, 2);
}

#[tokio::test]
async fn resources_have_the_version_of_the_attempt_and_heartbeats_their_number() {
    let ((told, mut asked), (beat, mut numbers)) = (unbounded_channel(), unbounded_channel());
    let resources = move |GetResourcesRequest { resources_id, version, .. }| {
        told.send((resources_id, version)).unwrap();
        let publish_number = 40 + i64::from(version);
        let found = Resources { resources_id: "rs".into(), version, publish_number, ..Default::default() };
        Ok(GetResourcesResponse { resources: Some(found) })
    };
    let heartbeat = move |request: HeartbeatRequest| {
        let _ = beat.send(request.publish_number);
        Ok(HeartbeatResponse::default())
    };
    let (resources, heartbeat) = (Some(Box::new(resources) as _), Some(Box::new(heartbeat) as _));
    let mut world = serve(|_| Script { resources, heartbeat, ..Default::default() });
    start(Runner::new(&world.client, idle).heartbeat_period(Duration::from_millis(50)));
    assert_eq!(next(&mut numbers).await, 0);
    for version in [2, 3, 2] {
        let mut rollout = claim_of("ro-1", "1");
        let attempt = rollout.latest_attempt.as_mut().unwrap();
        (attempt.resources_id, attempt.resources_version) = ("rs".into(), version);
        world.queue.send(rollout).unwrap();
        assert_eq!(world.outcome().await.status(), AttemptStatus::Succeeded);
        while next(&mut numbers).await != 40 + i64::from(version) {} // also where they came from the cache
    }
    assert_eq!(next(&mut asked).await, ("rs".to_owned(), 2));
    assert_eq!(next(&mut asked).await, ("rs".to_owned(), 3));
    assert!(asked.try_recv().is_err());
}

#[tokio::test]
async fn heartbeats_report_the_number_of_the_option() {
    let (beat, mut numbers) = unbounded_channel();
    let heartbeat = move |request: HeartbeatRequest| {
        let _ = beat.send(request.publish_number);
        Ok(HeartbeatResponse::default())
    };
    let world = serve(|_| Script { heartbeat: Some(Box::new(heartbeat)), ..Default::default() });
    let calls = Arc::new(AtomicI64::new(0));
    let number = move || match calls.fetch_add(1, Ordering::Relaxed) {
        0 => Some(7),
        1 => panic!("not loaded"), // costs this heartbeat only
        2 => Some(8),
        _ => None,
    };
    let runner = Runner::new(&world.client, idle).heartbeat_period(Duration::from_millis(50));
    start(runner.publish_number(number));
    assert_eq!([next(&mut numbers).await, next(&mut numbers).await, next(&mut numbers).await], [7, 8, 0]);
}
