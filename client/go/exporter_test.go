package lightningstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

func tracerOf(exporter *SpanExporter) trace.Tracer {
	return sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter)).Tracer("test")
}

// makeSpans ends a span of each name with an exporter.
func makeSpans(exporter *SpanExporter, names ...string) {
	tracer := tracerOf(exporter)
	for _, name := range names {
		_, span := tracer.Start(context.Background(), name)
		span.End()
	}
}

func flush(t *testing.T, exporter *SpanExporter) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := exporter.ForceFlush(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestExporterSendsAgainWhatWasNotAcknowledgedAndNothingElse(t *testing.T) {
	server := &scripted{}
	streams := atomic.Int32{}
	var lost []string
	server.onIngest = func(batches []*pb.SpanBatch) (*pb.IngestResult, error) {
		if streams.Add(1) <= 6 { // more than gRPC repeats by itself
			for _, batch := range batches {
				for _, span := range batch.GetSpans() {
					lost = append(lost, span.GetName())
				}
			}
			return nil, errAway
		}
		return server.keep(batches), nil
	}
	exporter := NewSpanExporter(serve(t, server), &ExporterOptions{RolloutID: "ro-1", AttemptID: "at-1"})
	makeSpans(exporter, "a", "b")
	flush(t, exporter)
	makeSpans(exporter, "c")
	flush(t, exporter)
	if err := exporter.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := server.stored(); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Fatal(got)
	}
	if !slices.Contains(lost, "a") || exporter.Dropped() != 0 {
		t.Fatal(lost, exporter.Dropped())
	}
}

func TestExporterDropsBeyondItsBuffer(t *testing.T) {
	server := &scripted{}
	server.onIngest = func([]*pb.SpanBatch) (*pb.IngestResult, error) { return nil, errAway }
	exporter := NewSpanExporter(serve(t, server),
		&ExporterOptions{RolloutID: "ro-1", AttemptID: "at-1", MaxBufferBytes: 1000})
	for i := range 100 {
		makeSpans(exporter, fmt.Sprint("span ", i))
	}
	dropped := exporter.Dropped()
	if dropped == 0 || dropped >= 100 {
		t.Fatal(dropped)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := exporter.ForceFlush(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if err := exporter.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	makeSpans(exporter, "late")
	if exporter.Dropped() != 101 { // those not stored at the end are lost, and counted
		t.Fatal(exporter.Dropped())
	}
}

func TestShutdownHoldsNobodyUpForLong(t *testing.T) {
	t.Parallel()
	server := &scripted{}
	server.onIngest = func([]*pb.SpanBatch) (*pb.IngestResult, error) { return nil, errAway }
	exporter := NewSpanExporter(serve(t, server), &ExporterOptions{RolloutID: "ro-1", AttemptID: "at-1"})
	makeSpans(exporter, "a")
	began := time.Now()
	if err := exporter.Shutdown(context.Background()); err == nil {
		t.Fatal("nothing could be stored")
	}
	if took := time.Since(began); took > maxShutdown+20*time.Second {
		t.Fatal(took)
	}
}

func TestSpansSayThemselvesWhereTheyBelong(t *testing.T) {
	server := &scripted{}
	filed := make(chan string, 10)
	server.onIngest = func(batches []*pb.SpanBatch) (*pb.IngestResult, error) {
		for _, batch := range batches {
			for i, span := range batch.GetSpans() {
				text := span.GetName() + " " + batch.GetRolloutId() + " " + batch.GetAttemptId()
				if len(batch.GetSequenceIds()) > 0 {
					text += fmt.Sprint(" ", batch.GetSequenceIds()[i])
				}
				filed <- text
			}
		}
		return server.keep(batches), nil
	}
	exporter := NewSpanExporter(serve(t, server), nil)
	of := resource.NewSchemaless(attribute.String(rolloutIDKey, "ro-r"), attribute.String(attemptIDKey, "at-r"))
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter), sdktrace.WithResource(of)).Tracer("test")
	_, span := tracer.Start(context.Background(), "resource")
	span.End()
	_, span = tracer.Start(context.Background(), "own", trace.WithAttributes(attribute.String(rolloutIDKey, "ro-s"),
		attribute.String(attemptIDKey, "at-s"), attribute.Int(sequenceIDKey, 7)))
	span.End()
	makeSpans(exporter, "nobody's")
	flush(t, exporter)
	got := []string{next(t, filed, "a span"), next(t, filed, "a span")}
	if !slices.Equal(got, []string{"resource ro-r at-r", "own ro-s at-s 7"}) {
		t.Fatal(got)
	}
	if exporter.Dropped() != 1 {
		t.Fatal(exporter.Dropped())
	}
}

func TestOneBadSpanCostsNoOther(t *testing.T) {
	server := &scripted{}
	server.onIngest = func(batches []*pb.SpanBatch) (*pb.IngestResult, error) {
		var good []*pb.SpanBatch
		result := &pb.IngestResult{}
		for i, batch := range batches {
			bad := false
			for _, span := range batch.GetSpans() {
				bad = bad || span.GetName() == "bad"
			}
			if !bad {
				good = append(good, batch)
				continue
			}
			result.RejectedCount += int64(len(batch.GetSpans()))
			result.Rejections = append(result.Rejections, &pb.BatchRejection{MessageIndex: int64(i),
				Reason: pb.ErrorReason_ERROR_REASON_FIELD_INVALID, SpanCount: int32(len(batch.GetSpans()))})
		}
		result.AcceptedCount = server.keep(good).GetAcceptedCount()
		return result, nil
	}
	exporter := NewSpanExporter(serve(t, server), &ExporterOptions{RolloutID: "ro-1", AttemptID: "at-1"})
	tracer := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter)) // all in one batch
	for _, name := range []string{"a", "bad", "caf\xc3", "b"} {
		_, span := tracer.Tracer("test").Start(context.Background(), name)
		span.End()
	}
	if err := tracer.ForceFlush(context.Background()); err != nil {
		t.Fatal(err)
	}
	flush(t, exporter)
	if got := server.stored(); !slices.Equal(got, []string{"a", "caf\ufffd", "b"}) || exporter.Dropped() != 1 {
		t.Fatal(got, exporter.Dropped())
	}
}

func TestEveryTextIsSentAsUTF8(t *testing.T) {
	server := &scripted{}
	sent := make(chan *pb.SpanBatch, 1)
	server.onIngest = func(batches []*pb.SpanBatch) (*pb.IngestResult, error) {
		sent <- batches[0]
		return server.keep(batches), nil
	}
	exporter := NewSpanExporter(serve(t, server), &ExporterOptions{RolloutID: "ro-1", AttemptID: "at-1"})
	const broken, mended = "\xff", "\ufffd"
	bad := attribute.String(broken, broken)
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter),
		sdktrace.WithResource(resource.NewWithAttributes(broken, bad)))
	tracer := provider.Tracer(broken, trace.WithInstrumentationVersion(broken), trace.WithSchemaURL(broken))
	_, span := tracer.Start(context.Background(), broken, trace.WithAttributes(bad),
		trace.WithLinks(trace.Link{Attributes: []attribute.KeyValue{bad}}))
	span.AddEvent(broken, trace.WithAttributes(attribute.StringSlice("list", []string{broken})))
	span.SetStatus(otelcodes.Error, broken)
	span.End()
	flush(t, exporter)
	batch := next(t, sent, "the span")
	got := batch.GetSpans()[0]
	for place, text := range map[string]string{
		"resource":        batch.GetResource().GetAttributes()[0].GetValue().GetStringValue(),
		"resource schema": batch.GetResourceSchemaUrl(),
		"scope":           batch.GetScope().GetName() + batch.GetScope().GetVersion() + batch.GetSchemaUrl(),
		"name":            got.GetName(),
		"key":             got.GetAttributes()[0].GetKey(),
		"value":           got.GetAttributes()[0].GetValue().GetStringValue(),
		"link":            got.GetLinks()[0].GetAttributes()[0].GetKey(),
		"event":           got.GetEvents()[0].GetName(),
		"list": got.GetEvents()[0].GetAttributes()[0].GetValue().GetArrayValue().GetValues()[0].
			GetStringValue(),
		"status": got.GetStatus().GetMessage(),
	} {
		if strings.ReplaceAll(text, mended, "") != "" || text == "" {
			t.Errorf("%s: %q", place, text)
		}
	}
}

func TestMessagesStaySmall(t *testing.T) {
	server := &scripted{}
	sizes := make(chan int, 100)
	server.onIngest = func(batches []*pb.SpanBatch) (*pb.IngestResult, error) {
		for _, batch := range batches {
			sizes <- len(batch.GetSpans())
		}
		return server.keep(batches), nil
	}
	exporter := NewSpanExporter(serve(t, server), &ExporterOptions{RolloutID: "ro-1", AttemptID: "at-1"})
	large := strings.Repeat("x", 400_000)
	makeSpans(exporter, large, large, large)
	flush(t, exporter)
	close(sizes)
	total := 0
	for size := range sizes {
		if size > 2 {
			t.Fatal(size)
		}
		total += size
	}
	if total != 3 {
		t.Fatal(total)
	}
}

func TestRewardsGoToTheTracerOfTheContextsSpan(t *testing.T) {
	server := &scripted{}
	exporter := NewSpanExporter(serve(t, server), &ExporterOptions{RolloutID: "ro-1", AttemptID: "at-1"})
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter)).Tracer("test")
	ctx, span := tracer.Start(context.Background(), "step")
	EmitReward(ctx, 1)
	span.End()
	flush(t, exporter)
	if got := server.stored(); !slices.Equal(got, []string{annotation, "step"}) {
		t.Fatal(got)
	}
}

func TestUploadEndsWhenTheClientIsClosedBeforeItIsConnected(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts connections and never says a word
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	client := connect(t, silent.Addr().String())
	exporter := NewSpanExporter(client, &ExporterOptions{RolloutID: "ro-1", AttemptID: "at-1"})
	makeSpans(exporter, "a")
	flushed, uploaded := make(chan error, 1), make(chan error, 1)
	go func() { flushed <- exporter.ForceFlush(context.Background()) }()
	go func() {
		stream, err := client.Service().IngestSpans(context.Background())
		if err == nil {
			_, err = stream.CloseAndRecv()
		}
		uploaded <- err
	}()
	conn, err := silent.Accept() // the calls wait for it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if err := next(t, uploaded, "the end of the upload"); err == nil {
		t.Fatal("the upload succeeded without a server")
	}
	if err := next(t, flushed, "the flush"); err != nil || exporter.Dropped() != 1 {
		t.Fatal(err, exporter.Dropped())
	}
}
