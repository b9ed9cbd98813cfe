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

// WaitOptions select the rollouts to wait for: at least one id or group. If both are set, the wait is for all
// of them.
type WaitOptions struct {
	// RolloutIDs, without a limit on their number.
	RolloutIDs []string
	// GroupIDs adds all rollouts that are in these groups when the wait begins.
	GroupIDs []string
	// MinCount is the number of finished rollouts at which the wait ends. 0: all of them.
	MinCount int
	// Timeout ends the wait without an error. 0: only the context limits it.
	Timeout time.Duration
}

// Waiting is a wait for rollouts to finish. It can be iterated once.
type Waiting struct {
	client  *Client
	ctx     context.Context
	options WaitOptions
	until   time.Time
	seen    map[string]bool
	open    []string
	ended   bool
}

// errNoSummary is the error of a stream that ended without the summary of the wait.
var errNoSummary = &Error{Code: codes.Unavailable, Message: "the stream of the wait ended early"}

// Wait returns a wait, which starts when its All is iterated.
func (c *Client) Wait(ctx context.Context, options WaitOptions) *Waiting {
	return &Waiting{client: c, ctx: ctx, options: options, seen: map[string]bool{}}
}

// All yields each rollout once, as it finishes, starting with those that have already finished. It ends when
// all of them, or MinCount, have finished, or after the timeout. It resumes after a broken connection, for as
// long as the context lasts. Any other failure ends it with an error.
func (w *Waiting) All() iter.Seq2[*pb.Rollout, error] {
	return func(yield func(*pb.Rollout, error) bool) {
		if w.options.Timeout > 0 {
			w.until = time.Now().Add(w.options.Timeout)
		}
		pauses := newDelays(maxDelay)
		for {
			heard, more, err := w.follow(yield)
			if !more {
				return
			}
			if heard {
				pauses = newDelays(maxDelay)
			}
			if !isRetryable(err) || w.ctx.Err() != nil || pauses.pause(w.ctx, err) != nil {
				yield(nil, orEnded(w.ctx, err))
				return
			}
			w.client.log.Debug("wait resumed", "error", err)
		}
	}
}

// Open returns the ids of the rollouts that had not finished when the iteration ended.
func (w *Waiting) Open() []string { return w.open }

// follow yields the rollouts of one stream. heard reports whether the stream delivered anything, more whether
// the caller wants more and there may be more; err is then the reason why the stream broke.
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

// request returns the request of the next stream: after a break, for the missing rollouts. Only the server
// knows which rollouts are in a group, so with groups the request is unchanged. Nil if only the summary is
// missing.
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
