//! The generated messages, enums and stubs of the contract `lightningstore.v1`. Spans, resources and scopes
//! of OTLP are those of the crate [`opentelemetry_proto`].

#![allow(missing_docs, clippy::all)]

tonic::include_proto!("lightningstore.v1");

/// Names the fields that an update changes, such as `scores.judge`.
pub use prost_types::FieldMask;

/// A request of a unary method. Implemented for all of them.
pub trait Unary: prost::Message + Clone + 'static {
    /// The response type.
    type Answer: prost::Message + Default + 'static;
    /// Path of the method.
    const PATH: &'static str;
    /// Sets a request id, by which the server recognises a repeat, if the type has one and it is empty.
    fn identify(&mut self) {}
}

include!(concat!(env!("OUT_DIR"), "/calls.rs"));

fn fill(request_id: &mut String) {
    if request_id.is_empty() {
        *request_id = crate::ids::new_request_id();
    }
}

// Written by hand, because the key of an endpoint must not appear in logs.
impl std::fmt::Debug for Llm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Llm")
            .field("endpoint", &self.endpoint)
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}
