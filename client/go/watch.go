package lightningstore

import (
	"context"
	"errors"
	"io"
	"iter"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// WatchOptions say where a watch starts.
type WatchOptions struct {
	// After is the last number that the caller has seen: only items with greater numbers follow. 0: from the first
	// one that the server has. Nil: only items from now on.
	After *int64
	// StoreID is the id of the store that After comes from. Empty: not checked.
	StoreID string
	// OnStarted is called once, when the server has registered the watch: no later item is missed. May be nil.
	OnStarted func()
}

// Watch yields items in the order of their numbers, without end. It can be iterated once.
type Watch[T any] struct {
	client  *Client
	ctx     context.Context
	options WatchOptions
	through *int64
	storeID string
	open    func(ctx context.Context, after *int64, storeID string) (func() (watched[T], error), error)
	number  func(T) int64
}

// watched is one message of a watch.
type watched[T any] struct {
	items   []T
	through int64
	storeID string
}

// errWatchEnded is the error of a watch whose stream the server ended.
var errWatchEnded = &Error{Code: codes.Unavailable, Message: "the stream of the watch ended"}

// WatchResources returns a watch of the publications of all resources, in the order of their publish numbers. It starts
// when its All is iterated. A version that was removed before it could be sent is left out; the latest one never is.
func (c *Client) WatchResources(ctx context.Context, options WatchOptions) *Watch[*pb.Resources] {
	return newWatch(ctx, c, options, (*pb.Resources).GetPublishNumber,
		func(ctx context.Context, after *int64, storeID string) (func() (watched[*pb.Resources], error), error) {
			stream, err := c.service.WatchResources(ctx,
				&pb.WatchResourcesRequest{AfterPublishNumber: after, StoreId: storeID})
			return messagesOf(stream, func(message *pb.WatchResourcesResponse) watched[*pb.Resources] {
				return watched[*pb.Resources]{message.GetResources(), message.GetThroughPublishNumber(), message.GetStoreId()}
			}), err
		})
}

// WatchGroups returns a watch of the completions of all groups, in the order of their completion numbers. It starts
// when its All is iterated. A group that is reopened and completes again is yielded again, with its new number.
func (c *Client) WatchGroups(ctx context.Context, options WatchOptions) *Watch[*pb.Group] {
	return newWatch(ctx, c, options, (*pb.Group).GetCompletionNumber,
		func(ctx context.Context, after *int64, storeID string) (func() (watched[*pb.Group], error), error) {
			stream, err := c.service.WatchGroups(ctx,
				&pb.WatchGroupsRequest{AfterCompletionNumber: after, StoreId: storeID})
			return messagesOf(stream, func(message *pb.WatchGroupsResponse) watched[*pb.Group] {
				return watched[*pb.Group]{message.GetGroups(), message.GetThroughCompletionNumber(), message.GetStoreId()}
			}), err
		})
}

func newWatch[T any](ctx context.Context, client *Client, options WatchOptions, number func(T) int64,
	open func(context.Context, *int64, string) (func() (watched[T], error), error),
) *Watch[T] {
	return &Watch[T]{client: client, ctx: ctx, options: options, through: options.After, storeID: options.StoreID,
		open: open, number: number}
}

// messagesOf returns a function that receives the next message of a stream.
func messagesOf[M, T any](stream grpc.ServerStreamingClient[M], from func(*M) watched[T]) func() (watched[T], error) {
	return func() (watched[T], error) {
		message, err := stream.Recv()
		if err != nil {
			return watched[T]{}, err
		}
		return from(message), nil
	}
}

// All yields the items. It resumes after a broken connection, for as long as the context lasts, and neither misses nor
// repeats an item. Any other failure ends it with an error.
func (w *Watch[T]) All() iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
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
				var none T
				yield(none, orEnded(w.ctx, err))
				return
			}
			w.client.log.Debug("watch resumed", "error", err)
		}
	}
}

// Through returns the number up to which everything has been yielded, to start a later watch after it. It returns false
// before the server has said it.
func (w *Watch[T]) Through() (number int64, known bool) {
	if w.through == nil {
		return 0, false
	}
	return *w.through, true
}

// StoreID returns the id of the store that the numbers belong to. Empty before the server has said it.
func (w *Watch[T]) StoreID() string { return w.storeID }

// follow yields the items of one stream. heard reports whether the stream delivered anything, more whether the caller
// wants more; err is then the reason why the stream broke.
func (w *Watch[T]) follow(yield func(T, error) bool) (heard, more bool, err error) {
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel() // where the caller leaves the loop
	next, err := w.open(ctx, w.through, w.storeID)
	if err != nil {
		return false, true, err
	}
	for {
		message, err := next()
		if errors.Is(err, io.EOF) {
			err = errWatchEnded
		}
		if err != nil {
			return heard, true, err
		}
		heard = true
		w.storeID = message.storeID
		if len(message.items) == 0 {
			w.through = proto.Int64(message.through)
		}
		w.started()
		for _, item := range message.items {
			w.through = proto.Int64(w.number(item))
			if !yield(item, nil) {
				return true, false, nil
			}
		}
		w.through = proto.Int64(message.through)
	}
}

func (w *Watch[T]) started() {
	if started := w.options.OnStarted; started != nil {
		w.options.OnStarted = nil
		started()
	}
}
