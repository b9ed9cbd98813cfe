//! Failures of a runner's function.

use std::any::{Any, type_name};
use std::error::Error as StdError;
use std::fmt::{self, Display, Formatter, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Error, sources};
use crate::proto;

/// Maximum size of a message in bytes.
const MAX_MESSAGE_BYTES: usize = 16_384;
/// Maximum size of a type's name in bytes.
const MAX_KIND_BYTES: usize = 256;
/// Maximum size in bytes of the reason why a report was rejected.
const MAX_REFUSAL_BYTES: usize = 500;

/// Why an attempt failed: the error type of a [`Runner`](crate::Runner)'s function.
///
/// `?` converts any error, with the name of its type. A value that does not implement [`std::error::Error`],
/// such as a text or a boxed error, is converted with `.map_err(Failure::new)`. Messages are truncated to 16
/// KiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    kind: String,
    message: String,
    retryable: bool,
}

impl Failure {
    /// Creates a failure with a message. Its type is `Failure` unless [`kind`](Self::kind) sets another.
    pub fn new(message: impl Display) -> Self {
        Self { kind: "Failure".into(), message: text_of(&message, MAX_MESSAGE_BYTES), retryable: true }
    }

    /// Sets the type of the failure.
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = kind.into();
        self
    }

    /// Marks a failure that another attempt cannot avoid: the rollout fails at once, regardless of its retry
    /// condition.
    pub fn not_retryable(mut self) -> Self {
        self.retryable = false;
        self
    }

    /// Returns the failure of a panic. The payload may be any value, and may panic itself when it is dropped.
    pub(crate) fn of_panic(payload: Box<dyn Any + Send>) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let failure = Self::new(text.unwrap_or("a panic without a text")).kind("panic");
        discard(payload);
        failure
    }

    /// Returns the failure that replaces an outcome that the server rejected. It contains nothing that can be
    /// rejected.
    pub(crate) fn of_refused_report(refused: Option<&proto::Failure>, error: &Error) -> Self {
        let why = text_of(&error.to_string().escape_default(), MAX_REFUSAL_BYTES);
        let failure = Self::new(format_args!("the server rejected the report: {why}")).kind("ReportRefused");
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
        // The methods of an error are user code and may panic.
        let texts = caught(|| sources(&error).map(|source| text_of(source, MAX_MESSAGE_BYTES)).collect());
        for source in texts.unwrap_or_else(Vec::new) {
            if message.len() < MAX_MESSAGE_BYTES && !message.contains(&source) {
                message += &format!(": {source}");
            }
        }
        Self::new(message).kind(type_name::<E>())
    }
}

/// Text up to a limit of bytes. Longer text is truncated at a character boundary, which also ends its
/// formatting.
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

/// Returns the result of a function; `None` if it panics.
fn caught<T>(function: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(function)).map_err(discard).ok()
}

/// Drops the payload of a panic, which may panic too; the payload of that panic is leaked.
fn discard(payload: Box<dyn Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(again);
    }
}
