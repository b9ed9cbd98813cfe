package lightningstore

import (
	"context"
	"time"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	// Rollouts that one call claims at most.
	mostClaims = 1_000
	// How long the server holds a claim back for a rollout to come.
	pollWait = 20 * time.Second
	// Beyond the wait, after which a long poll is given up, and asked again.
	pollMargin = 10 * time.Second
	// In which a poll that was broken off at a stop is asked what it had claimed.
	lastAnswer = 600 * time.Millisecond
	lastTries  = 3
)

// claims claims rollouts for a worker. A claim whose answer was lost is found again by its request id, so one
// request is repeated, word for word, until it is answered.
type claims struct {
	client   *Client
	workerID string
	modes    []pb.RolloutMode
}

// claim returns up to limit claims, none when the wait is over. When ctx ends it returns what a poll that was
// under way had claimed. It fails for what waiting does not mend.
func (c *claims) claim(ctx context.Context, limit int) ([]*pb.Rollout, error) {
	request := &pb.DequeueRolloutsRequest{
		Limit:     int32(min(limit, mostClaims)),
		Modes:     c.modes,
		WorkerId:  c.workerID,
		Wait:      durationpb.New(pollWait),
		RequestId: newRequestID(),
	}
	pauses := newDelays(longestDelay)
	tries := 0
	for ; ctx.Err() == nil; tries++ {
		rollouts, err := c.ask(ctx, request, pollWait+pollMargin)
		if err == nil {
			return rollouts, nil
		}
		if ctx.Err() != nil {
			continue
		}
		if !mends(err) {
			return nil, err
		}
		if tries == 0 {
			c.client.log.Warn("no claims now, trying on", "error", err)
		}
		_ = pauses.pause(ctx, err) // the loop looks at ctx
	}
	if tries == 0 {
		return nil, nil // nothing was asked
	}
	return c.rescue(request), nil
}

// rescue returns what a poll had claimed that was broken off.
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
	c.client.log.Warn("stopping without knowing what the last poll claimed", "error", failure)
	return nil
}

func (c *claims) ask(ctx context.Context, request *pb.DequeueRolloutsRequest, timeout time.Duration,
) ([]*pb.Rollout, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answer, err := c.client.service.DequeueRollouts(ctx, request)
	return answer.GetRollouts(), err
}
