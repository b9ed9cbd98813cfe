package lightningstore

import (
	"context"
	"sync"
	"time"
)

const (
	// Time after a claim until its rollout is watched. A finish before that is noticed then.
	watchDelay = 500 * time.Millisecond
	// Time without a stream after one has failed. Heartbeats still say what to stop.
	watchPause = 10 * time.Second
)

// finishes tells a runner within a second that a rollout it works on has finished: cancelled, for instance.
//
// Heartbeats say which attempts to stop, but are sent every 10 seconds. More of them would cost the server a
// call per second for each worker. So one WaitForRollouts stream, on which nothing is sent until something
// happens, covers the rollouts that the runner works on. Rollouts shorter than the delay never cause a call. A
// stream is replaced when a rollout that it does not cover gets older than the delay, and then covers all.
type finishes struct {
	client   *Client
	onFinish func(rolloutID string)
	delay    time.Duration
	pause    time.Duration

	mu      sync.Mutex
	stopped bool
	timer   *time.Timer
	due     map[attemptKey]time.Time
	covered map[attemptKey]bool
	end     context.CancelFunc // of the stream
}

func newFinishes(client *Client, onFinish func(string)) *finishes {
	return &finishes{client: client, onFinish: onFinish, delay: watchDelay, pause: watchPause,
		due: map[attemptKey]time.Time{}, covered: map[attemptKey]bool{}, end: func() {}}
}

// add watches a claim after the delay.
func (f *finishes) add(key attemptKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.due[key] = time.Now().Add(f.delay)
	if f.timer == nil && !f.stopped {
		f.timer = time.AfterFunc(f.delay, f.look)
	}
}

// remove watches an attempt no longer. The stream stays open while it covers others.
func (f *finishes) remove(key attemptKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.due, key)
	delete(f.covered, key)
	if len(f.covered) == 0 {
		f.end()
	}
}

// stop ends the stream.
func (f *finishes) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopped = true
	if f.timer != nil {
		f.timer.Stop()
	}
	f.end()
}

// look opens a stream if a rollout without one is old enough; otherwise it looks again when that is so.
func (f *finishes) look() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.timer = nil
	var first time.Time
	for key, due := range f.due {
		if !f.covered[key] && (first.IsZero() || due.Before(first)) {
			first = due
		}
	}
	if first.IsZero() || f.stopped {
		return
	}
	if wait := time.Until(first); wait > 0 {
		f.timer = time.AfterFunc(wait, f.look)
		return
	}
	ids := map[string]bool{}
	for key := range f.due {
		f.covered[key] = true
		ids[key.rolloutID] = true
	}
	f.end()
	ctx, cancel := context.WithCancel(context.Background())
	f.end = cancel
	go f.watch(ctx, ids)
}

// watch reports the finishes of one stream.
func (f *finishes) watch(ctx context.Context, ids map[string]bool) {
	options := WaitOptions{}
	for id := range ids {
		options.RolloutIDs = append(options.RolloutIDs, id)
	}
	for rollout, err := range f.client.Wait(ctx, options).All() {
		if err == nil {
			f.onFinish(rollout.GetRolloutId())
			continue
		}
		if ctx.Err() == nil {
			f.client.log.Debug("finishes are not watched", "error", err, "pause", f.pause)
			f.watchLater(ctx)
		}
		return
	}
}

// watchLater opens another stream after the pause, unless the failed one has been replaced.
func (f *finishes) watchLater(failed context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if failed.Err() != nil || f.stopped {
		return
	}
	clear(f.covered)
	for key := range f.due {
		f.due[key] = time.Now().Add(f.pause)
	}
	if f.timer != nil {
		f.timer.Stop()
	}
	f.timer = time.AfterFunc(f.pause, f.look)
}
