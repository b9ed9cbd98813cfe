package lightningstore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
)

const (
	defaultHeartbeatPeriod = 10 * time.Second
	// For which cancelled functions are waited for when the runner stops.
	grace = 5 * time.Second
)

// Func works on one rollout. It returns the reward ([Reward]), or nil for none.
//
// Returning no error is success. An error or a panic is a failure with its type and message, retried as the
// rollout's config says; one marked by [NonRetryable] is not. When the attempt is cancelled or superseded ctx
// ends, with a [*StopError] as its cause; whatever the function then returns, the attempt is not reported as
// succeeded.
type Func[I any] func(ctx context.Context, task *Task[I]) (*float64, error)

// RunnerOptions say how a Runner works. The zero value works on one rollout at a time, for ever.
type RunnerOptions struct {
	// WorkerID is what the runner is called. Empty: made of host name, process id and chance.
	WorkerID string
	// Concurrency is the number of rollouts at a time. 0 means 1.
	Concurrency int
	// Modes of the rollouts to claim; unspecified is for those without one. Empty: any.
	Modes []pb.RolloutMode
	// MaxRollouts ends the runner after so many. 0: no end.
	MaxRollouts int
	// HeartbeatPeriod between two heartbeats, or a third of the shortest unresponsive timeout if that is
	// less. 0 means 10 seconds.
	HeartbeatPeriod time.Duration
}

// Runner claims rollouts and calls a function for each, several at a time. It runs once.
//
// Heartbeats go out whatever the functions do. Spans are stored before an outcome is reported. While the
// server is away the runner goes on, keeps spans for up to 10 minutes, and reports when it is back; no claim
// is lost.
type Runner struct {
	client      *Client
	workerID    string
	concurrency int
	left        int // rollouts still to be claimed; negative: no limit
	exporter    *SpanExporter
	heartbeats  *heartbeats
	claims      *claims
	work        *work

	stopClaims context.CancelFunc
	claiming   context.Context
	hurry      context.CancelFunc
	hurried    context.Context
	places     chan struct{} // holds one token for each rollout that is worked on

	mu       sync.Mutex
	running  map[attemptKey]*execution
	finished int
}

// NewRunner returns a runner over a client, which stays the caller's to close. options may be nil.
func NewRunner[I any](client *Client, function Func[I], options *RunnerOptions) *Runner {
	if options == nil {
		options = &RunnerOptions{}
	}
	return newRunner(client, *options, func(ctx context.Context, attempt Attempt) (*float64, error) {
		task := &Task[I]{Attempt: attempt}
		if err := DecodeJSON(attempt.Rollout.GetInputJson(), &task.Input); err != nil {
			return nil, NonRetryable(fmt.Errorf("input: %w", err)) // it will not fit another time
		}
		return function(ctx, task)
	})
}

func newRunner(client *Client, options RunnerOptions, function agentFunc) *Runner {
	r := &Runner{
		client:      client,
		workerID:    options.WorkerID,
		concurrency: max(options.Concurrency, 1),
		left:        options.MaxRollouts,
		running:     map[attemptKey]*execution{},
	}
	if r.workerID == "" {
		r.workerID = newWorkerID()
	}
	if r.left == 0 {
		r.left = -1
	}
	period := options.HeartbeatPeriod
	if period == 0 {
		period = defaultHeartbeatPeriod
	}
	r.places = make(chan struct{}, r.concurrency)
	r.claiming, r.stopClaims = context.WithCancel(context.Background())
	r.hurried, r.hurry = context.WithCancel(context.Background())
	r.exporter = NewSpanExporter(client, nil)
	r.exporter.onStop = r.stopAttempt
	r.heartbeats = &heartbeats{client: client, workerID: r.workerID, period: period, onStop: r.stopAttempt,
		stats: r.stats, changed: make(chan struct{}, 1), attempts: map[attemptKey]time.Duration{}}
	r.claims = &claims{client: client, workerID: r.workerID, modes: options.Modes}
	r.work = &work{client: client, workerID: r.workerID, function: function, exporter: r.exporter, hurried: r.hurried}
	return r
}

// WorkerID returns what the runner is called.
func (r *Runner) WorkerID() string { return r.workerID }

// Run works until Stop is called, MaxRollouts are done, or ctx ends. The end of ctx cancels what runs, and is
// returned as its error once that is reported; functions that do not heed it are left behind after 5 seconds.
// Run fails for what waiting does not mend, after what runs has finished.
func (r *Runner) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { r.Stop(); r.Stop() })()
	beating, endBeats := context.WithCancel(context.Background())
	var beats, functions sync.WaitGroup
	beats.Add(1)
	go func() {
		defer beats.Done()
		r.heartbeats.run(beating)
	}()
	err := r.claimAndStart(ctx, &functions)
	r.finish(&functions)
	endBeats()
	beats.Wait()
	_ = r.exporter.Shutdown(context.Background()) // it says itself what is lost
	r.stopClaims()
	r.hurry()
	if err != nil {
		return err
	}
	return ctx.Err()
}

// RunWithSignals does the same, and takes SIGINT and SIGTERM meanwhile: the first lets what runs finish and
// claims no more, the second cancels it.
func (r *Runner) RunWithSignals(ctx context.Context) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	ended := make(chan struct{})
	defer func() {
		signal.Stop(signals)
		close(ended)
	}()
	go func() {
		for {
			select {
			case <-signals:
				r.Stop()
			case <-ended:
				return
			}
		}
	}()
	return r.Run(ctx)
}

// Stop lets what runs finish, and claims no more; called again, it cancels what runs. It does not wait.
func (r *Runner) Stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.claiming.Err() == nil {
		r.stopClaims()
		return
	}
	r.hurry()
	for _, x := range r.running {
		x.cancel(&StopError{})
	}
}

// claimAndStart claims as many rollouts as there are places, until it is to stop.
func (r *Runner) claimAndStart(ctx context.Context, functions *sync.WaitGroup) error {
	for r.claiming.Err() == nil && r.left != 0 {
		free := r.takePlaces()
		if free == 0 {
			return nil
		}
		claimed, err := r.claims.claim(r.claiming, free)
		for range free - len(claimed) {
			<-r.places
		}
		for _, rollout := range claimed {
			if r.left > 0 {
				r.left--
			}
			functions.Add(1)
			r.start(ctx, rollout, functions)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// takePlaces waits for a free place and takes all there are, at most as many as rollouts are wanted. It
// returns 0 if the runner is to stop.
func (r *Runner) takePlaces() int {
	select {
	case r.places <- struct{}{}:
	case <-r.claiming.Done():
		return 0
	}
	for taken := 1; ; taken++ {
		if taken == r.left {
			return taken
		}
		select {
		case r.places <- struct{}{}:
		default:
			return taken
		}
	}
}

// start works on a claim in goroutines of its own.
func (r *Runner) start(ctx context.Context, rollout *pb.Rollout, functions *sync.WaitGroup) {
	x := newExecution(ctx, rollout)
	r.mu.Lock()
	r.running[x.key] = x
	if r.hurried.Err() != nil {
		x.cancel(&StopError{})
	}
	r.mu.Unlock()
	r.heartbeats.add(rollout)
	go func() {
		defer functions.Done()
		r.work.do(x)
		r.heartbeats.remove(x.key)
		x.cancel(nil) // lets go of the context
		r.mu.Lock()
		delete(r.running, x.key)
		r.finished++
		r.mu.Unlock()
		<-r.places
	}()
}

// finish waits for what runs; once that is cancelled, no longer than the grace for the functions.
func (r *Runner) finish(functions *sync.WaitGroup) {
	done := make(chan struct{})
	go func() {
		functions.Wait()
		close(done)
	}()
	select {
	case <-done:
		return
	case <-r.hurried.Done():
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-done:
		return
	case <-timer.C:
	}
	r.mu.Lock()
	for key, x := range r.running {
		r.client.log.Warn("attempt does not end though cancelled: left behind",
			"rollout", key.rolloutID, "attempt", key.attemptID)
		close(x.abandoned)
	}
	r.mu.Unlock()
	<-done
}

// stopAttempt passes on what the server said.
func (r *Runner) stopAttempt(stop *pb.Stop) {
	key := attemptKey{stop.GetAttempt().GetRolloutId(), stop.GetAttempt().GetAttemptId()}
	r.mu.Lock()
	x := r.running[key]
	r.mu.Unlock()
	if x != nil {
		x.cancel(&StopError{Reason: stop.GetReason()})
	}
}

// stats returns what a heartbeat tells of the runner.
func (r *Runner) stats() map[string]any {
	r.mu.Lock()
	defer r.mu.Unlock()
	return map[string]any{
		"running":       len(r.running),
		"finished":      r.finished,
		"concurrency":   r.concurrency,
		"dropped_spans": r.exporter.Dropped(),
	}
}

func newWorkerID() string {
	host, err := os.Hostname()
	if err != nil {
		host = "worker"
	}
	var chance [3]byte
	_, _ = rand.Read(chance[:]) // never fails
	id := fmt.Sprintf("%s-%d-%s", host, os.Getpid(), hex.EncodeToString(chance[:]))
	return id[max(len(id)-256, 0):]
}
