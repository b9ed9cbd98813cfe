//! Pauses between tries.

use std::time::Duration;

use rand::Rng;

use crate::error::Error;

const FIRST: Duration = Duration::from_millis(100);
/// Longest pause, but for what the server itself asks for.
pub(crate) const LONGEST: Duration = Duration::from_secs(5);
/// For how long a server that is away is waited for.
pub(crate) const OUTAGE: Duration = Duration::from_secs(600);

/// Counts up the pauses: from 0.1 s, doubling, to the longest.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new(longest: Duration) -> Self {
        Self { next: FIRST, longest }
    }

    /// Returns how long to wait after a failure: at least as long as the server asked for.
    pub(crate) fn next(&mut self, failure: &Error) -> Duration {
        // Between a half and the whole: enough to spread many clients, and never near to zero.
        let delay = self.next.mul_f64(rand::rng().random_range(0.5..=1.0));
        self.next = (self.next * 2).min(self.longest);
        delay.max(failure.retry_delay().unwrap_or_default())
    }

    /// Waits that long.
    pub(crate) async fn pause(&mut self, failure: &Error) {
        tokio::time::sleep(self.next(failure)).await;
    }
}
