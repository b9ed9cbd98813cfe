package lightningstore

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"
)

// Bytes of a failure's message that are kept.
const longestMessage = 16_384

// errAbandoned ends the wait for a function that does not end though cancelled.
var errAbandoned = errors.New("left behind")

// panicError is a panic of the user's function.
type panicError struct {
	value any
	stack string
}

func (e *panicError) Error() string { return fmt.Sprint(e.value) }

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

// call runs the function in a goroutine of its own and returns what it returns; a panic as an error.
func (x *execution) call(function agentFunc, attempt Attempt) (*float64, error) {
	type result struct {
		reward *float64
		err    error
	}
	done := make(chan result, 1)
	go func() {
		// Stays if the goroutine is ended from within, by runtime.Goexit.
		ended := result{err: &panicError{value: "the function ended its goroutine"}}
		defer func() {
			if value := recover(); value != nil {
				ended = result{err: &panicError{value: value, stack: string(debug.Stack())}}
			}
			done <- ended
		}()
		ctx := context.WithValue(x.ctx, tracerKey{}, attempt.Tracer)
		reward, err := function(ctx, attempt)
		ended = result{reward, err}
	}()
	select {
	case ended := <-done:
		return ended.reward, ended.err
	case <-x.abandoned:
		return nil, errAbandoned
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
	var paniced *panicError
	if errors.As(err, &paniced) {
		ended.stack = paniced.stack
	}
	return ended
}

// run runs the function and says how it ended.
func (x *execution) run(function agentFunc, attempt Attempt) outcome {
	if why := x.stopped(); why != nil {
		return stoppedOutcome(why)
	}
	reward, err := x.call(function, attempt)
	if why := x.stopped(); why != nil {
		return stoppedOutcome(why) // whatever it returned: its word counts no more
	}
	if err != nil {
		return failed(err)
	}
	if reward != nil {
		if err := emitRewards(x.ctx, attempt.Tracer, NamedReward{primaryReward, *reward}); err != nil {
			return failed(err)
		}
	}
	return outcome{}
}

func stoppedOutcome(why *StopError) outcome {
	return outcome{failure: &pb.Failure{Type: "Cancelled", Message: why.Error()}}
}

func failureOf(err error) *pb.Failure {
	message := err.Error()
	if message == "" {
		message = fmt.Sprintf("%T", err)
	}
	failure := &pb.Failure{Type: typeOf(err), Message: shorten(strings.ToValidUTF8(message, "\uFFFD"))}
	if !isRetryable(err) {
		failure.Retryable = proto.Bool(false)
	}
	return failure
}

// shorten cuts a message to what is kept, at the boundary of a character.
func shorten(message string) string {
	if len(message) <= longestMessage {
		return message
	}
	return strings.ToValidUTF8(message[:longestMessage], "")
}

// typeOf returns the type of an error that says most: not what only wraps another one.
func typeOf(err error) string {
	for {
		inner := errors.Unwrap(err)
		switch err.(type) {
		case *panicError:
			return "panic"
		case *NonRetryableError: // its Err is what counts
		default:
			if name := fmt.Sprintf("%T", err); name != "*fmt.wrapError" {
				return name
			}
		}
		err = inner
	}
}
