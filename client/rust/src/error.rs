//! Errors of this crate.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::iter;
use std::time::Duration;

use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt;

/// The message of a call of a closed client.
pub(crate) const CLOSED: &str = "the client is closed";

/// The error of an operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call failed: the server rejected it, or could not be reached.
    #[error(transparent)]
    Call(#[from] Box<CallError>),
    /// A value is not valid JSON, or not JSON of the expected type.
    #[error("JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// An argument or an option is invalid.
    #[error("{0}")]
    Argument(String),
    /// A template cannot be filled in.
    #[error("{message}")]
    Template {
        /// The kind of the problem.
        problem: TemplateProblem,
        /// The problem and its position.
        message: String,
    },
}

/// Why a template cannot be filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TemplateProblem {
    /// The value of a placeholder is missing.
    Missing,
    /// It is not a valid template of its engine, or uses unsupported features.
    Malformed,
    /// This client does not support the engine.
    Unsupported,
}

/// The failure of a call. The call has changed nothing, unless the code is `Unavailable`, `DeadlineExceeded`,
/// `Cancelled` or `Internal`: then it may or may not have taken effect.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{code:?}{}: {message}", described(.reason))]
#[non_exhaustive]
pub struct CallError {
    /// gRPC's status code.
    pub code: Code,
    /// Description for people.
    pub message: String,
    /// Name of an [`ErrorReason`](crate::proto::ErrorReason), for example `ERROR_REASON_ROLLOUT_NOT_FOUND`.
    /// Empty if the server, or a proxy in front of it, sent none.
    pub reason: String,
    /// Domain of the reason: `lightningstore`.
    pub domain: String,
    /// The values that the message names, for programs; keys in lowerCamelCase.
    pub metadata: HashMap<String, String>,
    /// Fields of the request with an invalid value.
    pub fields: Vec<FieldViolation>,
    /// Minimum time before a retry. `None` if the server did not request one.
    pub retry_delay: Option<Duration>,
}

/// A field with an invalid value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// Its path in the request, for example `items[3].config.max_attempts`.
    pub field: String,
    /// Says which values are valid.
    pub description: String,
}

fn described(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" ({reason})") }
}

impl Error {
    /// Returns the failure of a call, `None` for any other error.
    pub fn call(&self) -> Option<&CallError> {
        match self {
            Self::Call(call) => Some(call),
            _ => None,
        }
    }

    /// Returns the status code of a failed call.
    pub fn code(&self) -> Option<Code> {
        self.call().map(|call| call.code)
    }

    /// Returns the reason of a failed call, see [`CallError::reason`]; empty for any other error.
    pub fn reason(&self) -> &str {
        self.call().map_or("", |call| &call.reason)
    }

    /// Returns the minimum delay before a retry that the server requested.
    pub fn retry_delay(&self) -> Option<Duration> {
        self.call().and_then(|call| call.retry_delay)
    }

    /// Returns whether a retry may succeed.
    pub(crate) fn is_retryable(&self) -> bool {
        let away = matches!(self.code(), Some(Code::Unavailable | Code::DeadlineExceeded));
        away || self.retry_delay().is_some()
    }

    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self::Argument(message.into())
    }

    pub(crate) fn deadline() -> Self {
        Status::deadline_exceeded("no answer in time").into()
    }

    pub(crate) fn unavailable(message: &str) -> Self {
        Status::unavailable(message).into()
    }

    pub(crate) fn closed() -> Self {
        let mut failure = CallError::from(Status::unknown(CLOSED));
        failure.code = Code::Cancelled;
        Self::Call(Box::new(failure))
    }

    pub(crate) fn template(problem: TemplateProblem, message: impl Into<String>) -> Self {
        Self::Template { problem, message: message.into() }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status.into()))
    }
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().cloned();
        let violations = details.bad_request().map(|bad| bad.field_violations.clone());
        Self {
            code: code_of(&status),
            message: message_of(&status),
            reason: info.as_ref().map(|info| info.reason.clone()).unwrap_or_default(),
            domain: info.as_ref().map(|info| info.domain.clone()).unwrap_or_default(),
            metadata: info.map(|info| info.metadata).unwrap_or_default(),
            fields: violations
                .into_iter()
                .flatten()
                .map(|found| FieldViolation { field: found.field, description: found.description })
                .collect(),
            retry_delay: details.retry_info().and_then(|info| info.retry_delay),
        }
    }
}

/// Returns the code of a status, and `Unavailable` if the connection broke or the server is shutting down.
fn code_of(status: &Status) -> Code {
    match status.code() {
        Code::Cancelled if has_timed_out(status) => Code::DeadlineExceeded,
        // A caller who cancels a call drops its future, and does not see this error.
        Code::Cancelled => Code::Unavailable,
        // A status from the server has no source.
        Code::Unknown | Code::Internal | Code::ResourceExhausted if status.source().is_some() => {
            Code::Unavailable
        }
        // tonic's text for a stream that was reset, because hyper hides the reset from it.
        Code::Unknown if status.message().contains("missing grpc-status") => Code::Unavailable,
        Code::Internal if status.message().starts_with("Unexpected EOF") => Code::Unavailable,
        code => code,
    }
}

fn has_timed_out(status: &Status) -> bool {
    sources(status).any(|source| source.is::<TimeoutExpired>())
}

/// Maximum number of causes that are examined, because an error may be its own cause.
const MAX_SOURCES: usize = 100;

/// Iterates over an error and its causes.
pub(crate) fn sources<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = error.source();
    iter::from_fn(move || {
        let found = next?;
        next = found.source();
        Some(found)
    })
    .take(MAX_SOURCES)
}

/// Returns the status message with its root cause.
fn message_of(status: &Status) -> String {
    match sources(status).last() {
        Some(root) if !status.message().contains(&root.to_string()) => {
            format!("{}: {root}", status.message())
        }
        _ => status.message().to_owned(),
    }
}
