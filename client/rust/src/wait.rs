//! Waits for rollouts to finish: given ones, or all of them.

use std::collections::{HashSet, VecDeque};
use std::time::Instant;

use crate::client::{Client, Stub};
use crate::proto::{
    Rollout, WaitForRolloutsRequest, WaitForRolloutsResponse, WatchRolloutsRequest, WatchRolloutsResponse,
};
use crate::streams::{Opening, Query, Resumed, stream};
use crate::values::to_proto;

impl Client {
    /// Streams each rollout of the request once, as it finishes, starting with those that have already
    /// finished. It starts with the first poll, and ends when all of them, or `min_count`, have finished, or
    /// after the timeout of the request.
    ///
    /// It resumes after a broken connection, unless the server is down for more than ten minutes. Any other
    /// failure is the last item.
    pub fn wait(&self, request: WaitForRolloutsRequest) -> Waiting {
        let query = WaitQuery { request, seen: HashSet::new(), began: None, open: None };
        Waiting(Resumed::new(self, query))
    }

    /// Streams all rollouts as they finish, in the order of their completion numbers, after the number in the
    /// request or, without one, from now on. It never ends by itself.
    ///
    /// It resumes after a broken connection, as with [`wait`](Self::wait). A program that restarts resumes
    /// with the last [`Rollout::completion_number`] and [`Watching::store_id`].
    pub fn watch(&self, request: WatchRolloutsRequest) -> Watching {
        Watching(Resumed::new(self, WatchQuery { request }))
    }
}

/// A wait for rollouts to finish; see [`Client::wait`].
#[derive(Debug)]
pub struct Waiting(Resumed<WaitQuery>);

stream!(Waiting yields Rollout);

impl Waiting {
    /// Returns the ids of the rollouts that had not finished at the end of the stream. Empty before.
    pub fn open_rollout_ids(&self) -> &[String] {
        self.0.query.open.as_deref().unwrap_or_default()
    }
}

/// A watch over all rollouts; see [`Client::watch`].
#[derive(Debug)]
pub struct Watching(Resumed<WatchQuery>);

stream!(Watching yields Rollout);

impl Watching {
    /// Returns the id of the store that the completion numbers come from. Empty before the first message.
    pub fn store_id(&self) -> &str {
        &self.0.query.request.store_id
    }
}

struct WaitQuery {
    request: WaitForRolloutsRequest,
    seen: HashSet<String>,
    began: Option<Instant>,
    /// The rollouts that have not finished at the end; `None` before.
    open: Option<Vec<String>>,
}

impl WaitQuery {
    /// Returns the next request: after a break, for the missing rollouts. Only the server knows which
    /// rollouts are in a group, so with groups the request is unchanged. `None` if only the summary is
    /// missing.
    fn remaining(&mut self) -> Option<WaitForRolloutsRequest> {
        let mut request = self.request.clone();
        let passed = self.began.get_or_insert_with(Instant::now).elapsed();
        if let Some(timeout) = request.timeout {
            // The server rejects a negative one.
            let whole = std::time::Duration::try_from(timeout);
            request.timeout = Some(whole.map_or(timeout, |whole| to_proto(whole.saturating_sub(passed))));
        }
        if !self.seen.is_empty() && request.group_ids.is_empty() {
            request.rollout_ids.retain(|id| !self.seen.contains(id));
            let left = request.min_count.map(|least| least - self.seen.len() as i32);
            if request.rollout_ids.is_empty() || left.is_some_and(|left| left <= 0) {
                self.open = Some(request.rollout_ids);
                return None;
            }
            request.min_count = left;
        }
        Some(request)
    }
}

impl Query for WaitQuery {
    type Message = WaitForRolloutsResponse;
    type Item = Rollout;

    fn open(&mut self, mut stub: Stub) -> Option<Opening<Self::Message>> {
        let request = self.remaining()?;
        Some(Box::pin(async move { stub.wait_for_rollouts(request).await }))
    }

    fn take(&mut self, message: Self::Message, items: &mut VecDeque<Rollout>) {
        let new = message.rollouts.into_iter().filter(|r| self.seen.insert(r.rollout_id.clone()));
        items.extend(new);
        if let Some(summary) = message.summary {
            self.open = Some(summary.open_rollout_ids);
        }
    }

    fn is_complete(&self, _: bool) -> bool {
        self.open.is_some() // after the summary nothing but the end of the stream is lost
    }
}

struct WatchQuery {
    request: WatchRolloutsRequest,
}

impl Query for WatchQuery {
    type Message = WatchRolloutsResponse;
    type Item = Rollout;

    fn open(&mut self, mut stub: Stub) -> Option<Opening<Self::Message>> {
        let request = self.request.clone();
        Some(Box::pin(async move { stub.watch_rollouts(request).await }))
    }

    fn take(&mut self, message: Self::Message, items: &mut VecDeque<Rollout>) {
        items.extend(message.rollouts);
        self.request.after_completion_number = Some(message.through_completion_number);
        self.request.store_id = message.store_id;
    }

    fn is_complete(&self, _: bool) -> bool {
        false
    }
}
