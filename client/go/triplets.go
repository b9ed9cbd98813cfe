package lightningstore

import (
	"context"
	"errors"
	"io"
	"iter"
	"maps"
	"slices"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/protobuf/proto"
)

// Triplets yields the model calls in the spans of rollouts, with prompt, response and reward: one complete
// message per attempt, in the order of the request's rollouts. After a broken connection the list resumes,
// for as long as ctx lasts. Any other failure ends it with an error. More than 10,000 rollouts are split into
// several calls; an unknown id then fails the list where its call begins.
func (c *Client) Triplets(
	ctx context.Context, request *pb.ListTripletsRequest,
) iter.Seq2[*pb.AttemptTriplets, error] {
	return func(yield func(*pb.AttemptTriplets, error) bool) {
		list := tripletList{client: c, request: request, seen: map[listedAttempt]bool{}}
		for rest := request.GetRolloutIds(); ; {
			list.left = rest[:min(len(rest), maxListed)]
			rest = rest[len(list.left):]
			if !list.through(ctx, yield) || len(rest) == 0 {
				return
			}
		}
	}
}

// through yields the rest. It returns false if the caller wants no more, or was given an error.
func (l *tripletList) through(ctx context.Context, yield func(*pb.AttemptTriplets, error) bool) bool {
	pauses := newDelays(maxDelay)
	for {
		more, err := l.follow(ctx, yield)
		if !more {
			return !l.unwanted
		}
		if !isRetryable(err) || ctx.Err() != nil || pauses.pause(ctx, err) != nil {
			yield(nil, orEnded(ctx, err))
			return false
		}
	}
}

// Rollouts per call: the server's default limit.
const maxListed = 10_000

type listedAttempt struct{ rolloutID, attemptID string }

// tripletList is a list and its progress.
type tripletList struct {
	client  *Client
	request *pb.ListTripletsRequest
	left    []string
	seen    map[listedAttempt]bool
	part    *pb.AttemptTriplets
	// unwanted is set when the caller has left the loop.
	unwanted bool
}

func (l *tripletList) follow(
	ctx context.Context, yield func(*pb.AttemptTriplets, error) bool,
) (more bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // where the caller leaves the loop
	l.part = nil
	stream, err := l.client.service.ListTriplets(ctx, l.remaining())
	if err != nil {
		return true, err
	}
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return true, err
		}
		for _, part := range answer.GetAttempts() {
			if whole := l.add(part); whole != nil && !yield(whole, nil) {
				l.unwanted = true
				return false, nil
			}
		}
	}
}

// add returns the attempt that this part completes, or nil if it is incomplete or was already yielded.
func (l *tripletList) add(part *pb.AttemptTriplets) *pb.AttemptTriplets {
	key := listedAttempt{part.GetAttempt().GetRolloutId(), part.GetAttempt().GetAttemptId()}
	if at := slices.Index(l.left, key.rolloutID); at > 0 {
		l.left = l.left[at:] // those before are through
	}
	if l.part == nil {
		l.part = part
	} else {
		proto.Merge(l.part, part) // repeated fields grow; the count is in the last part alone
	}
	if !part.GetComplete() {
		return nil
	}
	whole := l.part
	l.part = nil
	if l.seen[key] {
		return nil
	}
	l.seen[key] = true
	return whole
}

// remaining returns the request without the completed rollouts.
func (l *tripletList) remaining() *pb.ListTripletsRequest {
	request := proto.CloneOf(l.request)
	if len(l.left) == len(request.GetRolloutIds()) {
		return request
	}
	request.RolloutIds = l.left
	wanted := map[string]bool{}
	for _, id := range l.left {
		wanted[id] = true
	}
	maps.DeleteFunc(request.FinalRewards, func(id string, _ float64) bool { return !wanted[id] })
	return request
}
