//! The argument of a runner's function.

use std::sync::Arc;

use opentelemetry_sdk::trace::SdkTracer;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::execution::{AgentFuture, Execution};
use crate::proto::{Resources, Rollout, StopReason};
use crate::reward::{emit_reward, emit_rewards};

/// The user's function without the types of its input and its future.
pub(crate) type Agent = dyn Fn(Task<()>) -> AgentFuture + Send + Sync;

/// The argument of a [`Runner`](crate::Runner)'s function. `I` is the type of the input: any type that serde
/// can deserialize, or serde_json's `Box<RawValue>` for the original bytes.
#[derive(Debug)]
#[non_exhaustive]
pub struct Task<I> {
    /// Input of the rollout.
    pub input: I,
    /// The rollout as claimed, with the attempt as its `latest_attempt`.
    pub rollout: Rollout,
    /// Resources by name. A `ProxyLlm` is an `Llm` with the URL of this attempt.
    pub resources: Resources,
    /// Tracer for spans of this attempt.
    pub tracer: SdkTracer,
    /// Cancelled when the attempt must stop. The attempt is then not reported as succeeded, whatever the
    /// function returns.
    pub cancellation: CancellationToken,
    /// Id of the worker.
    pub worker_id: String,
    pub(crate) execution: Arc<Execution>,
}

impl<I> Task<I> {
    /// Returns the id of the rollout.
    pub fn rollout_id(&self) -> &str {
        &self.rollout.rollout_id
    }

    /// Returns the id of the attempt.
    pub fn attempt_id(&self) -> &str {
        self.rollout.attempt_id()
    }

    /// Returns the position of the attempt among those of the rollout, counted from 1.
    pub fn sequence_number(&self) -> i32 {
        self.rollout.latest_attempt.as_ref().map_or(0, |attempt| attempt.sequence_number)
    }

    /// Returns why the attempt must stop; `None` while it continues. `Unspecified`: the runner itself is
    /// stopping.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.execution.stopped().map(|stopped| stopped.reason())
    }

    /// Records a reward of the attempt; see [`emit_reward`](crate::emit_reward).
    pub fn emit_reward(&self, value: f64) -> Result<(), Error> {
        emit_reward(&self.tracer, value)
    }

    /// Records a reward with several dimensions; see [`emit_rewards`](crate::emit_rewards).
    pub fn emit_rewards(&self, dimensions: &[(&str, f64)], primary: Option<&str>) -> Result<(), Error> {
        emit_rewards(&self.tracer, dimensions, primary)
    }

    /// Returns the same task with another input.
    pub(crate) fn with_input<J>(self, input: J) -> Task<J> {
        let Self { rollout, resources, tracer, cancellation, worker_id, execution, .. } = self;
        Task { input, rollout, resources, tracer, cancellation, worker_id, execution }
    }
}
