package lightningstore

import (
	"context"
	"iter"
	"maps"
	"slices"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// PauseClaims pauses claims until ResumeClaims: running attempts continue, and none begins. reason is for people. The
// answer has the number of running attempts.
func (c *Client) PauseClaims(ctx context.Context, reason string) (*pb.PauseClaimsResponse, error) {
	return c.service.PauseClaims(ctx, &pb.PauseClaimsRequest{Reason: reason})
}

// ResumeClaims ends a pause. Without one it has no effect. The answer has the pause that it ended.
func (c *Client) ResumeClaims(ctx context.Context) (*pb.ResumeClaimsResponse, error) {
	return c.service.ResumeClaims(ctx, &pb.ResumeClaimsRequest{})
}

// AttemptUpdate says what to change of an attempt. The zero value changes nothing.
type AttemptUpdate struct {
	// Status that the attempt ended with, or RUNNING. Unspecified: unchanged.
	Status pb.AttemptStatus
	// Failure of an attempt that failed. Nil: unchanged.
	Failure *pb.Failure
	// Reward, a finite number. Nil: unchanged. Use [Reward] for a number.
	Reward *float64
	// ClearReward removes the reported reward; the reward is then that of the spans, if they have one.
	ClearReward bool
	// Scores to set, by name. Other scores are unchanged.
	Scores map[string]float64
	// RemoveScores are the names of scores to remove.
	RemoveScores []string
}

// UpdateAttempt changes an attempt; [Latest] names the latest one of the rollout. The reward and the scores may be set
// with the outcome or later, also after the outcome is final.
func (c *Client) UpdateAttempt(ctx context.Context, rolloutID, attemptID string, update AttemptUpdate,
) (*pb.Attempt, error) {
	var paths []string
	if update.Status != pb.AttemptStatus_ATTEMPT_STATUS_UNSPECIFIED {
		paths = append(paths, "status")
	}
	if update.Failure != nil {
		paths = append(paths, "failure")
	}
	if update.Reward != nil || update.ClearReward {
		paths = append(paths, "reward")
	}
	for _, name := range slices.Concat(slices.Sorted(maps.Keys(update.Scores)), update.RemoveScores) {
		paths = append(paths, "scores."+name)
	}
	request := &pb.UpdateAttemptRequest{Attempt: &pb.Attempt{RolloutId: rolloutID, AttemptId: attemptID,
		Status: update.Status, Failure: update.Failure, Reward: update.Reward, Scores: update.Scores}}
	if len(paths) > 0 {
		request.UpdateMask = &fieldmaskpb.FieldMask{Paths: paths}
	}
	answer, err := c.service.UpdateAttempt(ctx, request)
	return answer.GetAttempt(), err
}

// Series returns how a measure of finished rollouts developed: the buckets that hold a rollout, in order.
func (c *Client) Series(ctx context.Context, request *pb.GetSeriesRequest) ([]*pb.SeriesBucket, error) {
	answer, err := c.service.GetSeries(ctx, request)
	return answer.GetBuckets(), err
}

// Group returns a group with the numbers and the ids of its members. An id for which no group was created is an error
// that matches [ErrNotFound].
func (c *Client) Group(ctx context.Context, groupID string) (*pb.Group, error) {
	answer, err := c.service.GetGroup(ctx, &pb.GetGroupRequest{GroupId: groupID})
	return answer.GetGroup(), err
}

// Groups yields the groups that match the filters of the request, in the order in which they were created. It loads
// them page by page, beginning with the page that the request names. An error ends it.
func (c *Client) Groups(ctx context.Context, request *pb.ListGroupsRequest) iter.Seq2[*pb.Group, error] {
	return pages(request, func(request *pb.ListGroupsRequest) ([]*pb.Group, string, error) {
		answer, err := c.service.ListGroups(ctx, request)
		return answer.GetGroups(), answer.GetNextPageToken(), err
	}, func(request *pb.ListGroupsRequest, token string) { request.PageToken = token })
}

// Workers yields the workers that match the filters of the request, in its order. It loads them page by page,
// beginning with the page that the request names. An error ends it.
func (c *Client) Workers(ctx context.Context, request *pb.ListWorkersRequest) iter.Seq2[*pb.Worker, error] {
	return pages(request, func(request *pb.ListWorkersRequest) ([]*pb.Worker, string, error) {
		answer, err := c.service.ListWorkers(ctx, request)
		return answer.GetWorkers(), answer.GetNextPageToken(), err
	}, func(request *pb.ListWorkersRequest, token string) { request.PageToken = token })
}
