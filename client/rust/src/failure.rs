//! How a runner's function fails.

use std::any::{Any, type_name};
use std::error::Error as StdError;
use std::fmt::{self, Display, Formatter, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Error, sources};
use crate::proto;

/// Bytes of a message that are kept.
const MAX_MESSAGE_BYTES: usize = 16_384;
/// Bytes of a type's name that are kept.
const MAX_KIND_BYTES: usize = 256;
/// Bytes that are kept of why a report was refused.
const MAX_REFUSAL_BYTES: usize = 500;

/// Why an attempt failed: what a [`Runner`](crate::Runner)'s function returns as its error.
///
/// Any error becomes one by `?`, with the name of its type. What is no [`std::error::Error`], a text or a boxed
/// error for instance, becomes one by `.map_err(Failure::new)`. Of a long message the first 16 KiB are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    kind: String,
    message: String,
    retryable: bool,
}

impl Failure {
    /// A failure with that message; its type is `Failure` until [`kind`](Self::kind) names another.
    pub fn new(message: impl Display) -> Self {
        Self { kind: "Failure".into(), message: text_of(&message, MAX_MESSAGE_BYTES), retryable: true }
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

    /// What a function panicked with. The payload may be anything, and panic itself when it is dropped.
    pub(crate) fn of_panic(payload: Box<dyn Any + Send>) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let failure = Self::new(text.unwrap_or("a panic whose payload is no text")).kind("panic");
        discard(payload);
        failure
    }

    /// What replaces an outcome that the server refused: nothing in it can be refused.
    pub(crate) fn of_refused_report(refused: Option<&proto::Failure>, error: &Error) -> Self {
        let why = text_of(&error.to_string().escape_default(), MAX_REFUSAL_BYTES);
        let failure = Self::new(format_args!("the server refused the report: {why}")).kind("ReportRefused");
        Self { retryable: refused.and_then(|refused| refused.retryable).unwrap_or(true), ..failure }
    }

    pub(crate) fn into_proto(self) -> proto::Failure {
        let message = if self.message.is_empty() { self.kind.clone() } else { self.message };
        let retryable = (!self.retryable).then_some(false);
        proto::Failure {
            r#type: text_of(&self.kind, MAX_KIND_BYTES),
            message: text_of(&message, MAX_MESSAGE_BYTES),
            retryable,
        }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)
    }
}

impl<E: StdError + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut message = text_of(&error, MAX_MESSAGE_BYTES);
        // The methods of an error are its author's, and may panic.
        let texts = caught(|| sources(&error).map(|source| text_of(source, MAX_MESSAGE_BYTES)).collect());
        for source in texts.unwrap_or_else(Vec::new) {
            if message.len() < MAX_MESSAGE_BYTES && !message.contains(&source) {
                message += &format!(": {source}");
            }
        }
        Self::new(message).kind(type_name::<E>())
    }
}

/// Text up to a limit of bytes. What is longer ends there, between two characters, and so does its formatting.
struct Bounded {
    text: String,
    limit: usize,
}

impl Write for Bounded {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let room = self.limit - self.text.len();
        if part.len() <= room {
            self.text.push_str(part);
            return Ok(());
        }
        let end = (0..=room).rev().find(|&at| part.is_char_boundary(at)).unwrap_or_default();
        self.text.push_str(&part[..end]);
        self.limit = self.text.len(); // nothing that is shorter may follow
        Err(fmt::Error)
    }
}

/// Returns the text of a value, at most `limit` bytes, whatever its `Display` does.
pub(crate) fn text_of(value: &(impl Display + ?Sized), limit: usize) -> String {
    let mut bounded = Bounded { text: String::new(), limit };
    let written = caught(|| write!(bounded, "{value}"));
    if bounded.text.is_empty() && !matches!(written, Some(Ok(()))) {
        return "a message that cannot be formatted".into();
    }
    bounded.text
}

/// Returns what a function returns; `None` if it panics.
fn caught<T>(function: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(function)).map_err(discard).ok()
}

/// Drops what something panicked with, which may panic too; what that panics with is leaked.
fn discard(payload: Box<dyn Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(again);
    }
}
