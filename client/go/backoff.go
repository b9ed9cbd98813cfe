package lightningstore

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	firstDelay   = 100 * time.Millisecond
	longestDelay = 5 * time.Second
)

// delays counts up the pauses between tries: from firstDelay, doubling, to longest.
type delays struct {
	next    time.Duration
	longest time.Duration
}

func newDelays(longest time.Duration) *delays { return &delays{next: firstDelay, longest: longest} }

// pause waits after a failure, at least as long as the server asked for. It fails when ctx ends.
func (d *delays) pause(ctx context.Context, failure error) error {
	// Between a half and the whole: enough to spread many clients, and never near to zero.
	delay := time.Duration(float64(d.next) * (0.5 + 0.5*rand.Float64()))
	d.next = min(d.next*2, d.longest)
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
