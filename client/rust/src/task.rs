//! What a runner's function works on.

use std::sync::Arc;

use opentelemetry_sdk::trace::SdkTracer;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::execution::{AgentFuture, Execution};
use crate::proto::{Resources, Rollout, StopReason};
use crate::reward::{emit_reward, emit_rewards};

/// The user's function, whatever the types of its input and its future.
pub(crate) type Agent = dyn Fn(Task<()>) -> AgentFuture + Send + Sync;

/// What a [`Runner`](crate::Runner)'s function works on. `I` is the type of the input: whatever serde can read it
/// into, `Box<RawValue>` of serde_json for the bytes as they were given.
#[derive(Debug)]
#[non_exhaustive]
pub struct Task<I> {
    /// Input of the rollout.
    pub input: I,
    /// The rollout as it was claimed, with the attempt as its `latest_attempt`.
    pub rollout: Rollout,
    /// Resources by name; a `ProxyLlm` comes as the `Llm` that is routed to this attempt.
    pub resources: Resources,
    /// Its spans are filed under this attempt.
    pub tracer: SdkTracer,
    /// Cancelled when the attempt is to stop. Whatever the function then returns, the attempt is not reported as
    /// succeeded.
    pub cancellation: CancellationToken,
    /// What the runner is called.
    pub worker_id: String,
    pub(crate) execution: Arc<Execution>,
}

impl<I> Task<I> {
    /// Id of the rollout.
    pub fn rollout_id(&self) -> &str {
        &self.rollout.rollout_id
    }

    /// Id of the attempt.
    pub fn attempt_id(&self) -> &str {
        self.rollout.attempt_id()
    }

    /// Counts the attempts at the rollout, from 1.
    pub fn sequence_number(&self) -> i32 {
        self.rollout.latest_attempt.as_ref().map_or(0, |attempt| attempt.sequence_number)
    }

    /// Why the attempt is to stop; `None` while it goes on. `Unspecified`: it is the runner that stops.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.execution.stopped().map(|stopped| stopped.reason())
    }

    /// Writes down what the attempt was worth so far; see [`emit_reward`](crate::emit_reward).
    pub fn emit_reward(&self, value: f64) -> Result<(), Error> {
        emit_reward(&self.tracer, value)
    }

    /// Writes down several dimensions; see [`emit_rewards`](crate::emit_rewards).
    pub fn emit_rewards(&self, dimensions: &[(&str, f64)], primary: Option<&str>) -> Result<(), Error> {
        emit_rewards(&self.tracer, dimensions, primary)
    }

    /// The same task with another input.
    pub(crate) fn with_input<J>(self, input: J) -> Task<J> {
        let Self { rollout, resources, tracer, cancellation, worker_id, execution, .. } = self;
        Task { input, rollout, resources, tracer, cancellation, worker_id, execution }
    }
}
