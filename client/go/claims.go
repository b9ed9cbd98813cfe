package lightningstore

import (
	"context"
	"time"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	// Maximum number of rollouts that one call claims.
	maxClaims = 1_000
	// Maximum time that the server waits for a claimable rollout.
	pollWait = 20 * time.Second
	// Additional time after which a long poll is cancelled and repeated.
	pollMargin = 10 * time.Second
	// Time limit for asking what a poll had claimed when it was interrupted by a stop.
	lastAnswer = 600 * time.Millisecond
	lastTries  = 3
)

// claims claims rollouts for a worker. A claim whose response was lost is recovered by its request id, so the
// same request is repeated unchanged until it is answered.
type claims struct {
	client   *Client
	workerID string
	modes    []pb.RolloutMode
	queues   []string
}

// claim returns up to limit claims, or none when the wait is over. When ctx ends, it returns what the
// interrupted poll had claimed. It returns errors that are not retryable.
func (c *claims) claim(ctx context.Context, limit int) ([]*pb.Rollout, error) {
	request := &pb.DequeueRolloutsRequest{
		Limit:     int32(min(limit, maxClaims)),
		Modes:     c.modes,
		Queues:    c.queues,
		WorkerId:  c.workerID,
		Wait:      durationpb.New(pollWait),
		RequestId: newRequestID(),
	}
	pauses := newDelays(maxDelay)
	tries := 0
	for ; ctx.Err() == nil; tries++ {
		rollouts, err := c.ask(ctx, request, pollWait+pollMargin)
		if err == nil {
			return rollouts, nil
		}
		if ctx.Err() != nil {
			continue
		}
		if !isRetryable(err) {
			return nil, err
		}
		if tries == 0 {
			c.client.log.Warn("claim failed, retrying", "error", err)
		}
		_ = pauses.pause(ctx, err) // the loop looks at ctx
	}
	if tries == 0 {
		return nil, nil // no request was sent
	}
	return c.rescue(request), nil
}

// rescue returns what an interrupted poll had claimed.
func (c *claims) rescue(request *pb.DequeueRolloutsRequest) []*pb.Rollout {
	var failure error
	for range lastTries {
		rollouts, err := c.ask(context.Background(), request, lastAnswer)
		if err == nil {
			return rollouts
		}
		failure = err
		time.Sleep(firstDelay)
	}
	c.client.log.Warn("stopping; the result of the last poll is not known", "error", failure)
	return nil
}

func (c *claims) ask(ctx context.Context, request *pb.DequeueRolloutsRequest, timeout time.Duration,
) ([]*pb.Rollout, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answer, err := c.client.service.DequeueRollouts(ctx, request)
	return answer.GetRollouts(), err
}
