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

// Rollouts per call: the server's default limit.
const maxListed = 10_000

type listedAttempt struct{ rolloutID, attemptID string }

// listRequest asks for what is derived from the spans of rollouts.
type listRequest interface {
	proto.Message
	GetRolloutIds() []string
	GetFinalRewards() map[string]float64
}

// listedPart is a part of what was derived from the spans of one attempt.
type listedPart interface {
	comparable
	proto.Message
	GetAttempt() *pb.AttemptRef
	GetComplete() bool
}

// attemptList is a list of attempts and its progress.
type attemptList[R listRequest, P listedPart] struct {
	request R
	// open starts a call, and returns what receives the parts in its next message.
	open func(context.Context, R) (func() ([]P, error), error)
	// setIDs sets the rollouts of a request.
	setIDs func(R, []string)
	left   []string
	seen   map[listedAttempt]bool
	part   P
	// unwanted is set when the caller has left the loop.
	unwanted bool
}

// all yields one complete message per attempt.
func (l attemptList[R, P]) all(ctx context.Context) iter.Seq2[P, error] {
	return func(yield func(P, error) bool) {
		list := l
		list.seen = map[listedAttempt]bool{}
		for rest := list.request.GetRolloutIds(); ; {
			list.left = rest[:min(len(rest), maxListed)]
			rest = rest[len(list.left):]
			if !list.through(ctx, yield) || len(rest) == 0 {
				return
			}
		}
	}
}

// through yields the rest. It returns false if the caller wants no more, or was given an error.
func (l *attemptList[R, P]) through(ctx context.Context, yield func(P, error) bool) bool {
	pauses := newDelays(maxDelay)
	for {
		more, err := l.follow(ctx, yield)
		if !more {
			return !l.unwanted
		}
		if !isRetryable(err) || ctx.Err() != nil || pauses.pause(ctx, err) != nil {
			var none P
			yield(none, orEnded(ctx, err))
			return false
		}
	}
}

func (l *attemptList[R, P]) follow(ctx context.Context, yield func(P, error) bool) (more bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // where the caller leaves the loop
	var none P
	l.part = none
	receive, err := l.open(ctx, l.remaining())
	if err != nil {
		return true, err
	}
	for {
		parts, err := receive()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return true, err
		}
		for _, part := range parts {
			if whole := l.add(part); whole != none && !yield(whole, nil) {
				l.unwanted = true
				return false, nil
			}
		}
	}
}

// add returns the attempt that this part completes, or nil if it is incomplete or was already yielded.
func (l *attemptList[R, P]) add(part P) P {
	var none P
	key := listedAttempt{part.GetAttempt().GetRolloutId(), part.GetAttempt().GetAttemptId()}
	if at := slices.Index(l.left, key.rolloutID); at > 0 {
		l.left = l.left[at:] // those before are through
	}
	if l.part == none {
		l.part = part
	} else {
		proto.Merge(l.part, part) // repeated fields grow; the count is in the last part alone
	}
	if !part.GetComplete() {
		return none
	}
	whole := l.part
	l.part = none
	if l.seen[key] {
		return none
	}
	l.seen[key] = true
	return whole
}

// remaining returns the request without the completed rollouts.
func (l *attemptList[R, P]) remaining() R {
	request := proto.CloneOf(l.request)
	if len(l.left) == len(request.GetRolloutIds()) {
		return request
	}
	l.setIDs(request, l.left)
	wanted := map[string]bool{}
	for _, id := range l.left {
		wanted[id] = true
	}
	maps.DeleteFunc(request.GetFinalRewards(), func(id string, _ float64) bool { return !wanted[id] })
	return request
}
