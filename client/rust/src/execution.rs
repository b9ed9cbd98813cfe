//! Runs of the user's function for attempts.

use std::collections::HashMap;
use std::fmt::{self, Display, Formatter};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::failure::Failure;
use crate::outbox::AttemptKey;
use crate::proto::{Rollout, Stop, StopReason};

/// The future of the user's function, without its type.
pub(crate) type AgentFuture = Pin<Box<dyn Future<Output = Result<Option<f64>, Failure>> + Send>>;

/// Why an attempt must stop.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stopped {
    /// The runner itself is stopping.
    Runner,
    /// The server requested it, with the number of a reason.
    Server(i32),
}

impl Stopped {
    pub(crate) fn reason(self) -> StopReason {
        match self {
            Self::Runner => StopReason::Unspecified,
            Self::Server(number) => StopReason::try_from(number).unwrap_or_default(),
        }
    }
}

impl Display for Stopped {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self::Server(number) = *self else { return f.write_str("the runner is stopping") };
        f.write_str(match StopReason::try_from(number) {
            Ok(StopReason::RolloutCancelled) => "the rollout was cancelled",
            Ok(StopReason::RolloutFinished) => "the rollout has finished",
            Ok(StopReason::Superseded) => "a newer attempt has replaced this one",
            Ok(StopReason::UnknownAttempt) => "the server has no such attempt",
            Ok(StopReason::Unspecified) | Err(_) => {
                return write!(f, "stopped by the server (reason {number})");
            }
        })
    }
}

/// A run of the function for an attempt.
#[derive(Debug)]
pub(crate) struct Execution {
    pub(crate) rollout: Rollout,
    pub(crate) key: AttemptKey,
    /// Requests the function to stop.
    pub(crate) cancellation: CancellationToken,
    /// Cancelled when the runner stops waiting for the function.
    pub(crate) abandoned: CancellationToken,
    stopped: OnceLock<Stopped>,
}

impl Execution {
    pub(crate) fn new(rollout: Rollout) -> Self {
        let key = AttemptKey::new(&rollout.rollout_id, rollout.attempt_id());
        let (cancellation, abandoned) = (CancellationToken::new(), CancellationToken::new());
        Self { rollout, key, cancellation, abandoned, stopped: OnceLock::new() }
    }

    /// Returns why the attempt must stop; `None` while it continues.
    pub(crate) fn stopped(&self) -> Option<Stopped> {
        self.stopped.get().copied()
    }

    pub(crate) fn stop(&self, why: Stopped) {
        let _ = self.stopped.set(why); // the first reason stays
        self.cancellation.cancel();
    }

    /// Runs the function in a separate task and returns its result; a panic is a failure.
    pub(crate) async fn call(&self, function: AgentFuture) -> Result<Option<f64>, Failure> {
        // Aborts the function when dropped: if it is abandoned, or if the runner itself is dropped.
        let task = AbortOnDropHandle::new(tokio::spawn(function));
        tokio::select! {
            ended = task => ended.unwrap_or_else(|error| Err(panicked(error))),
            () = self.abandoned.cancelled() => Err(Failure::new("abandoned")),
        }
    }
}

fn panicked(error: tokio::task::JoinError) -> Failure {
    match error.try_into_panic() {
        Ok(payload) => Failure::of_panic(payload),
        Err(_) => Failure::new("the runtime ended").kind("panic"),
    }
}

/// The running attempts of a runner.
#[derive(Debug, Default)]
pub(crate) struct Running {
    executions: Mutex<HashMap<AttemptKey, Arc<Execution>>>,
    finished: AtomicU64,
}

impl Running {
    fn executions(&self) -> MutexGuard<'_, HashMap<AttemptKey, Arc<Execution>>> {
        self.executions.lock().expect("no panic inside")
    }

    pub(crate) fn add(&self, execution: Arc<Execution>) {
        self.executions().insert(execution.key.clone(), execution);
    }

    pub(crate) fn remove(&self, key: &AttemptKey) {
        self.executions().remove(key);
        self.finished.fetch_add(1, Ordering::Relaxed);
    }

    /// Forwards a stop request of the server.
    pub(crate) fn stop(&self, stop: &Stop) {
        let of = stop.attempt.clone().unwrap_or_default();
        let found = self.executions().get(&AttemptKey::new(of.rollout_id, of.attempt_id)).cloned();
        if let Some(execution) = found {
            execution.stop(Stopped::Server(stop.reason));
        }
    }

    pub(crate) fn all(&self) -> Vec<Arc<Execution>> {
        self.executions().values().cloned().collect()
    }

    pub(crate) fn finished(&self) -> u64 {
        self.finished.load(Ordering::Relaxed)
    }
}
