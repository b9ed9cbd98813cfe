//! Heartbeats of a runner.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::client::Client;
use crate::error::Error;
use crate::execution::Running;
use crate::failure::Failure;
use crate::outbox::AttemptKey;
use crate::proto::{AttemptRef, HeartbeatRequest, Rollout};

/// Heartbeats per unresponsive timeout, so that one or two may get lost.
const BEATS_PER_TIMEOUT: u32 = 3;
/// Attempts per call. A server may limit them to 10,000 or fewer.
const ATTEMPTS_PER_CALL: usize = 1_000;
const SHORTEST_PERIOD: Duration = Duration::from_millis(50);
/// Time between two tries while the server does not answer.
const RETRY_PERIOD: Duration = Duration::from_secs(1);

/// Returns the publish number to report, if any. It may be user code.
pub(crate) type PublishNumber = Arc<dyn Fn() -> Option<i64> + Send + Sync>;

/// Sends the heartbeats of a worker and of its attempts.
pub(crate) struct Heartbeats {
    pub(crate) client: Client,
    pub(crate) worker_id: String,
    pub(crate) period: Duration,
    pub(crate) running: Arc<Running>,
    pub(crate) stats: Box<dyn Fn() -> Value + Send + Sync>,
    pub(crate) publish_number: PublishNumber,
    pub(crate) changed: Notify,
    pub(crate) hurried: Notify,
    pub(crate) attempts: Mutex<HashMap<AttemptKey, Duration>>,
}

impl Heartbeats {
    fn attempts(&self) -> MutexGuard<'_, HashMap<AttemptKey, Duration>> {
        self.attempts.lock().expect("no panic inside")
    }

    /// Includes a claim in the heartbeats.
    pub(crate) fn add(&self, key: AttemptKey, rollout: &Rollout) {
        let silence = rollout.config.as_ref().and_then(|config| config.unresponsive_timeout);
        let period = silence
            .and_then(|silence| Duration::try_from(silence).ok())
            .map_or(self.period, |silence| self.period.min(silence / BEATS_PER_TIMEOUT).max(SHORTEST_PERIOD));
        self.attempts().insert(key, period);
        self.changed.notify_one();
    }

    /// Sends the next heartbeat now, because its response says what has happened.
    pub(crate) fn hurry(&self) {
        self.hurried.notify_one();
    }

    /// Excludes an attempt from the heartbeats.
    pub(crate) fn remove(&self, key: &AttemptKey) {
        self.attempts().remove(key);
    }

    /// Returns the time between heartbeats, which depends on the shortest unresponsive timeout.
    fn interval(&self) -> Duration {
        self.attempts().values().copied().fold(self.period, Duration::min)
    }

    /// Sends heartbeats until it is dropped. It continues after a failure, because the server may come back.
    pub(crate) async fn run(&self) {
        let mut due = Instant::now();
        let mut began = due;
        let mut failing = false;
        loop {
            tokio::select! {
                () = sleep_until(due) => {}
                () = self.hurried.notified() => {}
                () = self.changed.notified() => { // perhaps a shorter period
                    due = due.min(began + self.interval());
                    continue;
                }
            }
            began = Instant::now();
            let interval = self.interval();
            due = began + interval;
            match self.beat(interval.max(RETRY_PERIOD)).await {
                Ok(()) if failing => tracing::warn!("heartbeats succeed again"),
                Ok(()) => {}
                Err(error) => {
                    due = Instant::now() + interval.min(RETRY_PERIOD);
                    if !failing {
                        tracing::warn!(%error, "heartbeat failed, retrying");
                    }
                    failing = true;
                    continue;
                }
            }
            failing = false;
        }
    }

    /// Returns the publish number to report; 0: none. A panic of user code is an error: it must not end the
    /// heartbeats.
    fn loaded(&self) -> Result<i64, Error> {
        let number = catch_unwind(AssertUnwindSafe(|| (self.publish_number)()));
        let number = number.map_err(|payload| Error::argument(Failure::of_panic(payload).to_string()))?;
        Ok(number.unwrap_or_default())
    }

    async fn beat(&self, timeout: Duration) -> Result<(), Error> {
        let mut attempts: Vec<_> = self.attempts().keys().cloned().map(to_ref).collect();
        let stats_json = serde_json::to_vec(&(self.stats)())?;
        let publish_number = self.loaded()?;
        loop {
            let rest = attempts.split_off(attempts.len().min(ATTEMPTS_PER_CALL));
            let (worker_id, stats_json) = (self.worker_id.clone(), stats_json.clone());
            let request = HeartbeatRequest { worker_id, stats_json, attempts, publish_number };
            let answer = self.client.once(request, Some(timeout)).await?;
            answer.stops.iter().for_each(|stop| self.running.stop(stop));
            if rest.is_empty() {
                return Ok(());
            }
            attempts = rest;
        }
    }
}

fn to_ref(key: AttemptKey) -> AttemptRef {
    AttemptRef { rollout_id: key.rollout_id, attempt_id: key.attempt_id }
}
