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
	// Maximum time to wait for cancelled functions when the runner stops.
	grace = 5 * time.Second
)

// Func works on one rollout. It returns the reward ([Reward]), or nil for none.
//
// A nil error is success. An error or a panic is a failure with its type and message. It is retried according
// to the rollout's config, unless it is marked by [NonRetryable]. When the attempt is cancelled or
// superseded, ctx is cancelled with a [*StopError] as its cause; then the attempt is not reported as
// succeeded, whatever the function returns.
type Func[I any] func(ctx context.Context, task *Task[I]) (*float64, error)

// RunnerOptions configure a Runner. The zero value works on one rollout at a time, without end.
type RunnerOptions struct {
	// WorkerID is the id of the runner. Empty: generated from host name, process id and random digits.
	WorkerID string
	// Concurrency is the maximum number of rollouts at a time. 0 means 1.
	Concurrency int
	// Modes of the rollouts to claim. Unspecified matches rollouts without a mode. Empty: any.
	Modes []pb.RolloutMode
	// Queues are the task queues to claim from; "" is the default queue. Empty: the default queue only.
	Queues []string
	// MaxRollouts is the number of rollouts after which the runner ends. 0: no limit.
	MaxRollouts int
	// HeartbeatPeriod is the maximum time between heartbeats, which is reduced to a third of the shortest
	// unresponsive timeout. 0 means 10 seconds.
	HeartbeatPeriod time.Duration
	// PublishNumber returns the publish number that heartbeats report, such as that of the weights which the
	// worker's model has loaded; 0: unchanged. It is called in the goroutine of the heartbeats. Nil: that of the
	// resources which the function was called with last.
	PublishNumber func() int64
}

// Runner claims rollouts and calls a function for each, several at a time. A Runner runs once.
//
// It sends heartbeats independently of the functions. It stores spans before it reports an outcome. While the
// server is down, it continues, keeps spans for up to 10 minutes, and reports when the server is back. No
// claim is lost.
type Runner struct {
	client      *Client
	workerID    string
	concurrency int
	left        int // rollouts still to be claimed; negative: no limit
	exporter    *SpanExporter
	heartbeats  *heartbeats
	finishes    *finishes
	claims      *claims
	work        *work

	stopClaims context.CancelFunc
	claiming   context.Context
	hurry      context.CancelFunc
	hurried    context.Context
	slots      chan struct{} // holds one token for each rollout that is worked on

	mu       sync.Mutex
	running  map[attemptKey]*execution
	finished int
}

// NewRunner returns a runner that uses a client. The caller closes the client. options may be nil.
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
	r.slots = make(chan struct{}, r.concurrency)
	r.claiming, r.stopClaims = context.WithCancel(context.Background())
	r.hurried, r.hurry = context.WithCancel(context.Background())
	r.exporter = NewSpanExporter(client, nil)
	r.exporter.onStop = r.stopAttempt
	r.heartbeats = &heartbeats{client: client, workerID: r.workerID, period: period, onStop: r.stopAttempt,
		stats: r.stats, publishNumber: options.PublishNumber, changed: make(chan struct{}, 1), hurried: make(chan struct{}, 1),
		attempts: map[attemptKey]time.Duration{}}
	r.finishes = newFinishes(client, r.onFinish)
	r.claims = &claims{client: client, workerID: r.workerID, modes: options.Modes, queues: options.Queues}
	r.work = &work{client: client, workerID: r.workerID, function: function, exporter: r.exporter, hurried: r.hurried}
	if r.heartbeats.publishNumber == nil {
		r.heartbeats.publishNumber = r.work.publishNumber.Load
	}
	return r
}

// WorkerID returns the id of the runner.
func (r *Runner) WorkerID() string { return r.workerID }

// Run works until Stop is called, MaxRollouts are done, or ctx ends. When ctx ends, Run cancels the
// functions, reports their attempts and returns the error of ctx. It abandons functions that do not return
// within 5 seconds. After an error that is not retryable, Run lets the functions finish and returns the
// error.
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
	r.finishes.stop()
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

// RunWithSignals is Run with handlers for SIGINT and SIGTERM: the first signal lets the functions finish and
// claims no more, the second cancels them.
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

// Stop lets the functions finish and claims no more. A second call cancels them. It does not wait.
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

// claimAndStart claims as many rollouts as there are free slots, until the runner stops.
func (r *Runner) claimAndStart(ctx context.Context, functions *sync.WaitGroup) error {
	for r.claiming.Err() == nil && r.left != 0 {
		free := r.takeSlots()
		if free == 0 {
			return nil
		}
		claimed, err := r.claims.claim(r.claiming, free)
		for range free - len(claimed) {
			<-r.slots
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

// takeSlots waits for a free slot and takes all free ones, up to the number of rollouts to claim. It returns
// 0 if the runner must stop.
func (r *Runner) takeSlots() int {
	select {
	case r.slots <- struct{}{}:
	case <-r.claiming.Done():
		return 0
	}
	for taken := 1; ; taken++ {
		if taken == r.left {
			return taken
		}
		select {
		case r.slots <- struct{}{}:
		default:
			return taken
		}
	}
}

// start works on a claim in separate goroutines.
func (r *Runner) start(ctx context.Context, rollout *pb.Rollout, functions *sync.WaitGroup) {
	x := newExecution(ctx, rollout)
	x.onReturn = func() { r.finishes.remove(x.key) }
	r.mu.Lock()
	r.running[x.key] = x
	if r.hurried.Err() != nil {
		x.cancel(&StopError{})
	}
	r.mu.Unlock()
	r.heartbeats.add(rollout)
	r.finishes.add(x.key)
	go func() {
		defer functions.Done()
		r.work.do(x)
		r.heartbeats.remove(x.key)
		r.finishes.remove(x.key)
		x.cancel(nil) // releases the context
		r.mu.Lock()
		delete(r.running, x.key)
		r.finished++
		r.mu.Unlock()
		<-r.slots
	}()
}

// finish waits for the functions; after they are cancelled, for at most the grace period.
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
		r.client.log.Warn("the function did not return after its cancellation; abandoned",
			"rollout", key.rolloutID, "attempt", key.attemptID)
		close(x.abandoned)
	}
	r.mu.Unlock()
	<-done
}

// stopAttempt forwards a stop request of the server.
func (r *Runner) stopAttempt(stop *pb.Stop) {
	key := attemptKey{stop.GetAttempt().GetRolloutId(), stop.GetAttempt().GetAttemptId()}
	r.mu.Lock()
	x := r.running[key]
	r.mu.Unlock()
	if x != nil {
		x.cancel(&StopError{Reason: stop.GetReason()})
	}
}

// onFinish sends a heartbeat, which says why a rollout has finished that is still being worked on.
func (r *Runner) onFinish(rolloutID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, x := range r.running {
		if key.rolloutID == rolloutID && !x.returned.Load() {
			r.heartbeats.hurry()
			return
		}
	}
}

// stats returns the statistics sent with heartbeats.
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
