//! How a runner's function fails.

use std::any::type_name;
use std::error::Error as StdError;
use std::fmt::{self, Display, Formatter};

use crate::error::sources;
use crate::proto;

/// Bytes of a message that are kept.
const LONGEST_MESSAGE: usize = 16_384;

/// Why an attempt failed: what a [`Runner`](crate::Runner)'s function returns as its error.
///
/// Any error becomes one by `?`, with the name of its type. What is no [`std::error::Error`], a text or a boxed
/// error for instance, becomes one by `.map_err(Failure::new)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    kind: String,
    message: String,
    retryable: bool,
}

impl Failure {
    /// A failure with that message; its type is `Failure` until [`kind`](Self::kind) names another.
    pub fn new(message: impl Display) -> Self {
        Self { kind: "Failure".into(), message: message.to_string(), retryable: true }
    }

    /// Names the type of the failure.
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = kind.into();
        self
    }

    /// Says that another attempt would not do better: the rollout fails at once, whatever its retry condition.
    pub fn not_retryable(mut self) -> Self {
        self.retryable = false;
        self
    }

    pub(crate) fn into_proto(self) -> proto::Failure {
        let mut message = if self.message.is_empty() { self.kind.clone() } else { self.message };
        if message.len() > LONGEST_MESSAGE {
            let end = (0..=LONGEST_MESSAGE).rev().find(|&at| message.is_char_boundary(at));
            message.truncate(end.unwrap_or_default());
        }
        let retryable = (!self.retryable).then_some(false);
        proto::Failure { r#type: self.kind, message, retryable }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)
    }
}

impl<E: StdError + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        for source in sources(&error) {
            let source = source.to_string();
            if !message.contains(&source) {
                message += &format!(": {source}");
            }
        }
        Self::new(message).kind(type_name::<E>())
    }
}
