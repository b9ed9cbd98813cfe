package lightningstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

const succeeded = pb.AttemptStatus_ATTEMPT_STATUS_SUCCEEDED

type input = json.RawMessage

func TestLostClaimIsFoundByItsRequestID(t *testing.T) {
	ids := make(chan string, 100)
	server := &scripted{}
	tries := atomic.Int32{}
	server.onDequeue = func(request *pb.DequeueRolloutsRequest) (*pb.DequeueRolloutsResponse, error) {
		ids <- request.GetRequestId()
		if tries.Add(1) <= 7 { // more than gRPC repeats by itself
			return nil, errAway
		}
		return &pb.DequeueRolloutsResponse{Rollouts: []*pb.Rollout{claimOf("ro-1", "1")}}, nil
	}
	client := serve(t, server)
	ended := start(t, NewRunner(client, func(context.Context, *Task[input]) (*float64, error) { return nil, nil },
		&RunnerOptions{MaxRollouts: 1}))
	first := next(t, ids, "a claim")
	for range 7 {
		if again := next(t, ids, "its repeat"); again != first || first == "" {
			t.Fatalf("repeated as %q, not as %q", again, first)
		}
	}
	if err := next(t, ended, "the end"); err != nil {
		t.Fatal(err)
	}
	if got := next(t, server.updates, "an update").GetAttempt().GetStatus(); got != succeeded {
		t.Fatal(got)
	}
}

func TestClaimThatWasUnderWayAtStopIsWorkedOn(t *testing.T) {
	asked := make(chan string, 10)
	server := &scripted{}
	first := atomic.Bool{}
	stopped := make(chan struct{})
	server.onDequeue = func(request *pb.DequeueRolloutsRequest) (*pb.DequeueRolloutsResponse, error) {
		asked <- request.GetRequestId()
		if first.CompareAndSwap(false, true) {
			<-stopped
			time.Sleep(300 * time.Millisecond) // its answer comes after the stop
		}
		return &pb.DequeueRolloutsResponse{Rollouts: []*pb.Rollout{claimOf("ro-1", "1")}}, nil
	}
	client := serve(t, server)
	runner := NewRunner(client, func(context.Context, *Task[input]) (*float64, error) { return nil, nil }, nil)
	ended := start(t, runner)
	id := next(t, asked, "a claim")
	runner.Stop()
	close(stopped)
	if err := next(t, ended, "the end"); err != nil {
		t.Fatal(err)
	}
	if again := next(t, asked, "the question what was claimed"); again != id {
		t.Fatalf("asked as %q, not %q", again, id)
	}
	next(t, server.updates, "its outcome")
}

func TestStopsCancelTheFunctionAndAreNeverSuccess(t *testing.T) {
	stop := []*pb.Stop{{Attempt: &pb.AttemptRef{RolloutId: "ro-1", AttemptId: "at-1"},
		Reason: pb.StopReason_STOP_REASON_SUPERSEDED}}
	var began atomic.Bool // an attempt that is stopped earlier never calls the function
	servers := map[string]func(*scripted){
		"heartbeat": func(s *scripted) {
			s.onHeartbeat = func(request *pb.HeartbeatRequest) (*pb.HeartbeatResponse, error) {
				if len(request.GetAttempts()) == 0 || !began.Load() {
					return &pb.HeartbeatResponse{}, nil
				}
				return &pb.HeartbeatResponse{Stops: stop}, nil
			}
		},
		"ingest": func(s *scripted) {
			s.onIngest = func(batches []*pb.SpanBatch) (*pb.IngestResult, error) {
				result := s.keep(batches)
				result.Stops = stop
				return result, nil
			}
		},
	}
	for name, script := range servers {
		t.Run(name, func(t *testing.T) {
			began.Store(false)
			server := &scripted{}
			script(server)
			client := serve(t, server)
			causes := make(chan error, 1)
			start(t, NewRunner(client, func(ctx context.Context, task *Task[input]) (*float64, error) {
				began.Store(true)
				_, span := task.Tracer.Start(ctx, "step")
				span.End()
				<-ctx.Done()
				causes <- context.Cause(ctx)
				return Reward(1), nil // in spite of the cancellation
			}, &RunnerOptions{MaxRollouts: 1, HeartbeatPeriod: 100 * time.Millisecond}))
			server.queue <- claimOf("ro-1", "1")
			var why *StopError
			if cause := next(t, causes, "the cancellation"); !errors.As(cause, &why) ||
				why.Reason != pb.StopReason_STOP_REASON_SUPERSEDED {
				t.Fatal(cause)
			}
			update := next(t, server.updates, "the outcome")
			if update.GetAttempt().GetStatus() != pb.AttemptStatus_ATTEMPT_STATUS_FAILED ||
				update.GetAttempt().GetFailure().GetType() != "Cancelled" {
				t.Fatal(update)
			}
			if slices.Contains(server.stored(), annotation) {
				t.Fatal("a stopped attempt got a reward")
			}
		})
	}
}

func TestFinishOfTheRolloutSendsAHeartbeat(t *testing.T) {
	server := &scripted{}
	cancelled := make(chan struct{})
	begun := make(chan struct{})
	var beats atomic.Int32
	server.onHeartbeat = func(request *pb.HeartbeatRequest) (*pb.HeartbeatResponse, error) {
		beats.Add(1)
		select {
		case <-cancelled:
			return &pb.HeartbeatResponse{Stops: []*pb.Stop{{Attempt: request.GetAttempts()[0],
				Reason: pb.StopReason_STOP_REASON_ROLLOUT_CANCELLED}}}, nil
		default:
			return &pb.HeartbeatResponse{}, nil
		}
	}
	waits := make(chan []string, 10)
	server.onWait = func(request *pb.WaitForRolloutsRequest, stream waitStream) error {
		waits <- request.GetRolloutIds()
		<-begun // a function that has not begun is not called
		close(cancelled)
		return stream.Send(&pb.WaitForRolloutsResponse{
			Rollouts: []*pb.Rollout{{RolloutId: "ro-1"}}, Summary: &pb.WaitSummary{}})
	}
	client := serve(t, server)
	causes := make(chan error, 1)
	start(t, NewRunner(client, func(ctx context.Context, _ *Task[input]) (*float64, error) {
		close(begun)
		<-ctx.Done() // without a span
		causes <- context.Cause(ctx)
		return nil, nil
	}, &RunnerOptions{MaxRollouts: 1, HeartbeatPeriod: time.Hour}))
	server.queue <- claimOf("ro-1", "1")
	var why *StopError
	if cause := next(t, causes, "the cancellation"); !errors.As(cause, &why) ||
		why.Reason != pb.StopReason_STOP_REASON_ROLLOUT_CANCELLED {
		t.Fatal(cause)
	}
	if ids := next(t, waits, "the wait"); !slices.Equal(ids, []string{"ro-1"}) {
		t.Fatal(ids)
	}
	next(t, server.updates, "the outcome")
	if got := beats.Load(); got != 2 {
		t.Fatalf("%d heartbeats, not the first and one for the finish", got)
	}
}

func TestFinishesAreWatchedAgainAtOnceAfterABreak(t *testing.T) {
	server := &scripted{}
	waits := make(chan time.Time, 10)
	finished := make(chan struct{})
	server.onWait = func(_ *pb.WaitForRolloutsRequest, stream waitStream) error {
		waits <- time.Now()
		switch len(waits) {
		case 1:
			return errAway
		case 2:
			return errReset
		}
		close(finished)
		return stream.Send(&pb.WaitForRolloutsResponse{Summary: &pb.WaitSummary{}})
	}
	start(t, NewRunner(serve(t, server), func(context.Context, *Task[input]) (*float64, error) {
		<-finished
		return nil, nil
	}, &RunnerOptions{MaxRollouts: 1}))
	server.queue <- claimOf("ro-1", "1")
	next(t, server.updates, "the outcome")
	first, _, third := next(t, waits, "a wait"), next(t, waits, "another"), next(t, waits, "a third")
	if took := third.Sub(first); took >= watchPause { // which follows only errors that are not retryable
		t.Fatal(took)
	}
}

func TestStopToldWithTheLastSpansIsNoSuccess(t *testing.T) {
	server := &scripted{}
	server.onIngest = func(batches []*pb.SpanBatch) (*pb.IngestResult, error) {
		result := server.keep(batches)
		result.Stops = []*pb.Stop{{Attempt: &pb.AttemptRef{RolloutId: "ro-1", AttemptId: "at-1"},
			Reason: pb.StopReason_STOP_REASON_ROLLOUT_CANCELLED}}
		return result, nil
	}
	client := serve(t, server)
	start(t, NewRunner(client, func(context.Context, *Task[input]) (*float64, error) {
		return Reward(1), nil
	}, &RunnerOptions{MaxRollouts: 1}))
	server.queue <- claimOf("ro-1", "1")
	if update := next(t, server.updates, "the outcome"); update.GetAttempt().GetFailure().GetType() != "Cancelled" {
		t.Fatal(update)
	}
}

type customError struct{}

func (customError) Error() string { return "custom" }

func TestFailures(t *testing.T) {
	cases := map[string]struct {
		function      Func[input]
		kind, message string
		final         bool
	}{
		"error": {func(context.Context, *Task[input]) (*float64, error) { return Reward(1), customError{} },
			"lightningstore.customError", "custom", false},
		"wrapped": {func(context.Context, *Task[input]) (*float64, error) {
			return nil, fmt.Errorf("while: %w", customError{})
		}, "lightningstore.customError", "while: custom", false},
		"not retryable": {func(context.Context, *Task[input]) (*float64, error) {
			return nil, fmt.Errorf("while: %w", NonRetryable(customError{}))
		}, "lightningstore.customError", "while: custom", true},
		"panic": {func(context.Context, *Task[input]) (*float64, error) { panic("help") }, "panic", "help", false},
		"goexit": {func(context.Context, *Task[input]) (*float64, error) {
			runtime.Goexit()
			return nil, nil
		}, "panic", "the function ended its goroutine (runtime.Goexit)", false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			server := &scripted{}
			start(t, NewRunner(serve(t, server), c.function, &RunnerOptions{MaxRollouts: 1}))
			server.queue <- claimOf("ro-1", "1")
			update := next(t, server.updates, "the outcome")
			failure := update.GetAttempt().GetFailure()
			if update.GetAttempt().GetStatus() != pb.AttemptStatus_ATTEMPT_STATUS_FAILED ||
				failure.GetType() != c.kind || failure.GetMessage() != c.message {
				t.Fatal(update)
			}
			if (failure.Retryable != nil && !failure.GetRetryable()) != c.final {
				t.Fatal(failure)
			}
			if !slices.Equal(update.GetUpdateMask().GetPaths(), []string{"status", "failure"}) {
				t.Fatal(update.GetUpdateMask())
			}
		})
	}
}

func TestClaimWithoutItsInputIsFilled(t *testing.T) {
	server := &scripted{}
	tries := atomic.Int32{}
	server.onRollout = func(request *pb.GetRolloutRequest) (*pb.GetRolloutResponse, error) {
		if tries.Add(1) == 1 {
			return nil, errAway
		}
		return &pb.GetRolloutResponse{Rollout: &pb.Rollout{RolloutId: request.GetRolloutId(),
			InputJson: []byte("7"), MetadataJson: []byte(`{"a":1}`)}}, nil
	}
	got := make(chan string, 1)
	start(t, NewRunner(serve(t, server), func(_ context.Context, task *Task[int]) (*float64, error) {
		got <- fmt.Sprint(task.Input, string(task.Rollout.GetMetadataJson()), task.AttemptID())
		return nil, nil
	}, &RunnerOptions{MaxRollouts: 1}))
	server.queue <- &pb.Rollout{RolloutId: "ro-1", PayloadsOmitted: true,
		LatestAttempt: &pb.Attempt{RolloutId: "ro-1", AttemptId: "at-1"}}
	if text := next(t, got, "the function"); text != `7{"a":1}at-1` {
		t.Fatal(text)
	}
}

func TestInputThatDoesNotFitIsNotRetried(t *testing.T) {
	server := &scripted{}
	start(t, NewRunner(serve(t, server), func(context.Context, *Task[int]) (*float64, error) {
		return nil, errors.New("was called")
	}, &RunnerOptions{MaxRollouts: 1}))
	server.queue <- claimOf("ro-1", `"text"`)
	failure := next(t, server.updates, "the outcome").GetAttempt().GetFailure()
	if failure.GetMessage() == "was called" || failure.Retryable == nil || failure.GetRetryable() {
		t.Fatal(failure)
	}
}

func TestSpansAreStoredBeforeTheOutcomeThoughIngestFails(t *testing.T) {
	server := &scripted{}
	fails := atomic.Int32{}
	server.onIngest = func(batches []*pb.SpanBatch) (*pb.IngestResult, error) {
		if fails.Add(1) <= 6 { // more than gRPC repeats by itself
			return nil, errAway
		}
		return server.keep(batches), nil
	}
	updates := atomic.Int32{}
	server.onUpdate = func(*pb.UpdateAttemptRequest) (*pb.UpdateAttemptResponse, error) {
		if updates.Add(1) <= 6 {
			return nil, errAway
		}
		return nil, nil
	}
	start(t, NewRunner(serve(t, server), func(ctx context.Context, task *Task[input]) (*float64, error) {
		_, span := task.Tracer.Start(ctx, "step")
		span.End()
		return Reward(0.5), nil
	}, &RunnerOptions{MaxRollouts: 1}))
	server.queue <- claimOf("ro-1", "1")
	update := next(t, server.updates, "the outcome")
	if update.GetSentSpanCount() != 2 {
		t.Fatal(update)
	}
	want := []string{"span step", "span " + annotation, "update ATTEMPT_STATUS_SUCCEEDED"}
	if got := server.notes(); !slices.Equal(got, want) {
		t.Fatal(got)
	}
}

func TestGracefulStopFinishesWhatRuns(t *testing.T) {
	server := &scripted{}
	working, finish := make(chan string, 2), make(chan struct{})
	runner := NewRunner(serve(t, server), func(ctx context.Context, task *Task[input]) (*float64, error) {
		working <- task.RolloutID()
		<-finish
		return nil, ctx.Err()
	}, &RunnerOptions{Concurrency: 2})
	ended := start(t, runner)
	server.queue <- claimOf("ro-1", "1")
	server.queue <- claimOf("ro-2", "1")
	next(t, working, "one") // they run side by side
	next(t, working, "the other")
	runner.Stop()
	server.queue <- claimOf("ro-3", "1")
	close(finish)
	if err := next(t, ended, "the end"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := next(t, server.updates, "an outcome").GetAttempt().GetStatus(); got != succeeded {
			t.Fatal(got)
		}
	}
	if len(server.queue) != 1 {
		t.Fatal("claimed after the stop")
	}
}

func TestSecondStopCancelsWhatRuns(t *testing.T) {
	server := &scripted{}
	working := make(chan struct{}, 1)
	runner := NewRunner(serve(t, server), func(ctx context.Context, _ *Task[input]) (*float64, error) {
		close(working)
		<-ctx.Done()
		return nil, nil
	}, nil)
	ended := start(t, runner)
	server.queue <- claimOf("ro-1", "1")
	next(t, working, "the function")
	runner.Stop()
	runner.Stop()
	if err := next(t, ended, "the end"); err != nil {
		t.Fatal(err)
	}
	failure := next(t, server.updates, "the outcome").GetAttempt().GetFailure()
	if failure.GetType() != "Cancelled" || failure.GetMessage() != "the runner is stopping" {
		t.Fatal(failure)
	}
}

func TestEndOfTheContextCancelsWhatRuns(t *testing.T) {
	server := &scripted{}
	working := make(chan struct{}, 1)
	runner := NewRunner(serve(t, server), func(ctx context.Context, _ *Task[input]) (*float64, error) {
		close(working)
		<-ctx.Done()
		return nil, ctx.Err()
	}, nil)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- runner.Run(ctx) }()
	server.queue <- claimOf("ro-1", "1")
	next(t, working, "the function")
	cancel()
	if err := next(t, ended, "the end"); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if got := next(t, server.updates, "the outcome").GetAttempt().GetFailure().GetType(); got != "Cancelled" {
		t.Fatal(got)
	}
}

func TestHeartbeatsKeepUpWithAShortTimeoutWhateverTheFunctionDoes(t *testing.T) {
	server := &scripted{}
	beats := make(chan time.Time, 1000)
	server.onHeartbeat = func(request *pb.HeartbeatRequest) (*pb.HeartbeatResponse, error) {
		if len(request.GetAttempts()) == 1 {
			beats <- time.Now()
		}
		return &pb.HeartbeatResponse{}, nil
	}
	var stop atomic.Bool
	t.Cleanup(func() { stop.Store(true) })
	start(t, NewRunner(serve(t, server), func(context.Context, *Task[input]) (*float64, error) {
		for !stop.Load() { // a busy function
		}
		return nil, nil
	}, &RunnerOptions{MaxRollouts: 1}))
	rollout := claimOf("ro-1", "1")
	rollout.Config.UnresponsiveTimeout = durationpb.New(900 * time.Millisecond)
	server.queue <- rollout
	first := next(t, beats, "a heartbeat")
	for range 3 {
		next(t, beats, "another")
	}
	stop.Store(true)
	if took := time.Since(first); took > 2*defaultHeartbeatPeriod { // without it, three take one more
		t.Fatal(took)
	}
}

func TestRunEndsWithWhatWaitingDoesNotMend(t *testing.T) {
	server := &scripted{}
	client := serve(t, server)
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	ended := start(t, NewRunner(client, func(context.Context, *Task[input]) (*float64, error) { return nil, nil }, nil))
	var known *Error
	if err := next(t, ended, "the end"); !errors.As(err, &known) {
		t.Fatal(err)
	}
}

func TestFunctionThatHeedsNothingIsLeftBehind(t *testing.T) {
	t.Parallel()
	server := &scripted{}
	working, never := make(chan struct{}, 1), make(chan struct{})
	t.Cleanup(func() { close(never) })
	runner := NewRunner(serve(t, server), func(context.Context, *Task[input]) (*float64, error) {
		close(working)
		<-never
		return nil, nil
	}, nil)
	ended := start(t, runner)
	server.queue <- claimOf("ro-1", "1")
	next(t, working, "the function")
	runner.Stop()
	runner.Stop()
	if err := next(t, ended, "the end"); err != nil {
		t.Fatal(err)
	}
	if got := next(t, server.updates, "the outcome").GetAttempt().GetFailure().GetType(); got != "Cancelled" {
		t.Fatal(got)
	}
}

func TestResourcesThatAreGoneFailTheAttempt(t *testing.T) {
	server := &scripted{} // knows no GetResources
	start(t, NewRunner(serve(t, server), func(context.Context, *Task[input]) (*float64, error) {
		return nil, nil
	}, &RunnerOptions{MaxRollouts: 1}))
	rollout := claimOf("ro-1", "1")
	rollout.LatestAttempt.ResourcesId = "rs-1"
	server.queue <- rollout
	if got := next(t, server.updates, "the outcome").GetAttempt().GetFailure(); got.GetType() != "*lightningstore.Error" {
		t.Fatal(got)
	}
}

func TestClaimsNameTheQueues(t *testing.T) {
	server := &scripted{}
	asked := make(chan *pb.DequeueRolloutsRequest, 100)
	server.onDequeue = func(request *pb.DequeueRolloutsRequest) (*pb.DequeueRolloutsResponse, error) {
		asked <- request
		return &pb.DequeueRolloutsResponse{Rollouts: []*pb.Rollout{claimOf("ro-1", "1")}}, nil
	}
	start(t, NewRunner(serve(t, server), func(context.Context, *Task[input]) (*float64, error) { return nil, nil },
		&RunnerOptions{MaxRollouts: 1, Queues: []string{"gpu", ""}}))
	if got := next(t, asked, "a claim").GetQueues(); !slices.Equal(got, []string{"gpu", ""}) {
		t.Fatal(got)
	}
}

func TestRewardIsInTheReport(t *testing.T) {
	server := &scripted{}
	start(t, NewRunner(serve(t, server), func(context.Context, *Task[input]) (*float64, error) {
		return Reward(0.5), nil
	}, &RunnerOptions{MaxRollouts: 1}))
	server.queue <- claimOf("ro-1", "1")
	update := next(t, server.updates, "the outcome")
	if update.GetAttempt().GetReward() != 0.5 || !slices.Equal(update.GetUpdateMask().GetPaths(), []string{"status", "reward"}) {
		t.Fatal(update)
	}
	if got := server.stored(); !slices.Equal(got, []string{annotation}) {
		t.Fatal(got)
	}
}

// olderServer rejects rewards in reports, as servers do that do not know them.
func olderServer(reports *atomic.Int32) *scripted {
	return &scripted{onUpdate: func(request *pb.UpdateAttemptRequest) (*pb.UpdateAttemptResponse, error) {
		reports.Add(1)
		if !slices.Contains(request.GetUpdateMask().GetPaths(), "reward") {
			return nil, nil
		}
		failure, err := status.New(codes.InvalidArgument, "a path is unknown").WithDetails(&errdetails.BadRequest{
			FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: "update_mask.paths[1]"}}})
		if err != nil {
			return nil, err
		}
		return nil, failure.Err()
	}}
}

func TestOlderServersGetReportsWithoutRewards(t *testing.T) {
	var reports atomic.Int32
	server := olderServer(&reports)
	start(t, NewRunner(serve(t, server), func(context.Context, *Task[input]) (*float64, error) {
		return Reward(1), nil
	}, &RunnerOptions{MaxRollouts: 3}))
	for i := range 3 {
		server.queue <- claimOf(fmt.Sprint("ro-", i), "1")
		if update := next(t, server.updates, "the outcome"); update.GetAttempt().GetStatus() != succeeded ||
			update.GetAttempt().Reward != nil {
			t.Fatal(update)
		}
	}
	if got := reports.Load(); got != 4 { // only the first one is repeated
		t.Fatalf("%d reports", got)
	}
	if got := server.stored(); len(got) != 3 {
		t.Fatal("rewards without a span:", got)
	}
}

func TestResourcesOfTheAttemptsVersion(t *testing.T) {
	server := &scripted{}
	asked := make(chan *pb.GetResourcesRequest, 10)
	server.onResources = func(request *pb.GetResourcesRequest) (*pb.GetResourcesResponse, error) {
		asked <- request
		return &pb.GetResourcesResponse{Resources: &pb.Resources{ResourcesId: request.GetResourcesId(),
			Version: request.GetVersion(), PublishNumber: 40 + int64(request.GetVersion())}}, nil
	}
	beats := make(chan int64, 1000)
	server.onHeartbeat = func(request *pb.HeartbeatRequest) (*pb.HeartbeatResponse, error) {
		beats <- request.GetPublishNumber()
		return &pb.HeartbeatResponse{}, nil
	}
	start(t, NewRunner(serve(t, server), func(context.Context, *Task[input]) (*float64, error) { return nil, nil },
		&RunnerOptions{HeartbeatPeriod: shortestPeriod}))
	if got := next(t, beats, "a heartbeat"); got != 0 {
		t.Fatal("a publish number without resources:", got)
	}
	for _, version := range []int32{2, 3, 2} {
		rollout := claimOf("ro-1", "1")
		rollout.LatestAttempt.ResourcesId, rollout.LatestAttempt.ResourcesVersion = "rs-1", version
		server.queue <- rollout
		next(t, server.updates, "the outcome")
		for next(t, beats, "the number") != 40+int64(version) { // also where they came from the cache
		}
	}
	for _, version := range []int32{2, 3} {
		if request := next(t, asked, "a request"); request.GetResourcesId() != "rs-1" || request.GetVersion() != version {
			t.Fatal(request)
		}
	}
	if len(asked) > 0 {
		t.Fatal("not cached")
	}
}

func TestHeartbeatsReportTheNumberOfTheOption(t *testing.T) {
	server := &scripted{}
	beats := make(chan int64, 1000)
	server.onHeartbeat = func(request *pb.HeartbeatRequest) (*pb.HeartbeatResponse, error) {
		beats <- request.GetPublishNumber()
		return &pb.HeartbeatResponse{}, nil
	}
	var calls atomic.Int64
	start(t, NewRunner(serve(t, server), func(context.Context, *Task[input]) (*float64, error) { return nil, nil },
		&RunnerOptions{HeartbeatPeriod: shortestPeriod, PublishNumber: func() int64 {
			if calls.Add(1) == 2 {
				panic("not loaded") // costs this heartbeat only
			}
			return 40 + calls.Load()
		}}))
	if first, second := next(t, beats, "a heartbeat"), next(t, beats, "another"); first != 41 || second != 43 {
		t.Fatal(first, second)
	}
}
