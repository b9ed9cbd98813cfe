package lightningstore

import (
	"context"
	"iter"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
)

// Triplets yields the model calls in the spans of rollouts, with prompt, response and reward: one complete
// message per attempt, in the order of the request's rollouts. After a broken connection the list resumes,
// for as long as ctx lasts. Any other failure ends it with an error. More than 10,000 rollouts are split into
// several calls; an unknown id then fails the list where its call begins.
func (c *Client) Triplets(
	ctx context.Context, request *pb.ListTripletsRequest,
) iter.Seq2[*pb.AttemptTriplets, error] {
	open := func(
		ctx context.Context, request *pb.ListTripletsRequest,
	) (func() ([]*pb.AttemptTriplets, error), error) {
		stream, err := c.service.ListTriplets(ctx, request)
		return func() ([]*pb.AttemptTriplets, error) {
			answer, err := stream.Recv()
			return answer.GetAttempts(), err
		}, err
	}
	setIDs := func(request *pb.ListTripletsRequest, ids []string) { request.RolloutIds = ids }
	return attemptList[*pb.ListTripletsRequest, *pb.AttemptTriplets]{
		request: request, open: open, setIDs: setIDs}.all(ctx)
}

// Samples yields rows of tokens to train on, derived from the spans of rollouts: one complete message per attempt,
// in the order of the request's rollouts. It resumes and is split as Triplets is.
func (c *Client) Samples(
	ctx context.Context, request *pb.ListSamplesRequest,
) iter.Seq2[*pb.AttemptSamples, error] {
	open := func(
		ctx context.Context, request *pb.ListSamplesRequest,
	) (func() ([]*pb.AttemptSamples, error), error) {
		stream, err := c.service.ListSamples(ctx, request)
		return func() ([]*pb.AttemptSamples, error) {
			answer, err := stream.Recv()
			return answer.GetAttempts(), err
		}, err
	}
	setIDs := func(request *pb.ListSamplesRequest, ids []string) { request.RolloutIds = ids }
	return attemptList[*pb.ListSamplesRequest, *pb.AttemptSamples]{
		request: request, open: open, setIDs: setIDs}.all(ctx)
}
