package lightningstore

import (
	"context"
	"errors"
	"runtime/debug"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"go.opentelemetry.io/otel/trace"
)

// execution is a function at work on an attempt.
type execution struct {
	rollout *pb.Rollout
	key     attemptKey
	ctx     context.Context
	cancel  context.CancelCauseFunc
	// abandoned is closed when the function is waited for no more.
	abandoned chan struct{}
}

// newExecution takes a claim. The function's context has the values of parent, but ends by itself.
func newExecution(parent context.Context, rollout *pb.Rollout) *execution {
	// A span of the program around the runner is no parent: the store does not have it.
	parent = trace.ContextWithSpanContext(context.WithoutCancel(parent), trace.SpanContext{})
	ctx, cancel := context.WithCancelCause(parent)
	return &execution{rollout: rollout, key: keyOf(rollout), ctx: ctx, cancel: cancel, abandoned: make(chan struct{})}
}

func keyOf(rollout *pb.Rollout) attemptKey {
	return attemptKey{rollout.GetRolloutId(), rollout.GetLatestAttempt().GetAttemptId()}
}

// stopped returns why the attempt is to stop; nil while it goes on.
func (x *execution) stopped() *StopError {
	var why *StopError
	errors.As(context.Cause(x.ctx), &why)
	return why
}

// call runs the function in a goroutine of its own and says how it ended. What describes the end runs there
// too, for the methods of an error or of a panic's value are code of the function's: they may panic, end the
// goroutine, or never return.
func (x *execution) call(function agentFunc, attempt Attempt) outcome {
	done := make(chan outcome, 1)
	go func() {
		// Stays if the goroutine is ended from within, by runtime.Goexit.
		ended := outcome{failure: &pb.Failure{Type: "panic", Message: "the function ended its goroutine"}}
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
			ended = outcome{}
		}
	}()
	select {
	case ended := <-done:
		return ended
	case <-x.abandoned:
		return outcome{} // it was stopped, which is what is reported
	}
}

// outcome is how an attempt ended. Without a failure: well.
type outcome struct {
	failure *pb.Failure
	// stack of a panic, for the log.
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

// run runs the function and says how it ended.
func (x *execution) run(function agentFunc, attempt Attempt) outcome {
	if why := x.stopped(); why != nil {
		return stoppedOutcome(why)
	}
	ended := x.call(function, attempt)
	if why := x.stopped(); why != nil {
		return stoppedOutcome(why) // whatever it returned does not count
	}
	return ended
}

func stoppedOutcome(why *StopError) outcome {
	return outcome{failure: &pb.Failure{Type: "Cancelled", Message: why.Error()}}
}
