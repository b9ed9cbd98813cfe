//! The Rust client of LightningStore, the control plane and trace store of agent reinforcement learning.
//!
//! - [`Client`]: the calls of algorithms, and every call of the contract.
//! - [`Runner`]: claims rollouts, calls a function for each, reports the outcomes.
//! - [`SpanExporter`]: for any program that OpenTelemetry traces.
//! - [`emit_reward`], [`find_final_reward`]: rewards of attempts.
//!
//! Messages of the contract are in [`proto`], with methods to create and read them.

#![warn(missing_docs)]

mod background;
mod backoff;
mod calls;
mod claims;
mod client;
mod contact;
mod error;
mod execution;
mod exporter;
mod failure;
mod finishes;
mod heartbeats;
mod ids;
mod json;
mod losses;
mod outbox;
pub mod proto;
mod resources;
mod reward;
mod runner;
mod sender;
mod spans;
mod streams;
mod task;
mod templates;
mod values;
mod wait;
mod work;

#[cfg(test)]
mod tests;

pub use client::{Bearer, Client, ClientBuilder, Stub, Transport, tls_from_files};
pub use contact::Connection;
pub use error::{CallError, Error, FieldViolation, TemplateProblem};
pub use exporter::SpanExporter;
pub use failure::Failure;
pub use ids::SystemIds;
pub use reward::{emit_reward, emit_rewards, find_final_reward};
pub use runner::{Runner, RunnerHandle};
pub use spans::{Span, Spans, Triplets};
pub use task::Task;
pub use tonic::transport::{Certificate, ClientTlsConfig, Identity};
pub use wait::{Waiting, Watching};
