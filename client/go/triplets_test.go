package lightningstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/grpc"
)

type tripletStream = grpc.ServerStreamingServer[pb.ListTripletsResponse]

// part returns triplets with these sequence ids.
func part(rolloutID string, complete bool, numbers ...int64) *pb.AttemptTriplets {
	found := &pb.AttemptTriplets{Complete: complete,
		Attempt: &pb.AttemptRef{RolloutId: rolloutID, AttemptId: "at-1"}}
	for _, number := range numbers {
		found.Triplets = append(found.Triplets, &pb.Triplet{SequenceId: number})
	}
	return found
}

func TestTripletsThatBreakGoOnWhereTheyWere(t *testing.T) {
	var asked []*pb.ListTripletsRequest
	server := &scripted{}
	server.onTriplets = func(request *pb.ListTripletsRequest, stream tripletStream) error {
		asked = append(asked, request)
		parts := []*pb.AttemptTriplets{part("b", true, 4), part("c", true)}
		if len(asked) == 1 {
			parts = []*pb.AttemptTriplets{part("a", false, 1), part("a", true, 2), part("b", false, 3)}
		}
		for _, part := range parts {
			if err := stream.Send(&pb.ListTripletsResponse{Attempts: []*pb.AttemptTriplets{part}}); err != nil {
				return err
			}
		}
		if len(asked) == 1 {
			return errAway
		}
		return nil
	}
	request := &pb.ListTripletsRequest{RolloutIds: []string{"a", "b", "c"}, AgentMatch: "x",
		FinalRewards: map[string]float64{"a": 1, "c": 2}}
	var got []string
	for attempt, err := range serve(t, server).Triplets(context.Background(), request) {
		if err != nil {
			t.Fatal(err)
		}
		var numbers []int64
		for _, triplet := range attempt.GetTriplets() {
			numbers = append(numbers, triplet.GetSequenceId())
		}
		got = append(got, fmt.Sprint(attempt.GetAttempt().GetRolloutId(), numbers))
	}
	if !slices.Equal(got, []string{"a[1 2]", "b[4]", "c[]"}) {
		t.Fatal(got)
	}
	again := asked[1]
	if !slices.Equal(again.GetRolloutIds(), []string{"b", "c"}) || again.GetAgentMatch() != "x" ||
		len(again.GetFinalRewards()) != 1 || again.GetFinalRewards()["c"] != 2 {
		t.Fatal(again)
	}
	if len(request.GetRolloutIds()) != 3 || len(request.GetFinalRewards()) != 2 {
		t.Fatal("the caller's request was changed")
	}
}

func TestTripletsOfAServer(t *testing.T) {
	_, address := startServer(t, "--port", "0", "--backend", "memory")
	client := connect(t, address)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	rollouts, err := client.Enqueue(ctx, RolloutSpec{Input: question{1}})
	if err != nil {
		t.Fatal(err)
	}
	start(t, NewRunner(client, func(ctx context.Context, task *Task[question]) (*float64, error) {
		_, span := task.Tracer.Start(ctx, "openai.chat.completion")
		span.End()
		return Reward(0.5), nil
	}, nil))
	id := rollouts[0].GetRolloutId()
	for _, err := range client.Wait(ctx, WaitOptions{RolloutIDs: []string{id}}).All() {
		if err != nil {
			t.Fatal(err)
		}
	}
	count := 0
	for attempt, err := range client.Triplets(ctx, &pb.ListTripletsRequest{RolloutIds: []string{id}, AttemptId: "latest"}) {
		if err != nil {
			t.Fatal(err)
		}
		for _, triplet := range attempt.GetTriplets() {
			count++
			if triplet.GetReward().GetValue() != 0.5 {
				t.Fatal(triplet)
			}
		}
	}
	if count != 1 {
		t.Fatal(count)
	}
	for _, err := range client.Triplets(ctx, &pb.ListTripletsRequest{RolloutIds: []string{"nobody"}}) {
		if !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
	}
}
