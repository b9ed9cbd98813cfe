//! Ids from the operating system's randomness.

use opentelemetry::trace::{SpanId, TraceId};
use opentelemetry_sdk::trace::IdGenerator;
use rand::TryRngCore;
use rand::rngs::OsRng;

/// Generates span and trace ids from the operating system's randomness, so that a forked child never repeats
/// the ids of its parent, as the SDK's own generator does. The tracers of a [`Runner`](crate::Runner) use it.
/// Pass it to your own tracer provider with `with_id_generator`.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemIds;

impl IdGenerator for SystemIds {
    fn new_trace_id(&self) -> TraceId {
        TraceId::from_bytes(random_bytes())
    }

    fn new_span_id(&self) -> SpanId {
        SpanId::from_bytes(random_bytes())
    }
}

/// Returns a new request id.
pub(crate) fn new_request_id() -> String {
    format!("{:032x}", u128::from_ne_bytes(random_bytes()))
}

/// Returns random bytes that are not all zero.
///
/// # Panics
///
/// If the system has no randomness, because repeated ids lose data.
fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    while bytes == [0; N] {
        OsRng.try_fill_bytes(&mut bytes).expect("randomness of the operating system");
    }
    bytes
}
