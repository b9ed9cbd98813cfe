//! Counts and logs lost spans.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::failure::text_of;

/// Minimum time between two summaries of the same kind of loss.
const QUIET: Duration = Duration::from_secs(60);
const MAX_DETAIL_BYTES: usize = 500;

/// Counts lost spans and logs them by kind: the first at once, later ones in a summary, at most one per
/// minute.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    total: u64,
    kinds: HashMap<&'static str, Kind>,
}

#[derive(Debug, Default)]
struct Kind {
    logged: Option<Instant>,
    /// Number of spans that are not logged yet.
    unlogged: u64,
    /// Detail of the last one.
    detail: String,
}

impl Losses {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic inside")
    }

    pub(crate) fn total(&self) -> u64 {
        self.state().total
    }

    pub(crate) fn add(&self, count: u64, why: &'static str, detail: impl Display, now: Instant) {
        let mut state = self.state();
        state.total += count;
        let kind = state.kinds.entry(why).or_default();
        kind.unlogged += count;
        kind.detail = text_of(&detail, MAX_DETAIL_BYTES);
        drop(state);
        self.summarize(now, false);
    }

    /// Logs the summaries that are due, or all of them at the end.
    pub(crate) fn summarize(&self, now: Instant, at_end: bool) {
        let mut due = Vec::new();
        let mut state = self.state();
        let total = state.total;
        for (why, kind) in &mut state.kinds {
            let is_due = at_end || kind.logged.is_none_or(|logged| now - logged >= QUIET);
            if kind.unlogged > 0 && is_due {
                due.push((*why, std::mem::take(&mut kind.unlogged), kind.detail.clone()));
                kind.logged = Some(now);
            }
        }
        drop(state); // a subscriber that panics must leave no lock behind
        for (why, count, detail) in due {
            tracing::warn!(why, count, total, detail, "spans dropped");
        }
    }
}
