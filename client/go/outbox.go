package lightningstore

import (
	"context"
	"unicode/utf8"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

const (
	rolloutIDKey  = "agentlightning.rollout_id"
	attemptIDKey  = "agentlightning.attempt_id"
	sequenceIDKey = "agentlightning.span_sequence_id"

	// A message that exceeds this size gets no more spans. It is below every limit and large enough to be efficient.
	batchBytes = mib
)

// attemptKey identifies an attempt.
type attemptKey struct{ rolloutID, attemptID string }

// origin holds what the spans of one batch have in common.
type origin struct {
	attempt attemptKey
	// identity holds resource, scope and schema URLs as bytes, for comparison.
	identity          string
	resource          *resourcepb.Resource
	resourceSchemaURL string
	scope             *commonpb.InstrumentationScope
	schemaURL         string
}

func (o *origin) equals(other *origin) bool {
	return o.attempt == other.attempt && o.identity == other.identity
}

// item is one encoded span. If it cannot be sent, its origin is nil and wrong says why.
type item struct {
	wrong      string
	origin     *origin
	span       *tracepb.Span
	size       int
	sequenceID int64
}

// collector replaces the connection of OTLP's exporter and keeps the encoded spans.
type collector struct{ spans []*tracepb.ResourceSpans }

func (*collector) Start(context.Context) error { return nil }
func (*collector) Stop(context.Context) error  { return nil }
func (c *collector) UploadTraces(_ context.Context, spans []*tracepb.ResourceSpans) error {
	c.spans = spans
	return nil
}

// encode converts spans to OTLP and assigns each to an attempt: the one named by its attributes, else by its
// resource's, else the fallback.
func encode(spans []sdktrace.ReadOnlySpan, fallback attemptKey) ([]item, error) {
	var encoded collector
	if err := otlptrace.NewUnstarted(&encoded).ExportSpans(context.Background(), spans); err != nil {
		return nil, err
	}
	items := make([]item, 0, len(spans))
	for _, ofResource := range encoded.spans {
		byResource, _ := filed(ofResource.GetResource().GetAttributes(), fallback)
		for _, ofScope := range ofResource.GetScopeSpans() {
			common := &origin{
				attempt:           byResource,
				identity:          identity(ofResource, ofScope),
				resource:          ofResource.GetResource(),
				resourceSchemaURL: ofResource.GetSchemaUrl(),
				scope:             ofScope.GetScope(),
				schemaURL:         ofScope.GetSchemaUrl(),
			}
			for _, span := range ofScope.GetSpans() {
				items = append(items, toItem(span, common))
			}
		}
	}
	return items, nil
}

func toItem(span *tracepb.Span, common *origin) item {
	attempt, number := filed(span.GetAttributes(), common.attempt)
	// The framing of a span within a message takes a few bytes.
	found := item{origin: common, span: span, size: proto.Size(span) + 12, sequenceID: max(number, 0)}
	if attempt != common.attempt {
		own := *common
		own.attempt = attempt
		found.origin = &own
	}
	if found.wrong = wrongAttempt(attempt); found.wrong == "" && len(common.identity) > maxSpanBytes {
		found.wrong = "resource and scope too large" // the server limits them like a span
	}
	if found.wrong != "" {
		found.origin = nil
	}
	return found
}

// wrongAttempt returns why ids cannot name an attempt, or "" if they can. An id that is not UTF-8 cannot be
// sent, and a repaired id would name another attempt.
func wrongAttempt(attempt attemptKey) string {
	switch {
	case attempt.rolloutID == "" || attempt.attemptID == "":
		return "no rollout id and attempt id"
	case !utf8.ValidString(attempt.rolloutID):
		return rolloutIDKey + " is not valid UTF-8"
	case !utf8.ValidString(attempt.attemptID):
		return attemptIDKey + " is not valid UTF-8"
	}
	return ""
}

// filed returns the attempt that the attributes name, and the sequence id, or 0 without one.
func filed(attributes []*commonpb.KeyValue, fallback attemptKey) (attemptKey, int64) {
	found, number := fallback, int64(0)
	for _, attribute := range attributes {
		switch attribute.GetKey() {
		case rolloutIDKey:
			found.rolloutID = attribute.GetValue().GetStringValue()
		case attemptIDKey:
			found.attemptID = attribute.GetValue().GetStringValue()
		case sequenceIDKey:
			number = attribute.GetValue().GetIntValue()
		}
	}
	return found, number
}

// identity returns bytes that are equal for spans with the same resource and scope.
func identity(ofResource *tracepb.ResourceSpans, ofScope *tracepb.ScopeSpans) string {
	text := []byte(ofResource.GetSchemaUrl() + "\x00" + ofScope.GetSchemaUrl() + "\x00")
	text = appendMessage(text, ofResource.GetResource())
	text = appendMessage(append(text, 0), ofScope.GetScope())
	return string(text)
}

func appendMessage(text []byte, message proto.Message) []byte {
	options := proto.MarshalOptions{Deterministic: true}
	if longer, err := options.MarshalAppend(text, message); err == nil {
		return longer
	}
	valid := proto.Clone(message)
	_ = makeValid(valid.ProtoReflect()) // all texts of OTLP may be replaced
	longer, _ := options.MarshalAppend(text, valid)
	return longer
}

// intoMessages groups items into messages of about batchBytes, each with one origin, in the order of each
// attempt's spans.
func intoMessages(items []item) [][]item {
	type place struct{ message, size int }
	var messages [][]item
	current := map[attemptKey]place{}
	for _, next := range items {
		at, known := current[next.origin.attempt]
		if !known || !messages[at.message][0].origin.equals(next.origin) || at.size+next.size > batchBytes {
			at = place{message: len(messages)}
			messages = append(messages, nil)
		}
		messages[at.message] = append(messages[at.message], next)
		at.size += next.size
		current[next.origin.attempt] = at
	}
	return messages
}

// toBatch returns items of one origin as a message of the contract.
func toBatch(items []item) *pb.SpanBatch {
	from := items[0].origin
	batch := &pb.SpanBatch{
		RolloutId:         from.attempt.rolloutID,
		AttemptId:         from.attempt.attemptID,
		Resource:          from.resource,
		ResourceSchemaUrl: from.resourceSchemaURL,
		Scope:             from.scope,
		SchemaUrl:         from.schemaURL,
		Spans:             make([]*tracepb.Span, len(items)),
	}
	numbered := false
	numbers := make([]int64, len(items))
	for i, next := range items {
		batch.Spans[i], numbers[i] = next.span, next.sequenceID
		numbered = numbered || next.sequenceID > 0
	}
	if numbered {
		batch.SequenceIds = numbers
	}
	return batch
}
