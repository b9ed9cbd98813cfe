package lightningstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Error tells why a call failed. It has changed nothing, unless the code is Unavailable, DeadlineExceeded,
// Canceled or Internal, which leave that open.
//
// It is found with errors.As. With errors.Is it matches an *Error of the same Code and, if that one names a
// Reason, the same Reason; and context.Canceled or context.DeadlineExceeded where the caller's context ended
// the call. status.Code and status.FromError of gRPC understand it too.
type Error struct {
	// Code is gRPC's status code.
	Code codes.Code
	// Reason is the name of an ErrorReason, "ERROR_REASON_ROLLOUT_NOT_FOUND" for instance. Empty if the
	// server, or what stands before it, gave none.
	Reason string
	// Domain of the reason, "lightningstore".
	Domain string
	// Message is for people.
	Message string
	// Metadata holds what the message names, for machines; keys in lowerCamelCase.
	Metadata map[string]string
	// Fields are those of the request that have a value which they cannot have.
	Fields []FieldViolation
	// RetryDelay is how long to wait before trying again. Nil: the server did not say that it would help.
	RetryDelay *time.Duration

	status *status.Status
	cause  error
}

// FieldViolation is a field with a value that it cannot have.
type FieldViolation struct {
	// Field is its path in the request, "items[3].config.max_attempts" for instance.
	Field string
	// Description says what would be right.
	Description string
}

// What errors.Is asks for most.
var (
	// ErrNotFound matches every error about an unknown rollout, attempt, resources, worker or group.
	ErrNotFound = &Error{Code: codes.NotFound}
	// ErrAlreadyExists matches errors about an id that is taken by other content.
	ErrAlreadyExists = &Error{Code: codes.AlreadyExists}
	// ErrFailedPrecondition matches errors about a state that does not allow the call.
	ErrFailedPrecondition = &Error{Code: codes.FailedPrecondition}
	// ErrUnavailable matches errors about a server that is away or goes down.
	ErrUnavailable = &Error{Code: codes.Unavailable}
)

// Error returns the message with its code, and its reason if there is one.
func (e *Error) Error() string {
	if e.Reason == "" {
		return fmt.Sprintf("lightningstore: %s: %s", e.Code, e.Message)
	}
	return fmt.Sprintf("lightningstore: %s (%s): %s", e.Code, e.Reason, e.Message)
}

// Is tells whether target is an *Error of the same code and, if it names one, the same reason.
func (e *Error) Is(target error) bool {
	wanted, ok := target.(*Error)
	return ok && wanted.Code == e.Code && (wanted.Reason == "" || wanted.Reason == e.Reason)
}

// Unwrap returns the end of the caller's context if that is what ended the call.
func (e *Error) Unwrap() error { return e.cause }

// GRPCStatus returns the status of gRPC, for status.Code and the like.
func (e *Error) GRPCStatus() *status.Status {
	if e.status == nil {
		return status.New(e.Code, e.Message)
	}
	return e.status
}

// convert makes an *Error of what a call of gRPC returned. ctx is the call's.
func convert(ctx context.Context, err error) error {
	var known *Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	from, ok := status.FromError(err)
	if !ok {
		return err // io.EOF at the end of a stream, for instance
	}
	if local := localError(from); local != nil {
		return local
	}
	if code := codeOf(ctx, from); code != from.Code() {
		from = status.New(code, from.Message())
	}
	found := &Error{Code: from.Code(), Message: from.Message(), status: from}
	switch found.Code {
	case codes.Canceled:
		found.cause = ctx.Err()
	case codes.DeadlineExceeded: // the server may notice it before the context does
		found.cause = context.DeadlineExceeded
	}
	for _, detail := range from.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			found.Reason, found.Domain = detail.GetReason(), detail.GetDomain()
			found.Metadata = maps.Clone(detail.GetMetadata())
		case *errdetails.RetryInfo:
			delay := detail.GetRetryDelay().AsDuration()
			found.RetryDelay = &delay
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				found.Fields = append(found.Fields,
					FieldViolation{Field: violation.GetField(), Description: violation.GetDescription()})
			}
		}
	}
	return found
}

// localError returns what gRPC itself refused to send or to take, in words that say what would be right; nil for
// any other status.
func localError(from *status.Status) error {
	message := from.Message()
	switch {
	case len(from.Details()) > 0: // the server's
	case from.Code() == codes.Internal:
		if _, field, found := strings.Cut(message, notUTF8); found {
			const rule = "must be valid UTF-8: it names something, so nothing in it is replaced"
			return &Error{Code: codes.InvalidArgument, Message: field + " " + rule,
				Fields: []FieldViolation{{Field: field, Description: rule}}}
		}
	case from.Code() != codes.ResourceExhausted:
	case strings.Contains(message, "trying to send message larger than max"):
		return &Error{Code: codes.ResourceExhausted, Message: message +
			": the request does not fit into one message; nothing was sent, so give the call fewer or smaller items"}
	case strings.Contains(strings.ToLower(message), "message larger than max"):
		return &Error{Code: codes.ResourceExhausted, Message: message +
			": the answer does not fit into one message; a write has taken place all the same, so read what it " +
			"changed page by page, and give such a call fewer items"}
	}
	return nil
}

// codeOf returns a status' code, but Unavailable for what gRPC makes of a call whose connection broke, or whose
// server goes down. Every error of the server itself has details.
func codeOf(ctx context.Context, from *status.Status) codes.Code {
	code, message := from.Code(), from.Message()
	if len(from.Details()) > 0 {
		return code
	}
	switch code {
	case codes.Canceled:
		if ctx.Err() == nil && !strings.Contains(message, "client connection is closing") {
			return codes.Unavailable
		}
	case codes.Internal, codes.Unknown, codes.ResourceExhausted:
		if strings.Contains(message, "RST_STREAM") ||
			message == "unexpected EOF" || // within a message
			strings.Contains(message, "without sending trailers") ||
			message == "" { // trailers without a status
			return codes.Unavailable
		}
	}
	return code
}

// mends tells whether waiting may help.
func mends(err error) bool {
	var found *Error
	if !errors.As(err, &found) {
		return errors.Is(err, context.DeadlineExceeded)
	}
	return found.Code == codes.Unavailable || found.Code == codes.DeadlineExceeded || found.RetryDelay != nil
}

// orEnded returns the failure, which is also one of ctx if that has ended.
func orEnded(ctx context.Context, failure error) error {
	if ended := ctx.Err(); ended != nil && !errors.Is(failure, ended) {
		return fmt.Errorf("%w: %w", ended, failure)
	}
	return failure
}

// retryDelay returns how long the server wants to be left alone, at least.
func retryDelay(err error) time.Duration {
	var found *Error
	if errors.As(err, &found) && found.RetryDelay != nil {
		return *found.RetryDelay
	}
	return 0
}
