package lightningstore

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

const (
	// Timeout of one try of a call that is retried.
	tryTimeout = 5 * time.Second
	// Maximum time to retry a report while the server is down.
	outage = 10 * time.Minute
	// Number of cached resources, so that a batch of rollouts loads them once.
	keptResources = 4
)

// agentFunc is the user's function without the type of its input.
type agentFunc func(context.Context, Attempt) (*float64, error)

// work handles a claim, from loading its resources to reporting its outcome.
type work struct {
	client   *Client
	workerID string
	function agentFunc
	exporter *SpanExporter
	// hurried ends when the runner no longer waits for a server that is down.
	hurried context.Context
	// publishNumber is that of the resources which the function was called with last; 0: none.
	publishNumber atomic.Int64
	// withoutRewards is set once the server has rejected the field of the reward, as those of earlier versions do.
	withoutRewards atomic.Bool

	mu   sync.Mutex
	kept []*pb.Resources // the newest last
}

func (w *work) do(x *execution) {
	spans := &filing{exporter: w.exporter}
	var ended outcome
	err := w.fill(x.rollout)
	var resources Resources
	if err == nil {
		resources, err = w.resources(x.rollout)
	}
	if err != nil {
		ended = failed(err)
	} else {
		ended = x.run(w.function, Attempt{
			Rollout:   x.rollout,
			Resources: resources,
			Tracer:    spans.tracer(x.key),
			WorkerID:  w.workerID,
		})
	}
	w.log(x, ended)
	w.flush()
	w.report(x, ended, spans.count.Load())
}

func (w *work) log(x *execution, ended outcome) {
	log := w.client.log.With("rollout", x.key.rolloutID, "attempt", x.key.attemptID)
	switch why := x.stopped(); {
	case why != nil:
		log.Info("attempt stopped", "why", why)
	case ended.stack != "":
		log.Error("attempt failed", "type", ended.failure.GetType(), "message", ended.failure.GetMessage(),
			"stack", ended.stack)
	case ended.failure != nil:
		log.Warn("attempt failed", "type", ended.failure.GetType(), "message", ended.failure.GetMessage())
	}
}

// fill loads the payloads of a claim that were omitted from its response, as in repeated responses.
func (w *work) fill(rollout *pb.Rollout) error {
	if !rollout.GetPayloadsOmitted() {
		return nil
	}
	return w.patiently(func(ctx context.Context) error {
		whole, err := w.client.Rollout(ctx, rollout.GetRolloutId())
		if err != nil {
			return err
		}
		rollout.InputJson, rollout.MetadataJson = whole.GetInputJson(), whole.GetMetadataJson()
		rollout.PayloadsOmitted = false
		return nil
	})
}

// resources returns the resources of the attempt, from the cache if it has the claim's version.
func (w *work) resources(rollout *pb.Rollout) (Resources, error) {
	attempt := rollout.GetLatestAttempt()
	id := attempt.GetResourcesId()
	if id == "" {
		return Resources{}, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock() // one fetch for all that start together
	for _, kept := range w.kept {
		if kept.GetResourcesId() == id && kept.GetVersion() == attempt.GetResourcesVersion() {
			return w.use(kept, attempt), nil
		}
	}
	var found *pb.Resources
	err := w.patiently(func(ctx context.Context) (err error) {
		found, err = w.client.ResourcesVersion(ctx, id, attempt.GetResourcesVersion())
		return err
	})
	if err != nil {
		return nil, err
	}
	w.kept = append(w.kept, found) // servers without kept versions return the current one
	if len(w.kept) > keptResources {
		w.kept = w.kept[1:]
	}
	return w.use(found, attempt), nil
}

// use returns resources for an attempt, and keeps their publish number for the heartbeats. A server of an earlier
// version has none.
func (w *work) use(found *pb.Resources, attempt *pb.Attempt) Resources {
	w.publishNumber.Store(found.GetPublishNumber())
	return routed(found.GetResources(), attempt.GetRolloutId(), attempt.GetAttemptId())
}

// flush waits until the spans are stored, because an outcome must not be reported before them.
func (w *work) flush() {
	err := w.patiently(func(ctx context.Context) error { return w.exporter.ForceFlush(ctx) })
	if err != nil {
		w.client.log.Warn("reporting before all spans are stored", "error", err)
	}
}

func (w *work) report(x *execution, ended outcome, sent int64) {
	if why := x.stopped(); why != nil { // perhaps said while the spans were flushed
		ended = stoppedOutcome(why)
		if !w.isLive(x, why) {
			return
		}
	}
	request := &pb.UpdateAttemptRequest{
		Attempt: &pb.Attempt{RolloutId: x.key.rolloutID, AttemptId: x.key.attemptID,
			Status: pb.AttemptStatus_ATTEMPT_STATUS_SUCCEEDED},
		UpdateMask:    &fieldmaskpb.FieldMask{Paths: []string{"status"}},
		SentSpanCount: proto.Int64(sent),
		RequestId:     newRequestID(),
	}
	if ended.failure != nil {
		request.Attempt.Status = pb.AttemptStatus_ATTEMPT_STATUS_FAILED
		request.Attempt.Failure = ended.failure
		request.UpdateMask.Paths = append(request.UpdateMask.Paths, "failure")
	}
	if ended.reward != nil && !w.withoutRewards.Load() {
		request.Attempt.Reward = ended.reward
		request.UpdateMask.Paths = append(request.UpdateMask.Paths, "reward")
	}
	log := w.client.log.With("rollout", x.key.rolloutID, "attempt", x.key.attemptID)
	answer, err := w.update(request)
	if isUnknownPath(err) && request.Attempt.Reward != nil {
		log.Warn("the server knows no rewards in reports, so they are in spans only", "error", err)
		w.withoutRewards.Store(true)
		request.Attempt.Reward = nil
		request.UpdateMask = &fieldmaskpb.FieldMask{Paths: []string{"status"}}
		request.RequestId = newRequestID()
		answer, err = w.update(request)
	}
	if isRefused(err) {
		// Without a report the attempt would stay live.
		log.Warn("report rejected, reporting a minimal failure instead", "error", err)
		request.Attempt.Status = pb.AttemptStatus_ATTEMPT_STATUS_FAILED
		request.Attempt.Failure, request.Attempt.Reward = refusedFailure(err, ended.failure), nil
		request.UpdateMask = &fieldmaskpb.FieldMask{Paths: []string{"status", "failure"}}
		request.RequestId = newRequestID()
		answer, err = w.update(request)
	}
	if err != nil {
		log.Warn("attempt not reported", "error", err)
	}
	if missing := answer.GetMissingSpanCount(); missing > 0 {
		log.Warn("attempt has missing spans", "missing", missing)
	}
}

func (w *work) update(request *pb.UpdateAttemptRequest) (answer *pb.UpdateAttemptResponse, err error) {
	err = w.patiently(func(ctx context.Context) (err error) {
		answer, err = w.client.service.UpdateAttempt(ctx, request)
		return err
	})
	return answer, err
}

// isLive reports whether a cancelled attempt must still be ended. An expiry set by the watchdog is kept.
func (w *work) isLive(x *execution, why *StopError) bool {
	if why.Reason == pb.StopReason_STOP_REASON_UNKNOWN_ATTEMPT {
		return false
	}
	var status pb.AttemptStatus
	err := w.patiently(func(ctx context.Context) error {
		answer, err := w.client.service.GetAttempt(ctx,
			&pb.GetAttemptRequest{RolloutId: x.key.rolloutID, AttemptId: x.key.attemptID})
		status = answer.GetAttempt().GetStatus()
		return err
	})
	if err != nil {
		w.client.log.Warn("cancelled attempt not reported", "rollout", x.key.rolloutID,
			"attempt", x.key.attemptID, "error", err)
		return false
	}
	return status == pb.AttemptStatus_ATTEMPT_STATUS_PREPARING || status == pb.AttemptStatus_ATTEMPT_STATUS_RUNNING
}

// patiently repeats a call while the server is down.
func (w *work) patiently(do func(context.Context) error) error {
	until := time.Now().Add(outage)
	pauses := newDelays(maxDelay)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), tryTimeout)
		err := do(ctx)
		cancel()
		if err == nil || !isRetryable(err) || w.hurried.Err() != nil || time.Now().After(until) {
			return err
		}
		if pauses.pause(w.hurried, err) != nil {
			return errors.Join(err, errors.New("the runner is stopping"))
		}
	}
}

// filing passes the spans of one attempt to an exporter as they end, and counts them.
type filing struct {
	exporter *SpanExporter
	count    atomic.Int64
}

// tracer returns the tracer of an attempt. It neither samples nor truncates, because its spans are training
// data.
func (f *filing) tracer(key attemptKey) trace.Tracer {
	ids := resource.NewSchemaless(
		attribute.String(rolloutIDKey, key.rolloutID), attribute.String(attemptIDKey, key.attemptID))
	described, err := resource.Merge(resource.Default(), ids)
	if err != nil {
		described = ids // a default that contradicts itself
	}
	return sdktrace.NewTracerProvider(
		sdktrace.WithSampler(sdktrace.AlwaysSample()),
		sdktrace.WithResource(described),
		sdktrace.WithRawSpanLimits(sdktrace.SpanLimits{
			AttributeValueLengthLimit: -1, AttributeCountLimit: -1, EventCountLimit: -1, LinkCountLimit: -1,
			AttributePerEventCountLimit: -1, AttributePerLinkCountLimit: -1,
		}),
		sdktrace.WithSpanProcessor(f),
	).Tracer(scopeName)
}

func (f *filing) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

func (f *filing) OnEnd(span sdktrace.ReadOnlySpan) {
	f.count.Add(1)
	_ = f.exporter.ExportSpans(context.Background(), []sdktrace.ReadOnlySpan{span}) // never fails
}

func (f *filing) Shutdown(context.Context) error { return nil }

func (f *filing) ForceFlush(ctx context.Context) error { return f.exporter.ForceFlush(ctx) }
