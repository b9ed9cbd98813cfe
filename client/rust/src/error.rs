//! What calls fail with.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::iter;
use std::time::Duration;

use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt;

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call failed: the server refused it, or could not be reached.
    #[error(transparent)]
    Call(#[from] Box<CallError>),
    /// A value is no JSON, or not the JSON that was wanted.
    #[error("JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// An argument or an option cannot be used.
    #[error("{0}")]
    Argument(String),
    /// A template cannot be filled in.
    #[error("{message}")]
    Template {
        /// What kind of problem it is.
        problem: TemplateProblem,
        /// What is wrong, and where.
        message: String,
    },
}

/// Why a template cannot be filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TemplateProblem {
    /// A value that it wants is not given.
    Missing,
    /// It is no template of its engine, or does what the engine cannot do.
    Malformed,
    /// This client has no such engine.
    Unsupported,
}

/// Why a call failed. It has changed nothing, unless the code is `Unavailable`, `DeadlineExceeded`, `Cancelled`
/// or `Internal`, which leave that open.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{code:?}{}: {message}", described(.reason))]
#[non_exhaustive]
pub struct CallError {
    /// gRPC's status code.
    pub code: Code,
    /// What is wrong, for people.
    pub message: String,
    /// Name of an [`ErrorReason`](crate::proto::ErrorReason), `ERROR_REASON_ROLLOUT_NOT_FOUND` for instance.
    /// Empty if the server, or what stands before it, gave none.
    pub reason: String,
    /// Domain of the reason: `lightningstore`.
    pub domain: String,
    /// What the message names, for machines; keys in lowerCamelCase.
    pub metadata: HashMap<String, String>,
    /// Fields of the request that have a value which they cannot have.
    pub fields: Vec<FieldViolation>,
    /// How long to wait before trying again. `None`: the server did not say that it would help.
    pub retry_delay: Option<Duration>,
}

/// A field with a value that it cannot have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldViolation {
    /// Its path in the request, `items[3].config.max_attempts` for instance.
    pub field: String,
    /// What would be right.
    pub description: String,
}

fn described(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" ({reason})") }
}

impl Error {
    /// The failure of a call, `None` for any other error.
    pub fn call(&self) -> Option<&CallError> {
        match self {
            Self::Call(call) => Some(call),
            _ => None,
        }
    }

    /// Status code of a failed call.
    pub fn code(&self) -> Option<Code> {
        self.call().map(|call| call.code)
    }

    /// Reason of a failed call, see [`CallError::reason`]; empty for any other error.
    pub fn reason(&self) -> &str {
        self.call().map_or("", |call| &call.reason)
    }

    /// How long the server wants to be left alone before the next try.
    pub fn retry_delay(&self) -> Option<Duration> {
        self.call().and_then(|call| call.retry_delay)
    }

    /// Whether waiting may help.
    pub(crate) fn mends(&self) -> bool {
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
        let mut failure = CallError::from(Status::unknown("the client is closed"));
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

/// The status' code, but `Unavailable` for what a broken connection, or a server that goes down, makes of calls.
fn code_of(status: &Status) -> Code {
    match status.code() {
        Code::Cancelled if has_timed_out(status) => Code::DeadlineExceeded,
        // Whoever cancels a call himself drops its future, and hears nothing of it.
        Code::Cancelled => Code::Unavailable,
        // What the server said has no source.
        Code::Unknown | Code::Internal | Code::ResourceExhausted if status.source().is_some() => {
            Code::Unavailable
        }
        // So tonic calls a stream that was reset, which hyper hides from it.
        Code::Unknown if status.message().contains("missing grpc-status") => Code::Unavailable,
        Code::Internal if status.message().starts_with("Unexpected EOF") => Code::Unavailable,
        code => code,
    }
}

fn has_timed_out(status: &Status) -> bool {
    sources(status).any(|source| source.is::<TimeoutExpired>())
}

/// Causes that are looked at: an error may be its own cause.
const MOST_SOURCES: usize = 100;

/// What caused an error, one after the other.
pub(crate) fn sources<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = error.source();
    iter::from_fn(move || {
        let found = next?;
        next = found.source();
        Some(found)
    })
    .take(MOST_SOURCES)
}

/// The status' message, with what is at the bottom of it.
fn message_of(status: &Status) -> String {
    match sources(status).last() {
        Some(root) if !status.message().contains(&root.to_string()) => {
            format!("{}: {root}", status.message())
        }
        _ => status.message().to_owned(),
    }
}
