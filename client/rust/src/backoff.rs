//! Pauses between tries.

use std::time::Duration;

use rand::Rng;

use crate::error::Error;

const FIRST: Duration = Duration::from_millis(100);
/// Maximum pause, unless the server requests a longer one.
pub(crate) const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Maximum time to wait for a server that is down.
pub(crate) const OUTAGE: Duration = Duration::from_secs(600);

/// Growing pauses with jitter: from 0.1 s, doubling, up to the maximum.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    maximum: Duration,
}

impl Backoff {
    pub(crate) fn new(maximum: Duration) -> Self {
        Self { next: FIRST, maximum }
    }

    /// Returns the pause after a failure, at least the delay that the server requested.
    pub(crate) fn next(&mut self, failure: &Error) -> Duration {
        // Jitter between half and the full pause spreads clients, without pauses near zero.
        let delay = self.next.mul_f64(rand::rng().random_range(0.5..=1.0));
        self.next = (self.next * 2).min(self.maximum);
        delay.max(failure.retry_delay().unwrap_or_default())
    }

    /// Waits for the next pause.
    pub(crate) async fn pause(&mut self, failure: &Error) {
        tokio::time::sleep(self.next(failure)).await;
    }
}
