package lightningstore

import (
	"context"
	"errors"
	"io"
	"time"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/grpc/codes"
)

const (
	// A stream is closed, so that the server acknowledges it, after this number of bytes.
	streamBytes = 16 * mib
	// A stream without a response is sent again after this time.
	streamTimeout = 60 * time.Second
	// Maximum delay between two tries to send spans.
	maxSpanDelay = 2 * time.Second
	// Number of internal errors after which spans are dropped: the server cannot process them.
	maxDefects = 5
)

var errInternal = &Error{Code: codes.Internal}

// run sends spans until the exporter is shut down, in the only goroutine that does.
func (e *SpanExporter) run() {
	defer close(e.ended)
	for {
		items := e.take()
		if items == nil || !e.deliver(items) {
			return
		}
		size := 0
		for _, one := range items {
			size += one.size
		}
		e.mu.Lock()
		e.settled += int64(len(items))
		e.bytes -= size
		e.announce()
		e.mu.Unlock()
	}
}

// take waits for spans and returns those for one stream, or nil at the end.
func (e *SpanExporter) take() []item {
	var lingered <-chan time.Time
	for {
		e.mu.Lock()
		waiting := len(e.queue)
		urgent := e.settled < e.hurryTo || e.bytes >= batchBytes
		e.mu.Unlock()
		select {
		case <-e.stopping:
			urgent = true
			if waiting == 0 {
				return nil
			}
		default:
		}
		if waiting > 0 && urgent {
			return e.cut()
		}
		if waiting > 0 && lingered == nil {
			lingered = time.After(linger)
		}
		select {
		case <-e.wake:
		case <-e.stopping:
		case <-lingered:
			return e.cut()
		}
	}
}

// cut removes the oldest spans from the queue, up to the size of a stream.
func (e *SpanExporter) cut() []item {
	e.mu.Lock()
	defer e.mu.Unlock()
	count, size := 0, 0
	for count < len(e.queue) && size < streamBytes {
		size += e.queue[count].size
		count++
	}
	items := e.queue[:count:count]
	e.queue = e.queue[count:]
	if len(e.queue) == 0 {
		e.queue = nil // let the array go
	}
	return items
}

// deliver sends spans until each is stored or rejected. It returns false if the time of the shutdown is over.
func (e *SpanExporter) deliver(items []item) bool {
	messages := intoMessages(items)
	for len(messages) > 0 {
		result, err := e.send(messages)
		if e.sending.Err() != nil && err != nil {
			return false
		}
		if err != nil {
			count := 0
			for _, members := range messages {
				count += len(members)
			}
			e.drop(count, "refused", "error", err)
			return true
		}
		for _, stop := range result.GetStops() {
			e.onStop(stop)
		}
		messages = e.sortOut(messages, result)
	}
	return true
}

// send sends messages over one stream until it is answered. It returns errors that are not retryable, and an
// error when the time of the shutdown is over.
func (e *SpanExporter) send(messages [][]item) (*pb.IngestResult, error) {
	pauses := newDelays(maxSpanDelay)
	for defects := 0; ; {
		result, err := e.try(messages)
		if err == nil {
			return result, nil
		}
		isDefect := errors.Is(err, errInternal)
		if isDefect {
			defects++
		}
		if !isRetryable(err) && (!isDefect || defects >= maxDefects) {
			return nil, err
		}
		e.client.log.Debug("spans not sent yet", "error", err)
		if err := pauses.pause(e.sending, err); err != nil {
			return nil, err
		}
	}
}

func (e *SpanExporter) try(messages [][]item) (*pb.IngestResult, error) {
	ctx, cancel := context.WithTimeout(e.sending, streamTimeout)
	defer cancel()
	stream, err := e.client.service.IngestSpans(ctx)
	if err != nil {
		return nil, err
	}
	for _, members := range messages {
		err := stream.Send(&pb.IngestSpansRequest{Batch: toBatch(members)})
		if errors.Is(err, io.EOF) {
			break // the stream is broken: CloseAndRecv says how
		}
		if err != nil {
			return nil, err
		}
	}
	answer, err := stream.CloseAndRecv()
	return answer.GetResult(), err
}

// sortOut returns the spans to send again: an invalid span fails its whole batch, although the others are
// valid.
func (e *SpanExporter) sortOut(messages [][]item, result *pb.IngestResult) [][]item {
	var again [][]item
	told, next := int64(0), 0 // next: the first message after those told of
	for _, rejection := range result.GetRejections() {
		index := rejection.GetMessageIndex()
		if index < 0 || index >= int64(len(messages)) {
			continue // no message of this stream: counted below
		}
		members := messages[index]
		next = int(index) + 1
		refused := len(members)
		if count := int(rejection.GetSpanCount()); count > 0 && count < refused {
			refused = count // single spans, as those whose ids are taken: the others are stored
		}
		told += int64(refused)
		if len(members) == 1 || refused < len(members) || isAboutAttempt(rejection.GetReason()) {
			e.drop(refused, "refused: "+rejection.GetReason().String(), "error", rejection.GetMessage())
			continue
		}
		for i := range members {
			again = append(again, members[i:i+1])
		}
	}
	switch untold := result.GetRejectedCount() - told; {
	case untold <= 0:
	case next > 0:
		// The server lists only the first rejections. The messages after them are sent again; stored spans are
		// skipped.
		again = append(again, messages[next:]...)
	default:
		e.drop(int(untold), "rejected without a reason")
	}
	return again
}

// isAboutAttempt reports whether a reason applies to all spans of a batch.
func isAboutAttempt(reason pb.ErrorReason) bool {
	return reason == pb.ErrorReason_ERROR_REASON_ROLLOUT_NOT_FOUND ||
		reason == pb.ErrorReason_ERROR_REASON_ATTEMPT_NOT_FOUND
}
