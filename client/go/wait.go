package lightningstore

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// WaitOptions say what is waited for: at least one id or group; both together are joined.
type WaitOptions struct {
	// RolloutIDs of any number.
	RolloutIDs []string
	// GroupIDs: all rollouts that are in these groups when the wait begins.
	GroupIDs []string
	// MinCount ends the wait once so many have finished. 0: all of them.
	MinCount int
	// Timeout ends the wait without an error. 0: no limit but that of the context.
	Timeout time.Duration
}

// Waiting is a wait for rollouts to finish. It serves one loop.
type Waiting struct {
	client  *Client
	ctx     context.Context
	options WaitOptions
	until   time.Time
	seen    map[string]bool
	open    []string
	ended   bool
}

// errNoSummary is a stream of a wait that was cut off before it said how the wait ended.
var errNoSummary = &Error{Code: codes.Unavailable, Message: "the wait was cut off"}

// Wait returns a wait, which begins with the loop over its All.
func (c *Client) Wait(ctx context.Context, options WaitOptions) *Waiting {
	return &Waiting{client: c, ctx: ctx, options: options, seen: map[string]bool{}}
}

// All yields each rollout once, as it finishes; those that have finished already come first. It ends when all
// of them, or MinCount, have finished, or after the timeout. A connection that breaks is taken up where it
// broke, for as long as the context lasts. Any other failure ends it with an error.
func (w *Waiting) All() iter.Seq2[*pb.Rollout, error] {
	return func(yield func(*pb.Rollout, error) bool) {
		if w.options.Timeout > 0 {
			w.until = time.Now().Add(w.options.Timeout)
		}
		pauses := newDelays(longestDelay)
		for {
			heard, more, err := w.follow(yield)
			if !more {
				return
			}
			if heard {
				pauses = newDelays(longestDelay)
			}
			if !mends(err) || w.ctx.Err() != nil || pauses.pause(w.ctx, err) != nil {
				yield(nil, orEnded(w.ctx, err))
				return
			}
			w.client.log.Debug("wait taken up again", "error", err)
		}
	}
}

// Open returns the ids of the rollouts that had not finished when the loop ended.
func (w *Waiting) Open() []string { return w.open }

// follow yields what one stream brings. heard: whether it brought anything. more: whether the caller still
// wants some, and there may be some; err is then why the stream broke.
func (w *Waiting) follow(yield func(*pb.Rollout, error) bool) (heard, more bool, err error) {
	request := w.request()
	if request == nil {
		return false, false, nil
	}
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel() // where the caller leaves the loop
	stream, err := w.client.service.WaitForRollouts(ctx, request)
	if err != nil {
		return false, true, err
	}
	for {
		answer, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			err = errNoSummary
		}
		if err != nil {
			return heard, !w.ended, err // after the summary nothing but the end of the stream was lost
		}
		heard = true
		if summary := answer.GetSummary(); summary != nil {
			w.ended, w.open = true, summary.GetOpenRolloutIds()
		}
		for _, rollout := range answer.GetRollouts() {
			if w.seen[rollout.GetRolloutId()] {
				continue
			}
			w.seen[rollout.GetRolloutId()] = true
			if !yield(rollout, nil) {
				return true, false, nil
			}
		}
	}
}

// request returns what to ask for: after a break, what is still missing. Which rollouts are in a group only
// the server knows, so with groups all are asked for again. Nil if nothing is missing but the end.
func (w *Waiting) request() *pb.WaitForRolloutsRequest {
	request := &pb.WaitForRolloutsRequest{RolloutIds: w.options.RolloutIDs, GroupIds: w.options.GroupIDs}
	least := w.options.MinCount
	if len(w.seen) > 0 && len(w.options.GroupIDs) == 0 {
		request.RolloutIds = w.missing()
		if len(request.RolloutIds) == 0 || least > 0 && len(w.seen) >= least {
			w.open = request.RolloutIds
			return nil
		}
		least -= len(w.seen)
	}
	if w.options.MinCount > 0 {
		request.MinCount = proto.Int32(int32(least))
	}
	if w.options.Timeout > 0 {
		request.Timeout = durationpb.New(max(time.Until(w.until), 0))
	}
	return request
}

func (w *Waiting) missing() []string {
	var missing []string
	for _, id := range w.options.RolloutIDs {
		if !w.seen[id] {
			missing = append(missing, id)
		}
	}
	return missing
}
