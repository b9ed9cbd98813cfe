//! Rollouts as they are made and read: JSON and durations of Rust's own.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::json::to_json;
use crate::proto::{AttemptStatus, RetryBackoff, Rollout, RolloutConfig, RolloutMode, RolloutSpec};

impl RolloutSpec {
    /// A rollout to be made. `input` says what the agent is to do: anything that serde makes JSON of; a
    /// [`RawValue`](serde_json::value::RawValue) goes byte for byte. Fails for what is no JSON: a NaN or an infinity
    /// is named by its place, `input.rates[1]` for instance.
    pub fn new<T: Serialize + ?Sized>(input: &T) -> Result<Self, Error> {
        Ok(Self { input_json: to_json("input", input)?, ..Default::default() })
    }

    /// Says what the rollout is for.
    pub fn with_mode(mut self, mode: RolloutMode) -> Self {
        self.mode = mode.into();
        self
    }

    /// Higher is claimed first; 0 by default.
    pub fn with_priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Names the rollouts that belong together.
    pub fn with_group(mut self, group_id: impl Into<String>) -> Self {
        self.group_id = group_id.into();
        self
    }

    /// Names what the agent works with; by default the latest resources there are.
    pub fn with_resources(mut self, resources_id: impl Into<String>) -> Self {
        self.resources_id = resources_id.into();
        self
    }

    /// Says when an attempt is given up, and whether the rollout is tried again.
    pub fn with_config(mut self, config: RolloutConfig) -> Self {
        self.config = Some(config);
        self
    }

    /// Adds a JSON object of the caller's own. Fails for what is no JSON.
    pub fn with_metadata<T: Serialize + ?Sized>(mut self, metadata: &T) -> Result<Self, Error> {
        self.metadata_json = to_json("metadata", metadata)?;
        Ok(self)
    }

    /// Chooses the id; by default the server makes one.
    pub fn with_rollout_id(mut self, rollout_id: impl Into<String>) -> Self {
        self.rollout_id = rollout_id.into();
        self
    }
}

impl RolloutConfig {
    /// Longest time that an attempt may take; no limit by default.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(to_proto(timeout));
        self
    }

    /// Longest silence of an attempt; no limit by default.
    pub fn with_unresponsive_timeout(mut self, timeout: Duration) -> Self {
        self.unresponsive_timeout = Some(to_proto(timeout));
        self
    }

    /// Makes up to `max_attempts` attempts, the next one after each of these ends: `Failed`, `Timeout`,
    /// `Unresponsive`. One attempt by default.
    pub fn with_retries(mut self, max_attempts: i32, after: impl IntoIterator<Item = AttemptStatus>) -> Self {
        self.max_attempts = max_attempts;
        self.retry_condition = after.into_iter().map(Into::into).collect();
        self
    }

    /// Lets the n-th retry wait in the queue for `initial * factor^(n-1)`, at most `longest`; not at all by default.
    pub fn with_backoff(mut self, initial: Duration, factor: f64, longest: Duration) -> Self {
        self.retry_backoff = Some(RetryBackoff {
            initial_delay: Some(to_proto(initial)),
            factor,
            max_delay: Some(to_proto(longest)),
            ..self.retry_backoff.unwrap_or_default()
        });
        self
    }
}

impl Rollout {
    /// Reads the input, as anything that serde can read JSON into. Fails where it does not fit.
    pub fn input<T: DeserializeOwned>(&self) -> Result<T, Error> {
        Ok(serde_json::from_slice(&self.input_json)?)
    }

    /// Reads the metadata in the same way.
    pub fn metadata<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let text: &[u8] = if self.metadata_json.is_empty() { b"{}" } else { &self.metadata_json };
        Ok(serde_json::from_slice(text)?)
    }

    pub(crate) fn attempt_id(&self) -> &str {
        self.latest_attempt.as_ref().map_or("", |attempt| &attempt.attempt_id)
    }
}

/// A duration as the contract has it; what is beyond its range, 10,000 years, becomes that.
pub(crate) fn to_proto(duration: Duration) -> prost_types::Duration {
    const LONGEST: prost_types::Duration = prost_types::Duration { seconds: 315_576_000_000, nanos: 0 };
    duration.try_into().unwrap_or(LONGEST)
}
