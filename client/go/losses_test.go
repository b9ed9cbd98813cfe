package lightningstore

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
)

// recorded returns losses that log into a buffer, and the summaries that they have asked for.
func recorded() (*losses, *bytes.Buffer, *[]func()) {
	var buffer bytes.Buffer
	var due []func()
	found := newLosses(slog.New(slog.NewTextHandler(&buffer, nil)))
	found.after = func(delay time.Duration, do func()) {
		if delay == summaryPeriod {
			due = append(due, do)
		}
	}
	return found, &buffer, &due
}

func TestLossesAreSaidOnceAndThenInSummaries(t *testing.T) {
	lost, log, due := recorded()
	for range 1000 {
		lost.add(1, "buffer full")
		lost.add(2, "too large", "span", "s")
	}
	if text := log.String(); strings.Count(text, "\n") != 2 || !strings.Contains(text, "span=s") {
		t.Fatal(text)
	}
	if len(*due) != 1 {
		t.Fatalf("%d summaries are due", len(*due))
	}
	log.Reset()
	(*due)[0]()
	text := log.String()
	if strings.Count(text, "\n") != 1 || !strings.Contains(text, `why.buffer full"=999`) ||
		!strings.Contains(text, `why.too large"=1998`) || !strings.Contains(text, "total=3000") {
		t.Fatal(text)
	}
	log.Reset()
	lost.add(5, "buffer full")
	if len(*due) != 2 || log.Len() != 0 {
		t.Fatal(len(*due), log)
	}
	lost.summarize() // as a shutdown does
	if text := log.String(); !strings.Contains(text, `why.buffer full"=5`) || strings.Contains(text, "large") {
		t.Fatal(text)
	}
	log.Reset()
	(*due)[1]()
	if log.Len() != 0 || lost.count() != 3005 {
		t.Fatal(log, lost.count())
	}
}

func TestRefusalsWithoutAReasonAreCounted(t *testing.T) {
	server := &scripted{}
	server.onIngest = func(batches []*pb.SpanBatch) (*pb.IngestResult, error) {
		return &pb.IngestResult{RejectedCount: 2, Rejections: []*pb.BatchRejection{{MessageIndex: 99, SpanCount: 1}}}, nil
	}
	exporter := NewSpanExporter(serve(t, server), &ExporterOptions{RolloutID: "ro-1", AttemptID: "at-1"})
	makeSpans(exporter, "a", "b")
	flush(t, exporter)
	if exporter.Dropped() != 2 {
		t.Fatal(exporter.Dropped())
	}
}

func TestSingleRefusedSpansOfABatchAreToldAndTheOthersNotSentAgain(t *testing.T) {
	server := &scripted{}
	streams := 0
	server.onIngest = func(batches []*pb.SpanBatch) (*pb.IngestResult, error) {
		streams++
		return &pb.IngestResult{AcceptedCount: 1, RejectedCount: 2, Rejections: []*pb.BatchRejection{
			{Message: "another span has the id", SpanCount: 2}}}, nil
	}
	exporter := NewSpanExporter(serve(t, server), &ExporterOptions{RolloutID: "ro-1", AttemptID: "at-1"})
	lost, log, _ := recorded()
	exporter.lost = lost
	makeSpans(exporter, "a", "b", "c")
	flush(t, exporter)
	if text := log.String(); exporter.Dropped() != 2 || streams != 1 ||
		!strings.Contains(text, "another span has the id") || !strings.Contains(text, "count=2") {
		t.Fatal(exporter.Dropped(), streams, text)
	}
}

func TestTooLargeAResourceCostsItsSpansAndNothingIsSent(t *testing.T) {
	server := &scripted{}
	exporter := NewSpanExporter(serve(t, server), &ExporterOptions{RolloutID: "ro-1", AttemptID: "at-1"})
	large := resource.NewSchemaless(attribute.String("text", strings.Repeat("x", maxSpanBytes)))
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter), sdktrace.WithResource(large))
	_, span := provider.Tracer("test").Start(context.Background(), "s")
	span.End()
	flush(t, exporter)
	if got := server.stored(); len(got) != 0 || exporter.Dropped() != 1 {
		t.Fatal(got, exporter.Dropped())
	}
}

func TestRewardOfATracerThatDoesNotRecordIsAnError(t *testing.T) {
	if err := EmitReward(context.Background(), 1); err == nil || !strings.Contains(err.Error(), "does not record") {
		t.Fatal(err)
	}
}

func TestNothingOfTheEnvironmentSwitchesTheRunnersSpansOff(t *testing.T) {
	for name, value := range map[string]string{
		"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_SAMPLER": "always_off", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "1",
		"OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": "1",
		"OTEL_RESOURCE_ATTRIBUTES":               "agentlightning.rollout_id=other",
	} {
		t.Setenv(name, value)
	}
	server := &scripted{}
	batches := make(chan *pb.SpanBatch, 10)
	server.onIngest = func(all []*pb.SpanBatch) (*pb.IngestResult, error) {
		for _, batch := range all {
			batches <- batch
		}
		return server.keep(all), nil
	}
	start(t, NewRunner(serve(t, server), func(ctx context.Context, _ *Task[input]) (*float64, error) {
		return nil, EmitRewards(ctx, rewardsOf(200)...)
	}, &RunnerOptions{MaxRollouts: 1}))
	server.queue <- claimOf("ro-1", "1")
	if got := next(t, server.updates, "the outcome").GetAttempt().GetStatus(); got != succeeded {
		t.Fatal(got)
	}
	batch := next(t, batches, "the spans")
	if batch.GetRolloutId() != "ro-1" || batch.GetAttemptId() != "at-1" || len(batch.GetSpans()) != 1 ||
		len(batch.GetSpans()[0].GetAttributes()) != 400 {
		t.Fatal(batch.GetRolloutId(), batch.GetAttemptId(), len(batch.GetSpans()))
	}
}

func rewardsOf(count int) []NamedReward {
	rewards := make([]NamedReward, count)
	for i := range rewards {
		rewards[i] = NamedReward{Name: "dimension", Value: float64(i)}
	}
	return rewards
}
