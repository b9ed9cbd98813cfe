//! Tells a runner within a second that a rollout it works on has finished: cancelled, for instance.
//!
//! Heartbeats say which attempts to stop, but are sent every 10 seconds. More of them would cost the server a
//! call per second for each worker. So one WaitForRollouts stream, on which nothing is sent until something
//! happens, covers the rollouts that the runner works on. Rollouts shorter than the delay never cause a call. A
//! stream is replaced when a rollout that it does not cover gets older than the delay, and then covers all, so a
//! runner opens at most one stream per delay.

use std::collections::{HashMap, HashSet};
use std::future::pending;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::client::Client;
use crate::error::Error;
use crate::outbox::AttemptKey;
use crate::proto::{Rollout, WaitForRolloutsRequest};
use crate::wait::Waiting;

/// Time after a claim until its rollout is watched. A finish before that is noticed then.
const DELAY: Duration = Duration::from_millis(500);
/// Time without a stream after one has failed for good. Heartbeats still say what to stop.
pub(crate) const PAUSE: Duration = Duration::from_secs(10);

/// Watches the rollouts of a runner.
pub(crate) struct Finishes {
    client: Client,
    on_finish: Box<dyn Fn() + Send + Sync>,
    pause: Duration,
    /// The time of the next look is set, or the stream covers nothing any more.
    changed: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When each attempt is old enough to be watched; `None`: the stream covers it.
    attempts: HashMap<AttemptKey, Option<Instant>>,
    /// Number of attempts that the stream covers.
    covered: usize,
    /// Time of the next look for attempts to cover.
    look: Option<Instant>,
}

impl State {
    /// Removes the attempts for which `is_over` is true. Returns whether there were any.
    fn remove(&mut self, is_over: impl Fn(&AttemptKey) -> bool) -> bool {
        let before = self.attempts.len();
        let covered = &mut self.covered;
        self.attempts.retain(|key, due| {
            let over = is_over(key);
            *covered -= usize::from(over && due.is_none());
            !over
        });
        self.attempts.len() < before
    }
}

impl Finishes {
    /// Watches nothing yet. `on_finish` is called when a rollout has finished that is still watched. Streams
    /// that fail are opened again after `pause`.
    pub(crate) fn new(
        client: &Client,
        pause: Duration,
        on_finish: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let (client, on_finish) = (client.clone(), Box::new(on_finish));
        Self { client, on_finish, pause, changed: Notify::new(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic inside")
    }

    /// Watches a claim after the delay.
    pub(crate) fn add(&self, key: AttemptKey) {
        let due = Instant::now() + DELAY;
        let mut state = self.state();
        state.attempts.insert(key, Some(due));
        if state.look.is_none() {
            state.look = Some(due);
            self.changed.notify_one();
        }
    }

    /// Watches an attempt no longer. The stream stays open while it covers others.
    pub(crate) fn remove(&self, key: &AttemptKey) {
        let mut state = self.state();
        if let Some(None) = state.attempts.remove(key) {
            state.covered -= 1;
            if state.covered == 0 {
                self.changed.notify_one();
            }
        }
    }

    /// Watches until it is dropped.
    pub(crate) async fn run(&self) {
        let mut stream: Option<Waiting> = None;
        loop {
            let look = {
                let state = self.state();
                if state.covered == 0 {
                    stream = None; // dropping it cancels its call
                }
                state.look
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = at(look) => {
                    if let Some(rollout_ids) = self.cover() {
                        let request = WaitForRolloutsRequest { rollout_ids, ..Default::default() };
                        stream = Some(self.client.wait(request));
                    }
                }
                finished = next(&mut stream) => match finished {
                    Some(Ok(rollout)) => self.note(&rollout.rollout_id),
                    Some(Err(error)) => {
                        tracing::debug!(%error, pause = ?self.pause, "finishes are not watched");
                        stream = None;
                        self.postpone();
                    }
                    None => stream = None, // all have finished
                },
            }
        }
    }

    /// Returns the rollouts of the next stream if one without a stream is old enough, which are all; else sets
    /// the time of the next look.
    fn cover(&self) -> Option<Vec<String>> {
        let mut state = self.state();
        state.look = state.attempts.values().flatten().min().copied();
        if state.look? > Instant::now() {
            return None;
        }
        state.look = None;
        state.covered = state.attempts.len();
        state.attempts.values_mut().for_each(|due| *due = None);
        let ids: HashSet<_> = state.attempts.keys().map(|key| key.rollout_id.clone()).collect();
        Some(ids.into_iter().collect())
    }

    /// Reports a finish, once for each rollout, unless no attempt at it is watched any more.
    fn note(&self, rollout_id: &str) {
        if self.state().remove(|key| key.rollout_id == rollout_id) {
            (self.on_finish)();
        }
    }

    /// Opens no stream until the pause is over.
    fn postpone(&self) {
        let later = Instant::now() + self.pause;
        let mut state = self.state();
        state.covered = 0;
        state.attempts.values_mut().for_each(|due| *due = Some(later));
        state.look = Some(later);
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

async fn next(stream: &mut Option<Waiting>) -> Option<Result<Rollout, Error>> {
    match stream {
        Some(stream) => stream.next().await,
        None => pending().await,
    }
}
