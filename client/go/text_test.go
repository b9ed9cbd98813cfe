package lightningstore

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const noUTF8 = "a\xffb"

func TestTextThatNamesSomethingIsRefusedWithItsField(t *testing.T) {
	client := serve(t, &scripted{})
	ctx := context.Background()
	calls := map[string]func() error{
		"rollouts[1].group_id": func() error {
			_, err := client.Enqueue(ctx, RolloutSpec{Input: 1}, RolloutSpec{Input: 1, GroupID: noUTF8})
			return err
		},
		"rollout_ids[2]": func() error {
			_, err := client.Cancel(ctx, "a", "b", noUTF8)
			return err
		},
		`resources["a\xffb"]`: func() error {
			_, err := client.AddResources(ctx, Resources{noUTF8: NewLLM("http://h", "m")})
			return err
		},
		"resources[\"llm\"].llm.model": func() error {
			_, err := client.AddResources(ctx, Resources{"llm": NewLLM("http://h", noUTF8)})
			return err
		},
		"attempts[0].attempt_id": func() error {
			_, err := client.Service().Heartbeat(ctx, &pb.HeartbeatRequest{WorkerId: "w",
				Attempts: []*pb.AttemptRef{{RolloutId: "r", AttemptId: noUTF8}}})
			return err
		},
		"rollout_id": func() error {
			for _, err := range client.Spans(ctx, &pb.QuerySpansRequest{RolloutId: noUTF8}) {
				return err
			}
			return nil
		},
		"batch.rollout_id": func() error {
			stream, err := client.Service().IngestSpans(ctx)
			if err != nil {
				return err
			}
			return stream.Send(&pb.IngestSpansRequest{Batch: &pb.SpanBatch{RolloutId: noUTF8}})
		},
	}
	for field, call := range calls {
		var found *Error
		if err := call(); !errors.As(err, &found) || found.Code != codes.InvalidArgument || len(found.Fields) != 1 ||
			found.Fields[0].Field != field || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestTextThatDescribesSomethingIsReplacedInEveryCall(t *testing.T) {
	server := &scripted{}
	client := serve(t, server)
	request := &pb.UpdateAttemptRequest{Attempt: &pb.Attempt{RolloutId: "r", AttemptId: "a",
		Failure: &pb.Failure{Type: noUTF8, Message: noUTF8}}}
	if _, err := client.Service().UpdateAttempt(context.Background(), request); err != nil {
		t.Fatal(err)
	}
	got := next(t, server.updates, "the update").GetAttempt().GetFailure()
	if got.GetType() != "a\ufffdb" || got.GetMessage() != "a\ufffdb" {
		t.Fatal(got)
	}
	if request.GetAttempt().GetFailure().GetType() != noUTF8 {
		t.Fatal("the caller's message was changed")
	}
}

func TestSpanWithAnIDThatIsNotUTF8CostsNoOther(t *testing.T) {
	server := &scripted{}
	exporter := NewSpanExporter(serve(t, server), &ExporterOptions{RolloutID: "ro-1", AttemptID: "at-1"})
	bad := tracerOf(exporter)
	_, span := bad.Start(context.Background(), "bad", trace.WithAttributes(attribute.String(attemptIDKey, noUTF8)))
	span.End()
	makeSpans(exporter, "good")
	flush(t, exporter)
	if got := server.stored(); !slices.Equal(got, []string{"good"}) || exporter.Dropped() != 1 {
		t.Fatal(got, exporter.Dropped())
	}
}

type throwing struct{}

func (throwing) MarshalJSON() ([]byte, error) { return nil, errors.New("not today") }

type inner struct {
	Scores []float64 `json:"scores"`
}

func TestWhatJSONHasNoPlaceForIsRefusedWithItsPath(t *testing.T) {
	client := serve(t, &scripted{})
	holdsItself := map[string]any{}
	holdsItself["a"] = holdsItself
	cases := map[string]any{
		"rollouts[0].input":                           math.NaN(),
		"rollouts[0].input.deep[1].b":                 map[string]any{"deep": []any{1, map[string]any{"b": math.Inf(1)}}},
		"rollouts[0].input.scores[1]":                 struct{ inner }{inner{[]float64{1, math.NaN()}}},
		"rollouts[0].input.Run":                       struct{ Run func() }{func() {}},
		"rollouts[0].input.c":                         map[string]any{"c": make(chan int)},
		"rollouts[0].input: json: unsupported":        holdsItself,
		"rollouts[0].input: json: error calling":      throwing{},
		"rollouts[0].input: JSON must be valid UTF-8": json.RawMessage("\"" + noUTF8 + "\""),
	}
	for path, value := range cases {
		_, err := client.Enqueue(context.Background(), RolloutSpec{Input: value})
		if err == nil || !strings.HasPrefix(err.Error()+": ", "lightningstore: "+path+": ") &&
			!strings.HasPrefix(err.Error(), "lightningstore: "+path) {
			t.Errorf("%s: %v", path, err)
		}
	}
	metadata := map[string]any{"x": math.NaN()}
	_, err := client.Enqueue(context.Background(), RolloutSpec{}, RolloutSpec{Metadata: metadata})
	if err == nil || !strings.HasPrefix(err.Error(), "lightningstore: rollouts[1].metadata.x: ") {
		t.Error(err)
	}
}

func TestMessagesBeyondTheLimitSayWhatWouldBeRight(t *testing.T) {
	server := &scripted{}
	large := strings.Repeat("x", maxMessageBytes)
	server.onEnqueue = func(*pb.EnqueueRolloutsRequest) (*pb.EnqueueRolloutsResponse, error) {
		return &pb.EnqueueRolloutsResponse{Rollouts: []*pb.Rollout{{GroupId: large}}}, nil
	}
	client := serve(t, server)
	_, err := client.Enqueue(context.Background(), RolloutSpec{Input: large})
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "was not sent") {
		t.Error(err)
	}
	_, err = client.Enqueue(context.Background(), RolloutSpec{Input: 1})
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "has taken effect") {
		t.Error(err)
	}
}

func TestCutTextIsValidAndWithinItsLimit(t *testing.T) {
	for text, want := range map[string]string{
		"abcdef": "abcd", "abc": "abc", "abcé": "abc", "ab\xff\xfe\xfd": "ab", "\xffbcd": "\ufffdb", "": "", "日本": "日",
	} {
		if got := cutText(text, 4); got != want {
			t.Errorf("%q: %q, not %q", text, got, want)
		}
	}
}

// Valid messages must not be walked: they are nearly all.
func BenchmarkEncodingOfValidSpans(b *testing.B) {
	batch := &pb.SpanBatch{RolloutId: "r", AttemptId: "a"}
	for range 500 {
		batch.Spans = append(batch.Spans, &tracepb.Span{Name: strings.Repeat("n", 500)})
	}
	codec := newTextCodec()
	for b.Loop() {
		if _, err := codec.Marshal(batch); err != nil {
			b.Fatal(err)
		}
	}
}
