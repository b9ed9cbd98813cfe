package lightningstore

import (
	"context"
	"sync"
	"time"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

const (
	defaultBufferBytes = 64 * mib
	// The server's limit of one span.
	maxSpanBytes = 4 * mib
	// How long a span may wait for others to travel with.
	linger = 200 * time.Millisecond
	// How long Shutdown may hold a program up if its context does not say.
	longestShutdown = 5 * time.Second
)

// ExporterOptions say where the spans of a SpanExporter belong. The zero value takes the attempt from each
// span.
type ExporterOptions struct {
	// RolloutID and AttemptID of spans that do not say themselves.
	RolloutID, AttemptID string
	// MaxBufferBytes of spans that are not stored yet; new ones beyond it are dropped. 0: 64 MiB.
	MaxBufferBytes int
}

// SpanExporter streams spans to a store, each to the attempt that it belongs to, and holds nobody up. It is an
// exporter of OpenTelemetry's SDK; use it with sdktrace.WithSyncer, for it has a buffer of its own.
//
// A goroutine sends the spans, keeps them until the server says that they are stored, and sends them again
// after a break: stored twice they count once. So nothing is lost while a server restarts. Spans beyond the
// buffer, and such as the server refuses, are dropped and counted. The log says so: at once the first time, then in
// summaries, at most one a minute.
//
// Which attempt: the attributes agentlightning.rollout_id and agentlightning.attempt_id of the span, else
// those of its resource, else the options'.
type SpanExporter struct {
	client   *Client
	fallback attemptKey
	maxBytes int
	onStop   func(*pb.Stop)
	wake     chan struct{}   // something to look at for the sender
	stopping chan struct{}   // closed by Shutdown
	ended    chan struct{}   // closed by the sender
	sending  context.Context // ends when the time of Shutdown is over
	endSends context.CancelFunc
	lost     *losses

	mu      sync.Mutex
	started bool // there is a sender
	shut    bool // by Shutdown
	queue   []item
	bytes   int // in the queue and on their way
	added   int64
	settled int64
	hurryTo int64         // send without delay until so many are settled
	moved   chan struct{} // closed, and replaced, when settled grows
}

var _ sdktrace.SpanExporter = (*SpanExporter)(nil)

// NewSpanExporter returns an exporter over a client, which stays the caller's to close. options may be nil.
func NewSpanExporter(client *Client, options *ExporterOptions) *SpanExporter {
	if options == nil {
		options = &ExporterOptions{}
	}
	e := &SpanExporter{
		client:   client,
		fallback: attemptKey{options.RolloutID, options.AttemptID},
		maxBytes: options.MaxBufferBytes,
		onStop:   func(*pb.Stop) {},
		wake:     make(chan struct{}, 1),
		stopping: make(chan struct{}),
		ended:    make(chan struct{}),
		moved:    make(chan struct{}),
		lost:     newLosses(client.log),
	}
	if e.maxBytes == 0 {
		e.maxBytes = defaultBufferBytes
	}
	e.sending, e.endSends = context.WithCancel(context.Background())
	return e
}

// ExportSpans queues spans; it never waits for the network, and never fails: what cannot be sent is dropped,
// counted and warned about.
func (e *SpanExporter) ExportSpans(_ context.Context, spans []sdktrace.ReadOnlySpan) error {
	items, err := encode(spans, e.fallback)
	if err != nil {
		e.drop(len(spans), "cannot be encoded", "error", err)
		return nil
	}
	for _, next := range items {
		switch {
		case next.origin == nil:
			e.drop(1, next.wrong, "span", next.span.GetName())
		case next.size > maxSpanBytes:
			e.drop(1, "too large", "span", next.span.GetName(), "bytes", next.size, "limit", maxSpanBytes)
		default:
			e.add(next)
		}
	}
	e.poke()
	return nil
}

// add puts an item into the queue.
func (e *SpanExporter) add(next item) {
	e.mu.Lock()
	shut, full := e.shut, e.bytes+next.size > e.maxBytes
	if !shut && !full {
		e.queue = append(e.queue, next)
		e.bytes += next.size
		e.added++
		if !e.started {
			e.started = true
			go e.run()
		}
	}
	e.mu.Unlock()
	switch {
	case shut:
		e.drop(1, "exporter shut down")
	case full:
		e.drop(1, "buffer full", "bytes", e.maxBytes)
	}
}

// Dropped returns the number of spans lost so far: beyond the buffer, too large, refused by the server,
// without an attempt, or not stored at the shutdown.
func (e *SpanExporter) Dropped() int64 {
	return e.lost.count()
}

// ForceFlush waits until all that was exported so far is stored, or given up. It fails when ctx ends first;
// the spans are kept then.
func (e *SpanExporter) ForceFlush(ctx context.Context) error {
	e.mu.Lock()
	target := e.added
	e.hurryTo = max(e.hurryTo, target)
	e.mu.Unlock()
	e.poke()
	for {
		e.mu.Lock()
		done, moved := e.settled >= target, e.moved
		e.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Shutdown sends what is left and ends. It fails when ctx ends first, and after 5 seconds in any case: what is
// not stored then is lost, and warned about.
func (e *SpanExporter) Shutdown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, longestShutdown)
	defer cancel()
	e.mu.Lock()
	if !e.shut {
		e.shut = true
		close(e.stopping)
		if !e.started {
			close(e.ended)
		}
	}
	e.mu.Unlock()
	var err error
	select {
	case <-e.ended:
	case <-ctx.Done():
		err = ctx.Err()
		e.endSends()
		<-e.ended
	}
	e.endSends()
	e.mu.Lock()
	left := e.added - e.settled
	e.settled = e.added
	e.announce()
	e.mu.Unlock()
	if left > 0 {
		e.drop(int(left), "not stored before the shutdown")
	}
	e.lost.summarize()
	return err
}

// poke makes the sender look again.
func (e *SpanExporter) poke() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// announce wakes those who wait for settled. The lock is held.
func (e *SpanExporter) announce() {
	close(e.moved)
	e.moved = make(chan struct{})
}

// drop counts lost spans and logs them, with the details given as slog takes them.
func (e *SpanExporter) drop(count int, why string, details ...any) {
	e.lost.add(int64(count), why, details...)
}
