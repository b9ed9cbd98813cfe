//! Claiming rollouts.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::backoff::{Backoff, LONGEST};
use crate::client::Client;
use crate::error::Error;
use crate::proto::{DequeueRolloutsRequest, Rollout, Unary};
use crate::values::to_proto;

/// Rollouts that one call claims at most.
const MOST_CLAIMS: i32 = 1_000;
/// How long the server holds a claim back for a rollout to come.
const POLL_WAIT: Duration = Duration::from_secs(20);
/// After which a long poll is given up, and asked again.
const POLL_TIMEOUT: Duration = Duration::from_secs(30);
/// In which a poll that was broken off at a stop is asked what it had claimed.
const LAST_ANSWER: Duration = Duration::from_millis(600);
const LAST_TRIES: u32 = 3;
const LAST_PAUSE: Duration = Duration::from_millis(100);

/// Claims rollouts for a worker. A claim whose answer was lost is found again by its request id, so one request is
/// repeated, word for word, until it is answered.
#[derive(Debug)]
pub(crate) struct Claims {
    pub(crate) client: Client,
    pub(crate) worker_id: String,
    pub(crate) modes: Vec<i32>,
}

impl Claims {
    /// Returns up to `limit` claims, none when the wait is over. When the runner stops it returns what a poll that was
    /// under way had claimed. Fails for what waiting does not mend.
    pub(crate) async fn claim(
        &self,
        stopping: &CancellationToken,
        limit: usize,
    ) -> Result<Vec<Rollout>, Error> {
        let mut request = DequeueRolloutsRequest {
            limit: i32::try_from(limit).unwrap_or(i32::MAX).min(MOST_CLAIMS),
            modes: self.modes.clone(),
            worker_id: self.worker_id.clone(),
            wait: Some(to_proto(POLL_WAIT)),
            request_id: String::new(),
        };
        request.identify();
        let mut pauses = Backoff::new(LONGEST);
        let mut tries = 0;
        while !stopping.is_cancelled() {
            tries += 1;
            let poll = self.client.once(request.clone(), Some(POLL_TIMEOUT));
            let error = match stopping.run_until_cancelled(poll).await {
                None => break, // it may have claimed something
                Some(Ok(answer)) => return Ok(answer.rollouts),
                Some(Err(error)) if !error.mends() => return Err(error),
                Some(Err(error)) => error,
            };
            if tries == 1 {
                tracing::warn!(%error, "no claims now, trying on");
            }
            stopping.run_until_cancelled(pauses.pause(&error)).await;
        }
        // Where nothing was asked there is nothing to rescue, and a question would claim something new.
        if tries == 0 { Ok(Vec::new()) } else { Ok(self.rescue(request).await) }
    }

    /// Returns what a poll had claimed that was broken off.
    async fn rescue(&self, request: DequeueRolloutsRequest) -> Vec<Rollout> {
        for _ in 0..LAST_TRIES {
            match self.client.once(request.clone(), Some(LAST_ANSWER)).await {
                Ok(answer) => return answer.rollouts,
                Err(error) => tracing::warn!(%error, "stopping, not knowing what the last poll claimed"),
            }
            sleep(LAST_PAUSE).await;
        }
        Vec::new()
    }
}
