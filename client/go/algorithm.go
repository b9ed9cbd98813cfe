package lightningstore

import (
	"context"
	"fmt"
	"iter"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
)

// Enqueue adds rollouts to the queue, all of them or, on an error, none. It returns them as stored, in the
// same order.
func (c *Client) Enqueue(ctx context.Context, specs ...RolloutSpec) ([]*pb.Rollout, error) {
	return c.EnqueueGroups(ctx, nil, specs...)
}

// EnqueueGroups creates groups and adds rollouts to the queue, all of them or, on an error, none. The rollouts with
// the id of a group are its members, in this call and in later ones. It returns the rollouts as stored, in the same
// order. A group that takes no more members is an error with the reason ERROR_REASON_GROUP_FULL.
func (c *Client) EnqueueGroups(ctx context.Context, groups []GroupSpec, specs ...RolloutSpec) ([]*pb.Rollout, error) {
	request := &pb.EnqueueRolloutsRequest{Rollouts: make([]*pb.RolloutSpec, len(specs))}
	for _, group := range groups {
		request.Groups = append(request.Groups, group.message())
	}
	for i, spec := range specs {
		message, err := spec.message(fmt.Sprintf("rollouts[%d]", i))
		if err != nil {
			return nil, err
		}
		request.Rollouts[i] = message
	}
	answer, err := c.service.EnqueueRollouts(ctx, request)
	return answer.GetRollouts(), err
}

// Rollout returns a rollout with its latest attempt.
func (c *Client) Rollout(ctx context.Context, rolloutID string) (*pb.Rollout, error) {
	answer, err := c.service.GetRollout(ctx, &pb.GetRolloutRequest{RolloutId: rolloutID})
	return answer.GetRollout(), err
}

// Rollouts yields the rollouts that match the filters of the request, in its order. It loads them page by page,
// beginning with the page that the request names. An error ends it.
func (c *Client) Rollouts(ctx context.Context, request *pb.ListRolloutsRequest) iter.Seq2[*pb.Rollout, error] {
	return pages(request, func(request *pb.ListRolloutsRequest) ([]*pb.Rollout, string, error) {
		answer, err := c.service.ListRollouts(ctx, request)
		return answer.GetRollouts(), answer.GetNextPageToken(), err
	}, func(request *pb.ListRolloutsRequest, token string) { request.PageToken, request.Skip = token, 0 })
}

// Cancel cancels rollouts; their runners are asked to stop. Rollouts that have already finished do not
// change. It returns all of them after the change, in the same order.
func (c *Client) Cancel(ctx context.Context, rolloutIDs ...string) ([]*pb.Rollout, error) {
	answer, err := c.service.CancelRollouts(ctx, &pb.CancelRolloutsRequest{RolloutIds: rolloutIDs})
	return answer.GetRollouts(), err
}

// Delete deletes finished rollouts with their attempts and spans. If one of them has not finished, it deletes none
// and returns a FailedPrecondition error. Unknown ids are not an error: the answer lists them.
func (c *Client) Delete(ctx context.Context, rolloutIDs ...string) (*pb.DeleteRolloutsResponse, error) {
	return c.service.DeleteRollouts(ctx, &pb.DeleteRolloutsRequest{RolloutIds: rolloutIDs})
}

// Update changes a rollout and returns it. The update mask of the request names the fields; see
// UpdateRolloutRequest.
func (c *Client) Update(ctx context.Context, request *pb.UpdateRolloutRequest) (*pb.Rollout, error) {
	answer, err := c.service.UpdateRollout(ctx, request)
	return answer.GetRollout(), err
}

// AddResources stores new resources and makes them the latest: rollouts enqueued from now on use them unless
// they name others.
func (c *Client) AddResources(ctx context.Context, resources Resources) (*pb.Resources, error) {
	answer, err := c.service.AddResources(ctx, &pb.AddResourcesRequest{Resources: resources})
	return answer.GetResources(), err
}

// UpdateResources stores a new version of the resources with an id, and makes it the latest. An id that does not
// exist is created with version 1.
func (c *Client) UpdateResources(ctx context.Context, resourcesID string, resources Resources) (*pb.Resources, error) {
	answer, err := c.service.UpdateResources(ctx,
		&pb.UpdateResourcesRequest{ResourcesId: resourcesID, Resources: resources})
	return answer.GetResources(), err
}

// Resources returns the current version of resources by id, or the latest resources if the id is empty.
func (c *Client) Resources(ctx context.Context, resourcesID string) (*pb.Resources, error) {
	answer, err := c.service.GetResources(ctx, &pb.GetResourcesRequest{ResourcesId: resourcesID})
	return answer.GetResources(), err
}

// ResourcesVersion returns a version of resources that the server keeps. A version that it has removed is an error
// with the reason ERROR_REASON_RESOURCES_VERSION_REMOVED.
func (c *Client) ResourcesVersion(ctx context.Context, resourcesID string, version int32) (*pb.Resources, error) {
	answer, err := c.service.GetResources(ctx, &pb.GetResourcesRequest{ResourcesId: resourcesID, Version: version})
	return answer.GetResources(), err
}

// PublishedResources returns the resources with a publish number, if the server keeps that version.
func (c *Client) PublishedResources(ctx context.Context, publishNumber int64) (*pb.Resources, error) {
	answer, err := c.service.GetResources(ctx, &pb.GetResourcesRequest{PublishNumber: publishNumber})
	return answer.GetResources(), err
}
