package lightningstore

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"time"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
)

const (
	// Heartbeats per unresponsive timeout, so that one or two may get lost.
	beatsPerTimeout = 3
	shortestPeriod  = 50 * time.Millisecond
	// Attempts per call. A server may limit them to 10,000 or fewer.
	attemptsPerBeat = 1_000
	// Time between two tries while the server does not answer.
	retryPeriod = time.Second
)

// heartbeats sends the heartbeats of a worker and of the attempts that it works on.
type heartbeats struct {
	client   *Client
	workerID string
	period   time.Duration
	onStop   func(*pb.Stop)
	stats    func() map[string]any
	// publishNumber returns the number to report; 0: none. It may be user code.
	publishNumber func() int64

	changed  chan struct{}
	hurried  chan struct{}
	mu       sync.Mutex
	attempts map[attemptKey]time.Duration
}

// add includes a claim in the heartbeats.
func (h *heartbeats) add(rollout *pb.Rollout) {
	period := h.period
	if silence := rollout.GetConfig().GetUnresponsiveTimeout(); silence != nil {
		period = max(min(period, silence.AsDuration()/beatsPerTimeout), shortestPeriod)
	}
	h.mu.Lock()
	h.attempts[keyOf(rollout)] = period
	h.mu.Unlock()
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// hurry sends the next heartbeat now, because its response explains what has happened.
func (h *heartbeats) hurry() {
	select {
	case h.hurried <- struct{}{}:
	default:
	}
}

// remove excludes an attempt from the heartbeats.
func (h *heartbeats) remove(key attemptKey) {
	h.mu.Lock()
	delete(h.attempts, key)
	h.mu.Unlock()
}

// interval returns the time between heartbeats, which depends on the shortest unresponsive timeout.
func (h *heartbeats) interval() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	shortest := h.period
	for _, period := range h.attempts {
		shortest = min(shortest, period)
	}
	return shortest
}

// run sends heartbeats until ctx ends. It continues after a failed heartbeat, because the server may come
// back.
func (h *heartbeats) run(ctx context.Context) {
	due := time.Now()
	began, failing := due, false
	for ctx.Err() == nil {
		timer := time.NewTimer(time.Until(due))
		select {
		case <-timer.C:
		case <-h.hurried:
			timer.Stop()
		case <-h.changed: // perhaps a shorter period
			timer.Stop()
			due = earlier(due, began.Add(h.interval()))
			continue
		case <-ctx.Done():
			timer.Stop()
			return
		}
		began = time.Now()
		interval := h.interval()
		due = began.Add(interval)
		if err := h.beat(ctx, max(interval, retryPeriod)); err != nil {
			due = time.Now().Add(min(interval, retryPeriod))
			if !failing && ctx.Err() == nil {
				h.client.log.Warn("heartbeat failed, retrying", "error", err)
			}
			failing = true
		} else if failing {
			h.client.log.Warn("heartbeats succeed again")
			failing = false
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// loaded returns the publish number to report. A panic of user code is an error: it must not end the heartbeats.
func (h *heartbeats) loaded() (number int64, err error) {
	defer func() {
		if value := recover(); value != nil {
			err = &panicError{text: panicText(value)}
		}
	}()
	return h.publishNumber(), nil
}

func (h *heartbeats) beat(ctx context.Context, timeout time.Duration) error {
	h.mu.Lock()
	keys := slices.Collect(maps.Keys(h.attempts))
	h.mu.Unlock()
	stats, err := json.Marshal(h.stats())
	if err != nil {
		return err
	}
	number, err := h.loaded()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for first := true; first || len(keys) > 0; first = false {
		request := &pb.HeartbeatRequest{WorkerId: h.workerID, StatsJson: stats, PublishNumber: number}
		part := keys[:min(len(keys), attemptsPerBeat)]
		for _, key := range part {
			request.Attempts = append(request.Attempts,
				&pb.AttemptRef{RolloutId: key.rolloutID, AttemptId: key.attemptID})
		}
		keys = keys[len(part):]
		answer, err := h.client.service.Heartbeat(ctx, request)
		if err != nil {
			return err
		}
		for _, stop := range answer.GetStops() {
			h.onStop(stop)
		}
	}
	return nil
}
