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
	// The server's limit for one span.
	maxSpanBytes = 4 * mib
	// Maximum time that a span waits to be sent together with others.
	linger = 200 * time.Millisecond
	// Maximum duration of Shutdown if its context has no deadline.
	maxShutdown = 5 * time.Second
)

// ExporterOptions configure a SpanExporter. With the zero value, each span names its attempt.
type ExporterOptions struct {
	// RolloutID and AttemptID of spans that do not name an attempt.
	RolloutID, AttemptID string
	// MaxBufferBytes is the maximum size of spans that are not stored yet; further ones are dropped. 0: 64 MiB.
	MaxBufferBytes int
}

// SpanExporter streams spans to a store, each to its attempt, without blocking the program. It is an exporter
// of the OpenTelemetry SDK. Use it with sdktrace.WithSyncer, because it has its own buffer.
//
// A goroutine sends the spans, keeps them until the server has stored them, and sends them again after a
// broken connection; the server counts repeats once. No span is lost while a server restarts. Spans beyond
// the buffer, and spans that the server rejects, are dropped and counted. The first loss of a kind is logged
// at once, later ones in summaries, at most one per minute.
//
// The attempt of a span is named by the attributes agentlightning.rollout_id and agentlightning.attempt_id of
// the span, else of its resource, else by the options.
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
	hurryTo int64         // send without delay until this number is settled
	moved   chan struct{} // closed, and replaced, when settled grows
}

var _ sdktrace.SpanExporter = (*SpanExporter)(nil)

// NewSpanExporter returns an exporter that uses a client. The caller closes the client. options may be nil.
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

// ExportSpans queues spans. It does not wait for the network and returns no error: spans that cannot be sent
// are dropped, counted and logged.
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

// add appends an item to the queue.
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

// Dropped returns the number of spans lost so far: beyond the buffer, too large, rejected by the server,
// without an attempt, or not stored before the shutdown.
func (e *SpanExporter) Dropped() int64 {
	return e.lost.count()
}

// ForceFlush waits until all spans exported so far are stored or dropped. It returns an error if ctx ends
// first; the spans are kept then.
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

// Shutdown sends the remaining spans and stops the exporter. It returns an error if ctx ends first, and after
// 5 seconds in any case. Spans that are not stored by then are lost, and the loss is logged.
func (e *SpanExporter) Shutdown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, maxShutdown)
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

// poke wakes the sender.
func (e *SpanExporter) poke() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// announce wakes the goroutines that wait for settled. The caller holds the lock.
func (e *SpanExporter) announce() {
	close(e.moved)
	e.moved = make(chan struct{})
}

// drop counts lost spans and logs them, with details in the form of slog's arguments.
func (e *SpanExporter) drop(count int, why string, details ...any) {
	e.lost.add(int64(count), why, details...)
}
