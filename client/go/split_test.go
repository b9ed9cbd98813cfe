package lightningstore

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
)

func TestHeartbeatForManyAttemptsGoesOutInParts(t *testing.T) {
	server := &scripted{}
	var sizes []int
	server.onHeartbeat = func(request *pb.HeartbeatRequest) (*pb.HeartbeatResponse, error) {
		sizes = append(sizes, len(request.GetAttempts()))
		return &pb.HeartbeatResponse{Stops: []*pb.Stop{{Attempt: request.GetAttempts()[0]}}}, nil
	}
	var stops []string
	beats := &heartbeats{client: serve(t, server), workerID: "w", stats: func() map[string]any { return nil },
		publishNumber: func() int64 { return 0 },
		onStop:        func(stop *pb.Stop) { stops = append(stops, stop.GetAttempt().GetAttemptId()) },
		attempts:      map[attemptKey]time.Duration{}}
	for i := range 2_500 {
		beats.attempts[attemptKey{"ro-1", fmt.Sprint(i)}] = time.Second
	}
	if err := beats.beat(context.Background(), patience); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(sizes, []int{1_000, 1_000, 500}) || len(stops) != 3 {
		t.Fatal(sizes, stops)
	}
}

func TestRunnerWithManyPlacesClaimsNoMoreThanOneCallMay(t *testing.T) {
	server := &scripted{}
	limits := make(chan int32, 10)
	first := atomic.Bool{}
	server.onDequeue = func(request *pb.DequeueRolloutsRequest) (*pb.DequeueRolloutsResponse, error) {
		if first.CompareAndSwap(false, true) {
			limits <- request.GetLimit()
		}
		return nil, errAway
	}
	runner := NewRunner(serve(t, server), func(context.Context, *Task[input]) (*float64, error) { return nil, nil },
		&RunnerOptions{Concurrency: 20_000})
	start(t, runner)
	if limit := next(t, limits, "a claim"); limit != 1_000 {
		t.Fatal(limit)
	}
}

func TestTripletsOfManyRolloutsAreAskedForInParts(t *testing.T) {
	server := &scripted{}
	var sizes []int
	server.onTriplets = func(request *pb.ListTripletsRequest, stream tripletStream) error {
		sizes = append(sizes, len(request.GetRolloutIds()))
		first := request.GetRolloutIds()[0]
		if len(request.GetFinalRewards()) != 1 || request.GetFinalRewards()[first] == 0 {
			t.Error(request.GetFinalRewards())
		}
		return stream.Send(&pb.ListTripletsResponse{Attempts: []*pb.AttemptTriplets{part(first, true, 1)}})
	}
	request := &pb.ListTripletsRequest{FinalRewards: map[string]float64{"0": 1, "10000": 2, "20000": 3}}
	for i := range 20_001 {
		request.RolloutIds = append(request.RolloutIds, fmt.Sprint(i))
	}
	client := serve(t, server)
	var got []string
	for attempt, err := range client.Triplets(context.Background(), request) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, attempt.GetAttempt().GetRolloutId())
	}
	if !slices.Equal(sizes, []int{10_000, 10_000, 1}) || !slices.Equal(got, []string{"0", "10000", "20000"}) {
		t.Fatal(sizes, got)
	}
	sizes = nil
	for range client.Triplets(context.Background(), request) {
		break
	}
	if len(sizes) != 1 {
		t.Fatal(sizes) // the caller wanted no more
	}
}
