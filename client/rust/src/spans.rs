//! Reads spans, and the triplets derived from them.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope};
use opentelemetry_proto::tonic::{resource, trace};

use crate::client::{Client, Stub};
use crate::proto::{
    AttemptTriplets, ListTripletsRequest, ListTripletsResponse, QuerySpansRequest, QuerySpansResponse,
    SpanBatch,
};
use crate::streams::{Opening, Query, Resumed, stream};

impl Client {
    /// Streams the spans that the request selects, in its order. After a broken connection the query is
    /// repeated, as with [`wait`](Self::wait), and spans that were already returned are skipped. Any other
    /// failure is the last item.
    pub fn spans(&self, request: QuerySpansRequest) -> Spans {
        Spans(Resumed::new(self, SpanQuery { request, seen: HashSet::new() }))
    }

    /// Streams rollouts as training data: for each attempt one complete message with the model calls, with
    /// prompt, response and reward. A rollout without attempts is returned once, with an empty attempt id.
    /// Resumes after a broken connection, as with [`wait`](Self::wait); no attempt is returned twice.
    pub fn triplets(&self, request: ListTripletsRequest) -> Triplets {
        Triplets(Resumed::new(self, TripletQuery { request, seen: HashSet::new(), part: None }))
    }
}

/// A stored span: OTLP's span with its attempt, resource and scope.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Span {
    /// The span itself.
    pub otlp: trace::v1::Span,
    /// Id of its rollout.
    pub rollout_id: String,
    /// Id of its attempt.
    pub attempt_id: String,
    /// Position within the attempt, counted from 1.
    pub sequence_id: i64,
    /// The entity that produced it.
    pub resource: Option<Arc<resource::v1::Resource>>,
    /// The instrumentation scope.
    pub scope: Option<Arc<InstrumentationScope>>,
}

impl Span {
    /// Returns the value of an attribute.
    pub fn attribute(&self, name: &str) -> Option<&AnyValue> {
        self.otlp.attributes.iter().find(|pair| pair.key == name)?.value.as_ref()
    }
}

/// The spans that a query selects; see [`Client::spans`].
#[derive(Debug)]
pub struct Spans(Resumed<SpanQuery>);

stream!(Spans yields Span);

/// The triplets of attempts; see [`Client::triplets`].
#[derive(Debug)]
pub struct Triplets(Resumed<TripletQuery>);

stream!(Triplets yields AttemptTriplets);

struct SpanQuery {
    request: QuerySpansRequest,
    seen: HashSet<(Arc<str>, Vec<u8>)>,
}

impl Query for SpanQuery {
    type Message = QuerySpansResponse;
    type Item = Span;

    fn open(&mut self, mut stub: Stub) -> Option<Opening<Self::Message>> {
        let request = self.request.clone();
        Some(Box::pin(async move { stub.query_spans(request).await }))
    }

    fn take(&mut self, message: Self::Message, items: &mut VecDeque<Span>) {
        for batch in message.batches {
            let attempt: Arc<str> = batch.attempt_id.as_str().into();
            let new = spans_of(batch);
            items.extend(new.filter(|s| self.seen.insert((attempt.clone(), s.otlp.span_id.clone()))));
        }
    }

    fn is_complete(&self, well: bool) -> bool {
        well
    }
}

fn spans_of(batch: SpanBatch) -> impl Iterator<Item = Span> {
    let SpanBatch { scope, spans, rollout_id, attempt_id, resource, sequence_ids, .. } = batch;
    let (resource, scope) = (resource.map(Arc::new), scope.map(Arc::new));
    let numbers = sequence_ids.into_iter().chain(std::iter::repeat(0));
    spans.into_iter().zip(numbers).map(move |(otlp, sequence_id)| Span {
        otlp,
        rollout_id: rollout_id.clone(),
        attempt_id: attempt_id.clone(),
        sequence_id,
        resource: resource.clone(),
        scope: scope.clone(),
    })
}

struct TripletQuery {
    request: ListTripletsRequest,
    /// Ids of the rollouts and attempts that were returned.
    seen: HashSet<(String, String)>,
    /// An attempt with further parts to come.
    part: Option<AttemptTriplets>,
}

impl Query for TripletQuery {
    type Message = ListTripletsResponse;
    type Item = AttemptTriplets;

    fn open(&mut self, mut stub: Stub) -> Option<Opening<Self::Message>> {
        self.part = None; // it comes again, from its beginning
        let request = self.request.clone();
        Some(Box::pin(async move { stub.list_triplets(request).await }))
    }

    fn take(&mut self, message: Self::Message, items: &mut VecDeque<AttemptTriplets>) {
        for next in message.attempts {
            let whole = match self.part.take() {
                None => next,
                Some(mut part) => {
                    part.triplets.extend(next.triplets);
                    part.unmatched_rewards.extend(next.unmatched_rewards);
                    part.warnings.extend(next.warnings);
                    AttemptTriplets { warning_count: next.warning_count, complete: next.complete, ..part }
                }
            };
            if !whole.complete {
                self.part = Some(whole);
                continue;
            }
            let of = whole.attempt.clone().unwrap_or_default();
            if self.seen.insert((of.rollout_id, of.attempt_id)) {
                items.push_back(whole);
            }
        }
    }

    fn is_complete(&self, well: bool) -> bool {
        well
    }
}
