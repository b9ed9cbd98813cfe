package lightningstore

import (
	"context"
	"encoding/json"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

func TestErrorsTellAll(t *testing.T) {
	server := &scripted{}
	server.onEnqueue = func(*pb.EnqueueRolloutsRequest) (*pb.EnqueueRolloutsResponse, error) {
		with, err := status.New(codes.ResourceExhausted, "full").WithDetails(
			&errdetails.ErrorInfo{Reason: "ERROR_REASON_QUEUE_FULL", Domain: "lightningstore",
				Metadata: map[string]string{"limit": "7"}},
			&errdetails.RetryInfo{RetryDelay: durationpb.New(1500 * time.Millisecond)},
			&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
				{Field: "f", Description: "d"}}})
		if err != nil {
			return nil, err
		}
		return nil, with.Err()
	}
	_, err := serve(t, server).Enqueue(context.Background(), RolloutSpec{Input: 1})
	var known *Error
	if !errors.As(err, &known) {
		t.Fatal(err)
	}
	if known.Reason != "ERROR_REASON_QUEUE_FULL" || known.Domain != "lightningstore" ||
		known.Metadata["limit"] != "7" || known.RetryDelay == nil || *known.RetryDelay != 1500*time.Millisecond ||
		!slices.Equal(known.Fields, []FieldViolation{{"f", "d"}}) {
		t.Fatalf("%+v", known)
	}
	if !errors.Is(err, &Error{Code: codes.ResourceExhausted, Reason: "ERROR_REASON_QUEUE_FULL"}) ||
		errors.Is(err, &Error{Code: codes.ResourceExhausted, Reason: "ERROR_REASON_BUSY"}) ||
		errors.Is(err, ErrNotFound) || status.Code(err) != codes.ResourceExhausted {
		t.Fatal(err)
	}
}

func TestErrorsOfTheCallersContext(t *testing.T) {
	for name, onWait := range map[string]func(context.Context) error{
		"silence": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		"outage":  func(context.Context) error { return errAway },
		"told":    func(context.Context) error { return status.Error(codes.DeadlineExceeded, "first") },
	} {
		t.Run(name, func(t *testing.T) {
			server := &scripted{}
			server.onWait = func(_ *pb.WaitForRolloutsRequest, stream waitStream) error {
				return onWait(stream.Context())
			}
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			defer cancel()
			var failure error
			for _, err := range serve(t, server).Wait(ctx, WaitOptions{RolloutIDs: []string{"ro-1"}}).All() {
				failure = err
			}
			if !errors.Is(failure, context.DeadlineExceeded) {
				t.Fatal(failure)
			}
		})
	}
}

func TestLostAnswersAreAskedForAgainWithTheSameRequestID(t *testing.T) {
	server := &scripted{}
	var ids []string
	server.onEnqueue = func(request *pb.EnqueueRolloutsRequest) (*pb.EnqueueRolloutsResponse, error) {
		ids = append(ids, request.GetRequestId())
		if len(ids) < 3 {
			return nil, errAway
		}
		return &pb.EnqueueRolloutsResponse{Rollouts: []*pb.Rollout{{RolloutId: "ro-1"}}}, nil
	}
	request := &pb.EnqueueRolloutsRequest{Rollouts: []*pb.RolloutSpec{{InputJson: []byte("1")}}}
	client := serve(t, server)
	if _, err := client.Service().EnqueueRollouts(context.Background(), request); err != nil {
		t.Fatal(err)
	}
	if len(ids) != 3 || ids[0] == "" || ids[0] != ids[1] || ids[1] != ids[2] {
		t.Fatal(ids)
	}
	if request.GetRequestId() != "" {
		t.Fatal("the caller's message was changed") // it would be taken for a repeat the next time
	}
	if _, err := client.Service().EnqueueRollouts(context.Background(), request); err != nil || ids[3] == ids[0] {
		t.Fatal(err, ids)
	}
}

func TestCallsThatBrokeAreMadeAgain(t *testing.T) {
	for name, broken := range map[string]struct {
		err   error
		bytes int
	}{
		"server shuts down": {errShuttingDown, 1},
		"stream reset":      {errReset, 1},
		"1 MiB":             {errAway, mib},
	} {
		t.Run(name, func(t *testing.T) {
			server := &scripted{}
			var ids []string
			server.onEnqueue = func(request *pb.EnqueueRolloutsRequest) (*pb.EnqueueRolloutsResponse, error) {
				ids = append(ids, request.GetRequestId())
				if len(ids) < 2 {
					return nil, broken.err
				}
				return &pb.EnqueueRolloutsResponse{}, nil
			}
			input := strings.Repeat("1", broken.bytes)
			request := &pb.EnqueueRolloutsRequest{Rollouts: []*pb.RolloutSpec{{InputJson: []byte(input)}}}
			if _, err := serve(t, server).Service().EnqueueRollouts(context.Background(), request); err != nil {
				t.Fatal(err)
			}
			if len(ids) != 2 || ids[0] == "" || ids[0] != ids[1] {
				t.Fatal(ids)
			}
		})
	}
}

func TestWhatIsAlwaysBrokenIsNotTriedForEver(t *testing.T) {
	for _, broken := range []error{errAway, errShuttingDown, errReset} {
		server := &scripted{}
		tries := 0
		server.onEnqueue = func(*pb.EnqueueRolloutsRequest) (*pb.EnqueueRolloutsResponse, error) {
			tries++
			return nil, broken
		}
		_, err := serve(t, server).Enqueue(context.Background(), RolloutSpec{Input: 1})
		if !errors.Is(err, ErrUnavailable) || tries != maxTries {
			t.Error(broken, err, tries)
		}
	}
}

func TestWhatTheTransportSaysIsUnavailable(t *testing.T) {
	const reset = "stream terminated by RST_STREAM with error code: "
	for _, from := range []*status.Status{
		status.New(codes.Internal, reset+"INTERNAL_ERROR"),
		status.New(codes.ResourceExhausted, reset+"ENHANCE_YOUR_CALM"),
		status.New(codes.Internal, "unexpected EOF"),
		status.New(codes.Internal, "server closed the stream without sending trailers"),
		status.New(codes.Unknown, ""),
		status.New(codes.Canceled, "CANCELLED"),
	} {
		if err := convert(context.Background(), from.Err()); !errors.Is(err, ErrUnavailable) {
			t.Error(err)
		}
		said, err := from.WithDetails(&errdetails.ErrorInfo{Reason: "ERROR_REASON_BUSY", Domain: "lightningstore"})
		if err != nil {
			t.Fatal(err)
		}
		if err := convert(context.Background(), said.Err()); status.Code(err) != from.Code() {
			t.Error(err) // sent by the servers
		}
	}
	for _, from := range []*status.Status{
		status.New(codes.ResourceExhausted, "grpc: received message larger than max (2 vs. 1)"),
		status.New(codes.Internal, "grpc: failed to unmarshal the received message"),
	} {
		if err := convert(context.Background(), from.Err()); status.Code(err) != from.Code() {
			t.Error(err)
		}
	}
}

func TestInputsArriveWhole(t *testing.T) {
	server := &scripted{}
	inputs := make(chan string, 1)
	server.onEnqueue = func(request *pb.EnqueueRolloutsRequest) (*pb.EnqueueRolloutsResponse, error) {
		inputs <- string(request.GetRollouts()[0].GetInputJson())
		return &pb.EnqueueRolloutsResponse{}, nil
	}
	client := serve(t, server)
	huge, _ := new(big.Int).SetString("123456789012345678901234567890", 10)
	for want, input := range map[string]any{
		"9223372036854775807":               int64(9223372036854775807),
		"18446744073709551615":              uint64(18446744073709551615),
		"123456789012345678901234567890":    huge,
		`{"a":"<&>","b":[1.5,null,true]}`:   map[string]any{"a": "<&>", "b": []any{1.5, nil, true}},
		"{\"as\" :  1e2, \"given\": \"é\"}": json.RawMessage("{\"as\" :  1e2, \"given\": \"é\"}"),
	} {
		if _, err := client.Enqueue(context.Background(), RolloutSpec{Input: input}); err != nil {
			t.Fatal(err)
		}
		got := next(t, inputs, "the input")
		if got != want {
			t.Fatalf("%s arrived as %s", want, got)
		}
	}
	var back any
	if err := DecodeJSON([]byte("[18446744073709551617]"), &back); err != nil {
		t.Fatal(err)
	}
	if again, err := encodeJSON("input", back); err != nil || string(again) != "[18446744073709551617]" {
		t.Fatal(string(again), err)
	}
	for _, bad := range []any{func() {}, json.RawMessage("{")} {
		if _, err := client.Enqueue(context.Background(), RolloutSpec{Input: bad}); err == nil {
			t.Fatal("no JSON, no error")
		}
	}
}

func TestWaitGoesOnWhereItBroke(t *testing.T) {
	server := &scripted{}
	asked := make(chan []string, 10)
	server.onWait = func(request *pb.WaitForRolloutsRequest, stream waitStream) error {
		asked <- request.GetRolloutIds()
		first := &pb.Rollout{RolloutId: request.GetRolloutIds()[0]}
		if err := stream.Send(&pb.WaitForRolloutsResponse{Rollouts: []*pb.Rollout{first}}); err != nil {
			return err
		}
		if len(request.GetRolloutIds()) > 2 {
			return errAway
		}
		summary := &pb.WaitSummary{FinishedCount: 1, OpenCount: 1, OpenRolloutIds: request.GetRolloutIds()[1:]}
		return stream.Send(&pb.WaitForRolloutsResponse{Summary: summary})
	}
	waiting := serve(t, server).Wait(context.Background(),
		WaitOptions{RolloutIDs: []string{"a", "b", "c"}, Timeout: time.Hour})
	var got []string
	for rollout, err := range waiting.All() {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, rollout.GetRolloutId())
	}
	if !slices.Equal(got, []string{"a", "b"}) || !slices.Equal(waiting.Open(), []string{"c"}) {
		t.Fatal(got, waiting.Open())
	}
	next(t, asked, "the first question")
	if again := next(t, asked, "the second"); !slices.Equal(again, []string{"b", "c"}) {
		t.Fatal(again)
	}
}

func TestTokensStayOffPlainText(t *testing.T) {
	_, err := New("127.0.0.1:1", &Options{Token: "secret-token"})
	if err == nil || strings.Contains(err.Error(), "secret-token") {
		t.Fatal(err)
	}
	for address, options := range map[string]*Options{
		"127.0.0.1:1":         {Token: "t", AllowInsecureToken: true},
		"https://127.0.0.1:1": {Token: "t"},
	} {
		client, err := New(address, options)
		if err != nil {
			t.Fatal(err)
		}
		_ = client.Close()
	}
	if _, err := New("http://127.0.0.1:1", nil); err == nil {
		t.Fatal("http is no address")
	}
}

func TestRoutedEndpoints(t *testing.T) {
	for endpoint, want := range map[string]string{
		"http://h:8/v1":     "http://h:8/rollout/r/attempt/a/v1",
		"http://h:8/v1/":    "http://h:8/rollout/r/attempt/a/v1",
		"http://h:8":        "http://h:8/rollout/r/attempt/a",
		"http://h/v1/other": "http://h/v1/other/rollout/r/attempt/a",
	} {
		from := map[string]*pb.Resource{"llm": NewProxyLLM(endpoint, "m")}
		to := routed(from, "r", "a")
		if got := to.LLM("llm"); got.GetEndpoint() != want || got.GetModel() != "m" {
			t.Fatal(got)
		}
		if from["llm"].GetProxyLlm().GetLlm().GetEndpoint() != endpoint {
			t.Fatal("the kept resources were changed")
		}
	}
}

func TestQueryThatBreaksYieldsEachSpanOnce(t *testing.T) {
	server := &scripted{}
	server.onQuery = func(tries int, stream grpc.ServerStreamingServer[pb.QuerySpansResponse]) error {
		for id := range byte(3) {
			span := &tracepb.Span{SpanId: []byte{id, 1, 1, 1, 1, 1, 1, 1}}
			batch := &pb.SpanBatch{AttemptId: "at-1", Spans: []*tracepb.Span{span}, SequenceIds: []int64{int64(id) + 1}}
			if err := stream.Send(&pb.QuerySpansResponse{Batches: []*pb.SpanBatch{batch}}); err != nil {
				return err
			}
			if tries == 1 && id == 1 {
				return errAway
			}
		}
		return nil
	}
	var numbers []int64
	for span, err := range serve(t, server).Spans(context.Background(), &pb.QuerySpansRequest{RolloutId: "ro-1"}) {
		if err != nil {
			t.Fatal(err)
		}
		numbers = append(numbers, span.SequenceID)
	}
	if !slices.Equal(numbers, []int64{1, 2, 3}) {
		t.Fatal(numbers)
	}
}

func TestResourcesByKind(t *testing.T) {
	resources := Resources{"llm": NewLLM("http://h", "m"),
		"prompt": NewPromptTemplate("say {x}", pb.TemplateEngine_TEMPLATE_ENGINE_F_STRING)}
	if resources.LLM("llm").GetModel() != "m" || resources.PromptTemplate("prompt").GetTemplate() != "say {x}" {
		t.Fatal(resources)
	}
	if resources.LLM("prompt") != nil || resources.PromptTemplate("none") != nil {
		t.Fatal("found what is not there")
	}
	var value any
	if err := resources.Custom("llm", &value); err == nil {
		t.Fatal("no custom resource, no error")
	}
	if _, err := NewCustom("bad", func() {}); err == nil {
		t.Fatal("no JSON, no error")
	}
}
