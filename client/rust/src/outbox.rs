//! Prepares spans for sending: assigns them to attempts and groups them into messages.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_sdk::trace::SpanData;
use prost::Message;

use crate::proto::SpanBatch;

pub(crate) const ROLLOUT_ID: &str = "agentlightning.rollout_id";
pub(crate) const ATTEMPT_ID: &str = "agentlightning.attempt_id";
const SEQUENCE_ID: &str = "agentlightning.span_sequence_id";

/// A message is closed before it exceeds this size: small enough for every limit, large enough to be
/// efficient.
pub(crate) const BATCH_BYTES: usize = 1 << 20;
/// Maximum framing of a span within a message, in bytes.
const FRAME_BYTES: usize = 12;

/// Identifies an attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct AttemptKey {
    pub(crate) rollout_id: String,
    pub(crate) attempt_id: String,
}

impl AttemptKey {
    pub(crate) fn new(rollout_id: impl Into<String>, attempt_id: impl Into<String>) -> Self {
        Self { rollout_id: rollout_id.into(), attempt_id: attempt_id.into() }
    }
}

/// What the spans of one message have in common.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Origin {
    attempt: AttemptKey,
    resource: Resource,
    resource_schema_url: String,
    scope: Option<InstrumentationScope>,
    schema_url: String,
}

/// One encoded span.
#[derive(Debug)]
pub(crate) struct Item {
    origin: Arc<Origin>,
    pub(crate) span: Span,
    pub(crate) size: usize,
    sequence_id: i64,
}

impl Item {
    /// Returns whether the span names its attempt.
    pub(crate) fn is_filed(&self) -> bool {
        let AttemptKey { rollout_id, attempt_id } = &self.origin.attempt;
        !rollout_id.is_empty() && !attempt_id.is_empty()
    }
}

/// Converts spans of one resource to OTLP and assigns each to an attempt: the one named by its attributes,
/// else by the resource's, else the one given.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    resource: Resource,
    schema_url: String,
    fallback: AttemptKey,
    /// Origin of the previous span, because most spans have the same scope.
    last: Mutex<Option<(opentelemetry::InstrumentationScope, Arc<Origin>)>>,
}

impl Encoder {
    pub(crate) fn set_resource(&mut self, resource: &opentelemetry_sdk::Resource) {
        let found = ResourceAttributesWithSchema::from(resource);
        self.resource = Resource { attributes: found.attributes.0, ..Default::default() };
        self.schema_url = found.schema_url.unwrap_or_default();
        self.last = Mutex::default();
    }

    pub(crate) fn set_fallback(&mut self, attempt: AttemptKey) {
        self.fallback = attempt;
        self.last = Mutex::default();
    }

    pub(crate) fn encode(&self, data: SpanData) -> Item {
        let mut origin = self.origin(&data.instrumentation_scope);
        let span = Span::from(data);
        let mut attempt = origin.attempt.clone();
        let sequence_id = filed(&span.attributes, &mut attempt).max(0);
        if attempt != origin.attempt {
            origin = Arc::new(Origin { attempt, ..(*origin).clone() });
        }
        let size = span.encoded_len() + FRAME_BYTES;
        Item { origin, span, size, sequence_id }
    }

    fn origin(&self, scope: &opentelemetry::InstrumentationScope) -> Arc<Origin> {
        let mut last = self.last.lock().expect("no panic inside");
        match &*last {
            Some((known, origin)) if known == scope => origin.clone(),
            _ => {
                let mut attempt = self.fallback.clone();
                filed(&self.resource.attributes, &mut attempt);
                let origin = Arc::new(Origin {
                    attempt,
                    resource: self.resource.clone(),
                    resource_schema_url: self.schema_url.clone(),
                    scope: Some((scope, None).into()),
                    schema_url: scope.schema_url().unwrap_or_default().to_owned(),
                });
                *last = Some((scope.clone(), origin.clone()));
                origin
            }
        }
    }
}

impl Clone for Encoder {
    fn clone(&self) -> Self {
        let Self { resource, schema_url, fallback, .. } = self;
        let (resource, schema_url) = (resource.clone(), schema_url.clone());
        Self { resource, schema_url, fallback: fallback.clone(), last: Mutex::default() }
    }
}

/// Reads the attempt that the attributes name, and returns the sequence id, or 0 without one.
fn filed(attributes: &[KeyValue], attempt: &mut AttemptKey) -> i64 {
    let mut number = 0;
    for pair in attributes {
        let Some(value) = pair.value.as_ref().and_then(|value| value.value.as_ref()) else { continue };
        match (pair.key.as_str(), value) {
            (ROLLOUT_ID, Value::StringValue(id)) => attempt.rollout_id.clone_from(id),
            (ATTEMPT_ID, Value::StringValue(id)) => attempt.attempt_id.clone_from(id),
            (SEQUENCE_ID, Value::IntValue(id)) => number = *id,
            _ => {}
        }
    }
    number
}

/// Groups spans into messages of about `BATCH_BYTES`, each with one origin, in the order of each attempt's
/// spans.
pub(crate) fn into_messages(items: Vec<Item>) -> Vec<Arc<SpanBatch>> {
    struct Group {
        origin: Arc<Origin>,
        size: usize,
        items: Vec<(Span, i64)>,
    }
    let mut groups: Vec<Group> = Vec::new();
    let mut current: HashMap<AttemptKey, usize> = HashMap::new();
    for Item { origin, span, size, sequence_id } in items {
        let fits = |group: &Group| {
            (Arc::ptr_eq(&group.origin, &origin) || group.origin == origin)
                && group.size + size <= BATCH_BYTES
        };
        let at = match current.get(&origin.attempt) {
            Some(&at) if fits(&groups[at]) => at,
            _ => {
                current.insert(origin.attempt.clone(), groups.len());
                groups.push(Group { origin, size: 0, items: Vec::new() });
                groups.len() - 1
            }
        };
        groups[at].size += size;
        groups[at].items.push((span, sequence_id));
    }
    groups.into_iter().map(|group| Arc::new(to_batch(&group.origin, group.items))).collect()
}

fn to_batch(origin: &Origin, items: Vec<(Span, i64)>) -> SpanBatch {
    let (spans, mut sequence_ids): (Vec<_>, Vec<_>) = items.into_iter().unzip();
    if sequence_ids.iter().all(|&id| id == 0) {
        sequence_ids.clear();
    }
    SpanBatch {
        scope: origin.scope.clone(),
        spans,
        schema_url: origin.schema_url.clone(),
        rollout_id: origin.attempt.rollout_id.clone(),
        attempt_id: origin.attempt.attempt_id.clone(),
        resource: Some(origin.resource.clone()),
        resource_schema_url: origin.resource_schema_url.clone(),
        sequence_ids,
    }
}

/// Splits a message into one message per span.
pub(crate) fn split(batch: &SpanBatch) -> Vec<Arc<SpanBatch>> {
    let common = SpanBatch { spans: Vec::new(), sequence_ids: Vec::new(), ..batch.clone() };
    let one = |(index, span): (usize, &Span)| {
        let sequence_ids = batch.sequence_ids.get(index).copied().into_iter().collect();
        Arc::new(SpanBatch { spans: vec![span.clone()], sequence_ids, ..common.clone() })
    };
    batch.spans.iter().enumerate().map(one).collect()
}
