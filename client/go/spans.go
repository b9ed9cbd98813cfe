package lightningstore

import (
	"context"
	"errors"
	"io"
	"iter"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// Span is a stored span: OTLP's span with its attempt, resource and scope.
type Span struct {
	*tracepb.Span
	// RolloutID and AttemptID of the span's attempt.
	RolloutID, AttemptID string
	// SequenceID is its position within the attempt, counted from 1.
	SequenceID int64
	// Resource is the entity that produced the span. May be nil.
	Resource *resourcepb.Resource
	// Scope is the instrumentation scope. May be nil.
	Scope *commonpb.InstrumentationScope
}

// Attribute returns the value of an attribute, or nil if there is none.
func (s *Span) Attribute(name string) *commonpb.AnyValue {
	for _, attribute := range s.GetAttributes() {
		if attribute.GetKey() == name {
			return attribute.GetValue()
		}
	}
	return nil
}

// Spans yields the spans that the request selects, in its order. After a broken connection the query is
// repeated, for as long as ctx lasts, and spans that were already yielded are skipped. Any other failure ends
// it with an error.
func (c *Client) Spans(ctx context.Context, request *pb.QuerySpansRequest) iter.Seq2[*Span, error] {
	return func(yield func(*Span, error) bool) {
		query := spanQuery{client: c, request: request, seen: map[spanKey]bool{}}
		pauses := newDelays(maxDelay)
		for {
			more, err := query.follow(ctx, yield)
			if !more {
				return
			}
			if !isRetryable(err) || ctx.Err() != nil || pauses.pause(ctx, err) != nil {
				yield(nil, orEnded(ctx, err))
				return
			}
		}
	}
}

type spanKey struct {
	attemptID string
	spanID    [8]byte
}

// spanQuery is a query and its progress.
type spanQuery struct {
	client  *Client
	request *pb.QuerySpansRequest
	seen    map[spanKey]bool
}

func (q *spanQuery) follow(ctx context.Context, yield func(*Span, error) bool) (more bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // where the caller leaves the loop
	stream, err := q.client.service.QuerySpans(ctx, q.request)
	if err != nil {
		return true, err
	}
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return true, err
		}
		for _, batch := range answer.GetBatches() {
			if !q.pass(batch, yield) {
				return false, nil
			}
		}
	}
}

// pass yields the new spans of a batch. It returns false if the caller wants no more.
func (q *spanQuery) pass(batch *pb.SpanBatch, yield func(*Span, error) bool) bool {
	for i, span := range batch.GetSpans() {
		key := spanKey{attemptID: batch.GetAttemptId()}
		copy(key.spanID[:], span.GetSpanId())
		if q.seen[key] {
			continue
		}
		q.seen[key] = true
		found := &Span{Span: span, RolloutID: batch.GetRolloutId(), AttemptID: batch.GetAttemptId(),
			Resource: batch.GetResource(), Scope: batch.GetScope()}
		if numbers := batch.GetSequenceIds(); i < len(numbers) {
			found.SequenceID = numbers[i]
		}
		if !yield(found, nil) {
			return false
		}
	}
	return true
}
