package lightningstore

import (
	"context"
	"errors"
	"iter"
	"slices"
	"testing"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// all returns the values of a sequence.
func all[T any](t *testing.T, items iter.Seq2[T, error]) []T {
	t.Helper()
	var found []T
	for item, err := range items {
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, item)
	}
	return found
}

func idsOf(rollouts []*pb.Rollout) (ids []string) {
	for _, rollout := range rollouts {
		ids = append(ids, rollout.GetRolloutId())
	}
	return ids
}

func startMemoryServer(t *testing.T) *Client {
	t.Helper()
	_, address := startServer(t, "--port", "0", "--backend", "memory")
	return connect(t, address)
}

func TestQueuesLabelsAndPause(t *testing.T) {
	client, ctx := startMemoryServer(t), context.Background()
	if _, err := client.Enqueue(ctx, RolloutSpec{Input: 1, RolloutID: "a", Queue: "gpu", Labels: map[string]string{"run": "7"}},
		RolloutSpec{Input: 2, RolloutID: "b", Labels: map[string]string{"run": "7"}},
		RolloutSpec{Input: 3, RolloutID: "c"}, RolloutSpec{Input: 4, RolloutID: "d"}); err != nil {
		t.Fatal(err)
	}
	for want, request := range map[string]*pb.ListRolloutsRequest{
		"a":     {Queues: []string{"gpu"}},
		"b c d": {Queues: []string{""}, PageSize: 1},
		"a b":   {Labels: map[string]string{"run": "7"}, PageSize: 1},
		"b":     {Labels: map[string]string{"run": "7"}, Queues: []string{""}},
		"c d":   {Skip: 2, PageSize: 1},
	} {
		found := ""
		for _, id := range idsOf(all(t, client.Rollouts(ctx, request))) {
			found = joined(found, id)
		}
		if found != want || request.GetPageToken() != "" {
			t.Fatal(found, "instead of", want)
		}
	}
	paused, err := client.PauseClaims(ctx, "exchanging weights")
	if err != nil || paused.GetPause().GetReason() != "exchanging weights" || paused.GetRunningAttemptCount() != 0 {
		t.Fatal(paused, err)
	}
	claim := &pb.DequeueRolloutsRequest{Limit: 1, Queues: []string{"gpu"}}
	if answer, err := client.Service().DequeueRollouts(ctx, claim); err != nil || len(answer.GetRollouts()) != 0 {
		t.Fatal(answer, err)
	}
	resumed, err := client.ResumeClaims(ctx)
	if err != nil || resumed.GetEndedPause().GetReason() != "exchanging weights" {
		t.Fatal(resumed, err)
	}
	start(t, NewRunner(client, func(context.Context, *Task[int]) (*float64, error) { return Reward(1), nil },
		&RunnerOptions{Queues: []string{"gpu"}}))
	for rollout, err := range client.Wait(ctx, WaitOptions{RolloutIDs: []string{"a"}}).All() {
		if err != nil || rollout.GetLatestAttempt().GetRewardSource() != pb.RewardSource_REWARD_SOURCE_REPORTED {
			t.Fatal(rollout, err)
		}
	}
	if rollout, err := client.Rollout(ctx, "b"); err != nil || rollout.GetAttemptCount() != 0 {
		t.Fatal("claimed from a queue that the runner does not name:", rollout, err)
	}
}

func joined(words, word string) string {
	if words == "" {
		return word
	}
	return words + " " + word
}

func TestVersionsAndTheirWatch(t *testing.T) {
	client, ctx := startMemoryServer(t), context.Background()
	for n := range 3 {
		value, err := NewCustom("weights", n)
		if err != nil {
			t.Fatal(err)
		}
		published, err := client.UpdateResources(ctx, "policy", Resources{"weights": value})
		if err != nil || published.GetVersion() != int32(n)+1 || published.GetPublishNumber() != int64(n)+1 {
			t.Fatal(published, err)
		}
	}
	second, err := client.ResourcesVersion(ctx, "policy", 2)
	if err != nil || second.GetVersion() != 2 {
		t.Fatal(second, err)
	}
	if same, err := client.PublishedResources(ctx, 2); err != nil || !proto.Equal(same, second) {
		t.Fatal(same, err)
	}
	if _, err := client.PublishedResources(ctx, 9); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}

	watch := client.WatchResources(ctx, WatchOptions{After: proto.Int64(1)})
	var numbers []int64
	for resources, err := range watch.All() {
		if err != nil {
			t.Fatal(err)
		}
		if numbers = append(numbers, resources.GetPublishNumber()); len(numbers) == 2 {
			break
		}
	}
	through, known := watch.Through()
	if !slices.Equal(numbers, []int64{2, 3}) || through != 3 || !known || watch.StoreID() == "" {
		t.Fatal(numbers, through, known)
	}
	for _, err := range client.WatchResources(ctx, WatchOptions{After: &through, StoreID: "another"}).All() {
		if !errors.Is(err, ErrFailedPrecondition) {
			t.Fatal(err)
		}
	}

	for worker, number := range map[string]int64{"old": 2, "new": 3} {
		beat := &pb.HeartbeatRequest{WorkerId: worker, PublishNumber: number}
		if _, err := client.Service().Heartbeat(ctx, beat); err != nil {
			t.Fatal(err)
		}
	}
	ready := all(t, client.Workers(ctx, &pb.ListWorkersRequest{MinPublishNumber: 3}))
	if len(ready) != 1 || ready[0].GetWorkerId() != "new" {
		t.Fatal(ready)
	}
	if both := all(t, client.Workers(ctx, &pb.ListWorkersRequest{PageSize: 1})); len(both) != 2 {
		t.Fatal(both)
	}
}

func TestRolloutsThatNameTheLatestResources(t *testing.T) {
	client, ctx := startMemoryServer(t), context.Background()
	if _, err := client.Enqueue(ctx, RolloutSpec{Input: 1, RolloutID: "a", ResourcesID: Latest}); err != nil {
		t.Fatal(err)
	}
	resources := Resources{"model": NewLLM("http://h/v1", "m")}
	if _, err := client.UpdateResources(ctx, "policy", resources); err != nil {
		t.Fatal(err)
	}
	endpoints := make(chan string, 1)
	start(t, NewRunner(client, func(_ context.Context, task *Task[int]) (*float64, error) {
		endpoints <- task.Resources.LLM("model").GetEndpoint()
		return nil, nil
	}, nil))
	if got := next(t, endpoints, "the function"); got != "http://h/v1" {
		t.Fatal(got)
	}
}

func TestRewardsScoresAndSeries(t *testing.T) {
	client, ctx := startMemoryServer(t), context.Background()
	for _, id := range []string{"a", "b"} {
		if _, err := client.Service().StartRollout(ctx,
			&pb.StartRolloutRequest{Rollout: &pb.RolloutSpec{RolloutId: id, InputJson: []byte("1")}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.UpdateAttempt(ctx, "a", Latest, AttemptUpdate{Status: succeeded, Reward: Reward(0),
		Scores: map[string]float64{"style": 1, "length": 2}}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.UpdateAttempt(ctx, "b", Latest, AttemptUpdate{Status: succeeded, Reward: Reward(1)}); err != nil {
		t.Fatal(err)
	}
	judged, err := client.UpdateAttempt(ctx, "a", Latest, AttemptUpdate{
		Scores: map[string]float64{"judge": 3}, RemoveScores: []string{"length"}})
	if err != nil || judged.GetReward() != 0 || judged.Reward == nil || len(judged.GetScores()) != 2 ||
		judged.GetScores()["style"] != 1 || judged.GetScores()["judge"] != 3 {
		t.Fatal(judged, err)
	}
	best := idsOf(all(t, client.Rollouts(ctx, &pb.ListRolloutsRequest{MinReward: proto.Float64(0), OrderBy: "reward desc"})))
	if !slices.Equal(best, []string{"b", "a"}) {
		t.Fatal(best)
	}
	series := &pb.GetSeriesRequest{Measure: pb.SeriesMeasure_SERIES_MEASURE_REWARD,
		Axis: pb.SeriesAxis_SERIES_AXIS_COMPLETION_NUMBER, BucketCount: 1}
	if buckets, err := client.Series(ctx, series); err != nil || len(buckets) != 1 || buckets[0].GetMean() != 0.5 {
		t.Fatal(buckets, err)
	}
	if cleared, err := client.UpdateAttempt(ctx, "b", Latest, AttemptUpdate{ClearReward: true}); err != nil ||
		cleared.Reward != nil || cleared.GetStatus() != succeeded {
		t.Fatal(cleared, err)
	}
}

func TestGroupsCompleteAndAreWatched(t *testing.T) {
	client, ctx := startMemoryServer(t), context.Background()
	start(t, NewRunner(client, func(_ context.Context, task *Task[float64]) (*float64, error) {
		return Reward(task.Input), nil
	}, nil))
	watch := client.WatchGroups(ctx, WatchOptions{OnStarted: func() {
		if _, err := client.EnqueueGroups(ctx, []GroupSpec{{GroupID: "g", Size: 2, Deadline: patience},
			{GroupID: "empty", Size: 1, OnDeadline: pb.GroupDeadlineAction_GROUP_DEADLINE_ACTION_KEEP_WAITING, Deadline: patience}},
			RolloutSpec{Input: 1.0, GroupID: "g"}, RolloutSpec{Input: 2.0, GroupID: "g"}); err != nil {
			t.Error(err)
		}
	}})
	for group, err := range watch.All() {
		if err != nil || group.GetGroupId() != "g" || group.GetRewards().GetMean() != 1.5 || len(group.GetRolloutIds()) != 2 {
			t.Fatal(group, err)
		}
		break
	}
	if group, err := client.Group(ctx, "g"); err != nil || group.GetStatus() != pb.GroupStatus_GROUP_STATUS_COMPLETE {
		t.Fatal(group, err)
	}
	if _, err := client.Group(ctx, "none"); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	if _, err := client.Enqueue(ctx, RolloutSpec{Input: 3, GroupID: "g"}); !errors.Is(err,
		&Error{Code: codes.FailedPrecondition, Reason: "ERROR_REASON_GROUP_FULL"}) {
		t.Fatal(err)
	}
	groups := all(t, client.Groups(ctx, &pb.ListGroupsRequest{PageSize: 1}))
	if len(groups) != 2 || groups[1].GetOnDeadline() != pb.GroupDeadlineAction_GROUP_DEADLINE_ACTION_KEEP_WAITING {
		t.Fatal(groups)
	}
}

func TestWatchGoesOnWhereItBroke(t *testing.T) {
	asked := make(chan *pb.WatchGroupsRequest, 10)
	server := &scripted{}
	server.onWatch = func(request *pb.WatchGroupsRequest, stream grpc.ServerStreamingServer[pb.WatchGroupsResponse]) error {
		asked <- request
		switch request.GetAfterCompletionNumber() {
		case 0:
			position := &pb.WatchGroupsResponse{ThroughCompletionNumber: 4, StoreId: "s"}
			return errors.Join(stream.Send(position), errReset)
		case 4:
			return stream.Send(&pb.WatchGroupsResponse{Groups: []*pb.Group{{CompletionNumber: 5}, {CompletionNumber: 7}},
				ThroughCompletionNumber: 8, StoreId: "s"}) // and ends the stream
		}
		return stream.Send(&pb.WatchGroupsResponse{Groups: []*pb.Group{{CompletionNumber: 9}},
			ThroughCompletionNumber: 10, StoreId: "s"})
	}
	starts := 0
	watch := serve(t, server).WatchGroups(context.Background(), WatchOptions{OnStarted: func() { starts++ }})
	var numbers []int64
	for group, err := range watch.All() {
		if err != nil {
			t.Fatal(err)
		}
		if numbers = append(numbers, group.GetCompletionNumber()); len(numbers) == 3 {
			break
		}
	}
	if through, _ := watch.Through(); !slices.Equal(numbers, []int64{5, 7, 9}) || through != 9 || starts != 1 {
		t.Fatal(numbers, through, starts)
	}
	if first := next(t, asked, "the first request"); first.AfterCompletionNumber != nil || first.GetStoreId() != "" {
		t.Fatal(first)
	}
	for _, after := range []int64{4, 8} {
		if request := next(t, asked, "the next"); request.GetAfterCompletionNumber() != after || request.GetStoreId() != "s" {
			t.Fatal(request)
		}
	}
}
