package lightningstore

import (
	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"go.opentelemetry.io/otel/trace"
)

// Task is the argument of a Runner's function. I is the type of the input: any type that encoding/json can
// decode into, or json.RawMessage for the original bytes.
type Task[I any] struct {
	Attempt
	// Input of the rollout.
	Input I
}

// Attempt is the attempt that a Runner's function works on.
type Attempt struct {
	// Rollout as claimed, with the attempt as its LatestAttempt.
	Rollout *pb.Rollout
	// Resources by name. A ProxyLLM is an LLM with the URL of this attempt.
	Resources Resources
	// Tracer for spans of this attempt.
	Tracer trace.Tracer
	// WorkerID is the id of the runner.
	WorkerID string
}

// RolloutID returns the id of the rollout.
func (a *Attempt) RolloutID() string { return a.Rollout.GetRolloutId() }

// AttemptID returns the id of the attempt.
func (a *Attempt) AttemptID() string { return a.Rollout.GetLatestAttempt().GetAttemptId() }

// SequenceNumber returns the position of the attempt among those of the rollout, counted from 1.
func (a *Attempt) SequenceNumber() int { return int(a.Rollout.GetLatestAttempt().GetSequenceNumber()) }

// StopError is the cause (context.Cause) of a cancelled function's context. The attempt is not reported as
// succeeded, whatever the function returns.
type StopError struct {
	// Reason from the server. Unspecified: the runner itself is stopping.
	Reason pb.StopReason
}

// Error returns the reason for people.
func (e *StopError) Error() string {
	switch e.Reason {
	case pb.StopReason_STOP_REASON_UNSPECIFIED:
		return "the runner is stopping"
	case pb.StopReason_STOP_REASON_ROLLOUT_CANCELLED:
		return "the rollout was cancelled"
	case pb.StopReason_STOP_REASON_ROLLOUT_FINISHED:
		return "the rollout has finished"
	case pb.StopReason_STOP_REASON_SUPERSEDED:
		return "a newer attempt has replaced this one"
	case pb.StopReason_STOP_REASON_UNKNOWN_ATTEMPT:
		return "the server has no such attempt"
	}
	return "stopped by the server: " + e.Reason.String()
}

// NonRetryableError marks a failure that another attempt cannot avoid: the rollout fails at once, regardless
// of its retry condition.
type NonRetryableError struct {
	// Err is the failure.
	Err error
}

// Error returns the message of the failure.
func (e *NonRetryableError) Error() string { return e.Err.Error() }

// Unwrap returns the failure.
func (e *NonRetryableError) Unwrap() error { return e.Err }

// NonRetryable wraps an error in a NonRetryableError. It returns nil for nil.
func NonRetryable(err error) error {
	if err == nil {
		return nil
	}
	return &NonRetryableError{Err: err}
}
