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

// Triplets yields the calls of a model in the spans of rollouts, with prompt, response and reward: one
// message an attempt, whole however the server cuts it, in the order of the request's rollouts. A list that
// breaks is asked for again from where it was, for as long as the context lasts. Any other failure ends it
// with an error. More than 10,000 rollouts are asked for in several calls; an id that the server does not know
// then fails the list where its call begins.
func (c *Client) Triplets(
	ctx context.Context, request *pb.ListTripletsRequest,
) iter.Seq2[*pb.AttemptTriplets, error] {
	return func(yield func(*pb.AttemptTriplets, error) bool) {
		list := tripletList{client: c, request: request, seen: map[listedAttempt]bool{}}
		for rest := request.GetRolloutIds(); ; {
			list.left = rest[:min(len(rest), mostListed)]
			rest = rest[len(list.left):]
			if !list.through(ctx, yield) || len(rest) == 0 {
				return
			}
		}
	}
}

// through yields what is left. False if the caller wants no more, or was given an error.
func (l *tripletList) through(ctx context.Context, yield func(*pb.AttemptTriplets, error) bool) bool {
	pauses := newDelays(longestDelay)
	for {
		more, err := l.follow(ctx, yield)
		if !more {
			return !l.unwanted
		}
		if !mends(err) || ctx.Err() != nil || pauses.pause(ctx, err) != nil {
			yield(nil, orEnded(ctx, err))
			return false
		}
	}
}

// Rollouts of one call: the server's limit by default.
const mostListed = 10_000

type listedAttempt struct{ rolloutID, attemptID string }

// tripletList is a list and what it has brought so far.
type tripletList struct {
	client  *Client
	request *pb.ListTripletsRequest
	left    []string
	seen    map[listedAttempt]bool
	part    *pb.AttemptTriplets
	// unwanted: the caller has left the loop.
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

// add returns an attempt that this part completes, nil where it is not complete or came before a break.
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

// remaining returns the request without the rollouts that are through.
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
