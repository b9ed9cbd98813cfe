package lightningstore

import (
	"context"
	"errors"
	"runtime/debug"
	"sync/atomic"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"go.opentelemetry.io/otel/trace"
)

// execution is one run of the user's function for an attempt.
type execution struct {
	rollout *pb.Rollout
	key     attemptKey
	ctx     context.Context
	cancel  context.CancelCauseFunc
	// abandoned is closed when the runner stops waiting for the function.
	abandoned chan struct{}
	// returned is set when the function has ended, before its outcome is reported.
	returned atomic.Bool
	// onReturn is called then, if it is set.
	onReturn func()
}

// newExecution returns the execution of a claim. The function's context has the values of parent, but is
// cancelled independently.
func newExecution(parent context.Context, rollout *pb.Rollout) *execution {
	// The current span of the program must not become the parent, because it is not in the store.
	parent = trace.ContextWithSpanContext(context.WithoutCancel(parent), trace.SpanContext{})
	ctx, cancel := context.WithCancelCause(parent)
	return &execution{rollout: rollout, key: keyOf(rollout), ctx: ctx, cancel: cancel, abandoned: make(chan struct{})}
}

func keyOf(rollout *pb.Rollout) attemptKey {
	return attemptKey{rollout.GetRolloutId(), rollout.GetLatestAttempt().GetAttemptId()}
}

// stopped returns why the attempt must stop, or nil while it continues.
func (x *execution) stopped() *StopError {
	var why *StopError
	errors.As(context.Cause(x.ctx), &why)
	return why
}

// call runs the function in a separate goroutine and returns its outcome. The failure is described in that
// goroutine too, because the methods of an error or of a panic's value are user code: they may panic, end the
// goroutine, or never return.
func (x *execution) call(function agentFunc, attempt Attempt) outcome {
	done := make(chan outcome, 1)
	go func() {
		// Remains if the goroutine is ended from within, by runtime.Goexit.
		ended := outcome{failure: &pb.Failure{Type: "panic", Message: "the function ended its goroutine (runtime.Goexit)"}}
		defer func() { done <- ended }()
		defer func() {
			if value := recover(); value != nil {
				ended = failed(&panicError{text: panicText(value), stack: string(debug.Stack())})
			}
		}()
		ctx := context.WithValue(x.ctx, tracerKey{}, attempt.Tracer)
		reward, err := function(ctx, attempt)
		if err == nil && reward != nil && x.stopped() == nil {
			err = emitRewards(x.ctx, attempt.Tracer, NamedReward{primaryReward, *reward})
		}
		if err != nil {
			ended = failed(err)
		} else {
			ended = outcome{reward: reward}
		}
	}()
	select {
	case ended := <-done:
		return ended
	case <-x.abandoned:
		return outcome{} // it was stopped, which is what is reported
	}
}

// outcome is the result of an attempt. Without a failure, the attempt succeeded.
type outcome struct {
	failure *pb.Failure
	// reward that the function returned, if any.
	reward *float64
	// stack trace of a panic, for the log.
	stack string
}

func failed(err error) outcome {
	ended := outcome{failure: failureOf(err)}
	for _, one := range chain(err) {
		if paniced, is := one.(*panicError); is {
			ended.stack = paniced.stack
		}
	}
	return ended
}

// run runs the function and returns its outcome.
func (x *execution) run(function agentFunc, attempt Attempt) outcome {
	if why := x.stopped(); why != nil {
		return stoppedOutcome(why)
	}
	ended := x.call(function, attempt)
	x.returned.Store(true)
	if x.onReturn != nil {
		x.onReturn() // the finish that the report causes is not worth watching
	}
	if why := x.stopped(); why != nil {
		return stoppedOutcome(why) // whatever it returned does not count
	}
	return ended
}

func stoppedOutcome(why *StopError) outcome {
	return outcome{failure: &pb.Failure{Type: "Cancelled", Message: why.Error()}}
}
