//! Claiming rollouts.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::backoff::{Backoff, MAX_PAUSE};
use crate::client::Client;
use crate::error::Error;
use crate::proto::{DequeueRolloutsRequest, Rollout, Unary};
use crate::values::to_proto;

/// Maximum number of rollouts that one call claims.
const MAX_CLAIMS: i32 = 1_000;
/// Maximum time that the server waits for a claimable rollout.
const POLL_WAIT: Duration = Duration::from_secs(20);
/// Time after which a long poll is cancelled and repeated.
const POLL_TIMEOUT: Duration = Duration::from_secs(30);
/// Time limit for asking what a poll had claimed when it was interrupted by a stop.
const LAST_ANSWER: Duration = Duration::from_millis(600);
const LAST_TRIES: u32 = 3;
const LAST_PAUSE: Duration = Duration::from_millis(100);

/// Claims rollouts for a worker. A claim whose response was lost is recovered by its request id, so the same
/// request is repeated unchanged until it is answered.
#[derive(Debug)]
pub(crate) struct Claims {
    pub(crate) client: Client,
    pub(crate) worker_id: String,
    pub(crate) modes: Vec<i32>,
    pub(crate) queues: Vec<String>,
}

impl Claims {
    /// Returns up to `limit` claims, or none when the wait is over. When the runner stops, returns what the
    /// interrupted poll had claimed. Fails for errors that are not retryable.
    pub(crate) async fn claim(
        &self,
        stopping: &CancellationToken,
        limit: usize,
    ) -> Result<Vec<Rollout>, Error> {
        let mut request = DequeueRolloutsRequest {
            limit: i32::try_from(limit).unwrap_or(i32::MAX).min(MAX_CLAIMS),
            modes: self.modes.clone(),
            queues: self.queues.clone(),
            worker_id: self.worker_id.clone(),
            wait: Some(to_proto(POLL_WAIT)),
            ..Default::default()
        };
        request.identify();
        let mut pauses = Backoff::new(MAX_PAUSE);
        let mut tries = 0;
        while !stopping.is_cancelled() {
            tries += 1;
            let poll = self.client.once(request.clone(), Some(POLL_TIMEOUT));
            let error = match stopping.run_until_cancelled(poll).await {
                None => break, // it may have claimed something
                Some(Ok(answer)) => return Ok(answer.rollouts),
                Some(Err(error)) if !error.is_retryable() => return Err(error),
                Some(Err(error)) => error,
            };
            if tries == 1 {
                tracing::warn!(%error, "claim failed, retrying");
            }
            stopping.run_until_cancelled(pauses.pause(&error)).await;
        }
        // If no request was sent there is nothing to recover, and a repeat would claim something new.
        if tries == 0 { Ok(Vec::new()) } else { Ok(self.rescue(request).await) }
    }

    /// Returns what an interrupted poll had claimed.
    async fn rescue(&self, request: DequeueRolloutsRequest) -> Vec<Rollout> {
        for _ in 0..LAST_TRIES {
            match self.client.once(request.clone(), Some(LAST_ANSWER)).await {
                Ok(answer) => return answer.rollouts,
                Err(error) => tracing::warn!(%error, "stopping; the result of the last poll is not known"),
            }
            sleep(LAST_PAUSE).await;
        }
        Vec::new()
    }
}
