package lightningstore

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	firstDelay = 100 * time.Millisecond
	maxDelay   = 5 * time.Second
)

// delays computes the pauses between tries: from firstDelay, doubling, up to maxDelay.
type delays struct {
	next  time.Duration
	limit time.Duration
}

func newDelays(limit time.Duration) *delays { return &delays{next: firstDelay, limit: limit} }

// pause waits after a failure, at least for the delay that the server requested. It returns an error when ctx
// ends.
func (d *delays) pause(ctx context.Context, failure error) error {
	// Jitter between half and the full delay spreads clients, without delays near zero.
	delay := time.Duration(float64(d.next) * (0.5 + 0.5*rand.Float64()))
	d.next = min(d.next*2, d.limit)
	return sleep(ctx, max(delay, retryDelay(failure)))
}

func sleep(ctx context.Context, delay time.Duration) error {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
