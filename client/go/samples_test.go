package lightningstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
)

type sampleStream = grpc.ServerStreamingServer[pb.ListSamplesResponse]

func TestSamplesThatBreakGoOnWhereTheyWere(t *testing.T) {
	var asked []*pb.ListSamplesRequest
	server := &scripted{}
	server.onSamples = func(request *pb.ListSamplesRequest, stream sampleStream) error {
		asked = append(asked, request)
		send := func(rolloutID string, complete bool, indexes ...int32) error {
			found := &pb.AttemptSamples{Complete: complete, GroupId: "g", QueueTime: &durationpb.Duration{Seconds: 1},
				Attempt: &pb.AttemptRef{RolloutId: rolloutID, AttemptId: "at-1"}}
			for _, index := range indexes {
				found.Samples = append(found.Samples, &pb.Sample{Index: index})
			}
			return stream.Send(&pb.ListSamplesResponse{Attempts: []*pb.AttemptSamples{found}})
		}
		if len(asked) == 1 {
			return errors.Join(send("a", false, 0), send("a", true, 1), send("b", false, 0), errAway)
		}
		return errors.Join(send("b", true, 0), send("c", true))
	}
	request := &pb.ListSamplesRequest{RolloutIds: []string{"a", "b", "c"}, Merge: pb.SampleMerge_SAMPLE_MERGE_NONE,
		FinalRewards: map[string]float64{"a": 1, "c": 2}}
	var got []string
	for attempt, err := range serve(t, server).Samples(context.Background(), request) {
		if err != nil {
			t.Fatal(err)
		}
		var indexes []int32
		for _, sample := range attempt.GetSamples() {
			indexes = append(indexes, sample.GetIndex())
		}
		got = append(got, fmt.Sprint(attempt.GetAttempt().GetRolloutId(), indexes))
		if attempt.GetGroupId() != "g" || attempt.GetQueueTime().GetSeconds() != 1 {
			t.Fatal(attempt)
		}
	}
	if !slices.Equal(got, []string{"a[0 1]", "b[0]", "c[]"}) {
		t.Fatal(got)
	}
	again := asked[1]
	if !slices.Equal(again.GetRolloutIds(), []string{"b", "c"}) || len(again.GetFinalRewards()) != 1 ||
		again.GetMerge() != pb.SampleMerge_SAMPLE_MERGE_NONE {
		t.Fatal(again)
	}
}
