package lightningstore

import (
	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"go.opentelemetry.io/otel/trace"
)

// Task is what a Runner's function works on. I is the type of the input: whatever encoding/json can decode it
// into, json.RawMessage for the bytes as they were given.
type Task[I any] struct {
	Attempt
	// Input of the rollout.
	Input I
}

// Attempt is what a Runner's function knows of the attempt that it works on.
type Attempt struct {
	// Rollout as it was claimed, with the attempt as its LatestAttempt.
	Rollout *pb.Rollout
	// Resources by name; a ProxyLLM comes as the LLM that is routed to this attempt.
	Resources Resources
	// Tracer whose spans are filed under this attempt.
	Tracer trace.Tracer
	// WorkerID of the runner.
	WorkerID string
}

// RolloutID returns the id of the rollout.
func (a *Attempt) RolloutID() string { return a.Rollout.GetRolloutId() }

// AttemptID returns the id of the attempt.
func (a *Attempt) AttemptID() string { return a.Rollout.GetLatestAttempt().GetAttemptId() }

// SequenceNumber counts the attempts at the rollout, from 1.
func (a *Attempt) SequenceNumber() int { return int(a.Rollout.GetLatestAttempt().GetSequenceNumber()) }

// StopError is the cause (context.Cause) of the end of a function's context where the attempt is to stop.
// Whatever the function then returns, the attempt is not reported as succeeded.
type StopError struct {
	// Reason that the server gave. Unspecified: it is the runner that stops.
	Reason pb.StopReason
}

// Error says why, for people.
func (e *StopError) Error() string {
	switch e.Reason {
	case pb.StopReason_STOP_REASON_UNSPECIFIED:
		return "the runner stops"
	case pb.StopReason_STOP_REASON_ROLLOUT_CANCELLED:
		return "the rollout was cancelled"
	case pb.StopReason_STOP_REASON_ROLLOUT_FINISHED:
		return "the rollout has finished"
	case pb.StopReason_STOP_REASON_SUPERSEDED:
		return "a newer attempt has taken over"
	case pb.StopReason_STOP_REASON_UNKNOWN_ATTEMPT:
		return "the server knows no such attempt"
	}
	return "the server stops it: " + e.Reason.String()
}

// NonRetryableError marks a failure that another attempt would not do better: the rollout fails at once,
// whatever its retry condition.
type NonRetryableError struct {
	// Err is the failure.
	Err error
}

// Error returns the message of the failure.
func (e *NonRetryableError) Error() string { return e.Err.Error() }

// Unwrap returns the failure.
func (e *NonRetryableError) Unwrap() error { return e.Err }

// NonRetryable marks an error that a Runner's function returns as a NonRetryableError. Nil stays nil.
func NonRetryable(err error) error {
	if err == nil {
		return nil
	}
	return &NonRetryableError{Err: err}
}
