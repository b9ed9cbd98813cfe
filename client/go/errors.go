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

// Error is the failure of a call. The call has changed nothing, unless the code is Unavailable,
// DeadlineExceeded, Canceled or Internal: then it may or may not have taken effect.
//
// Use errors.As to get it. With errors.Is it matches an *Error of the same Code and, if the target names a
// Reason, the same Reason. It also matches context.Canceled or context.DeadlineExceeded if the caller's
// context ended the call. gRPC's status.Code and status.FromError understand it.
type Error struct {
	// Code is gRPC's status code.
	Code codes.Code
	// Reason is the name of an ErrorReason, for example "ERROR_REASON_ROLLOUT_NOT_FOUND". Empty if the server,
	// or a proxy in front of it, sent none.
	Reason string
	// Domain of the reason, "lightningstore".
	Domain string
	// Message is a description for people.
	Message string
	// Metadata holds the values that the message names, for programs. Keys are in lowerCamelCase.
	Metadata map[string]string
	// Fields are the fields of the request with an invalid value.
	Fields []FieldViolation
	// RetryDelay is the minimum time before a retry. Nil if the server did not request one.
	RetryDelay *time.Duration

	status *status.Status
	cause  error
}

// FieldViolation is a field with an invalid value.
type FieldViolation struct {
	// Field is its path in the request, for example "items[3].config.max_attempts".
	Field string
	// Description says which values are valid.
	Description string
}

// Targets for errors.Is.
var (
	// ErrNotFound matches errors about an unknown rollout, attempt, resources, worker, group or consumer.
	ErrNotFound = &Error{Code: codes.NotFound}
	// ErrAlreadyExists matches errors about an id that exists with other content.
	ErrAlreadyExists = &Error{Code: codes.AlreadyExists}
	// ErrFailedPrecondition matches errors about a state that does not allow the call.
	ErrFailedPrecondition = &Error{Code: codes.FailedPrecondition}
	// ErrUnavailable matches errors about a server that is unreachable or shutting down.
	ErrUnavailable = &Error{Code: codes.Unavailable}
)

// Error returns the message with its code, and its reason if there is one.
func (e *Error) Error() string {
	if e.Reason == "" {
		return fmt.Sprintf("lightningstore: %s: %s", e.Code, e.Message)
	}
	return fmt.Sprintf("lightningstore: %s (%s): %s", e.Code, e.Reason, e.Message)
}

// Is reports whether target is an *Error of the same code and, if target names a reason, the same reason.
func (e *Error) Is(target error) bool {
	wanted, ok := target.(*Error)
	return ok && wanted.Code == e.Code && (wanted.Reason == "" || wanted.Reason == e.Reason)
}

// Unwrap returns the error of the caller's context if that ended the call.
func (e *Error) Unwrap() error { return e.cause }

// GRPCStatus returns the gRPC status, for functions such as status.Code.
func (e *Error) GRPCStatus() *status.Status {
	if e.status == nil {
		return status.New(e.Code, e.Message)
	}
	return e.status
}

// convert returns an *Error for the error of a gRPC call. ctx is the context of the call.
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

// localError describes an error that gRPC itself raised for a message it could not send or receive, and says
// what would be right. It returns nil for any other status.
func localError(from *status.Status) error {
	message := from.Message()
	switch {
	case len(from.Details()) > 0: // the server's
	case from.Code() == codes.Internal:
		if _, field, found := strings.Cut(message, notUTF8); found {
			const rule = "must be valid UTF-8, because it names something and is not repaired"
			return &Error{Code: codes.InvalidArgument, Message: field + " " + rule,
				Fields: []FieldViolation{{Field: field, Description: rule}}}
		}
	case from.Code() != codes.ResourceExhausted:
	case strings.Contains(message, "trying to send message larger than max"):
		return &Error{Code: codes.ResourceExhausted, Message: message +
			": the request does not fit into one message and was not sent; send fewer or smaller items"}
	case strings.Contains(strings.ToLower(message), "message larger than max"):
		return &Error{Code: codes.ResourceExhausted, Message: message +
			": the response does not fit into one message, but a write has taken effect; read the changed records " +
			"in pages, and send fewer items in such a call"}
	}
	return nil
}

// codeOf returns the code of a status. It returns Unavailable for the codes that gRPC reports when the
// connection broke or the server is shutting down. Errors of the server itself always have details.
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

// isRetryable reports whether a retry may succeed.
func isRetryable(err error) bool {
	var found *Error
	if !errors.As(err, &found) {
		return errors.Is(err, context.DeadlineExceeded)
	}
	return found.Code == codes.Unavailable || found.Code == codes.DeadlineExceeded || found.RetryDelay != nil
}

// orEnded returns the failure, joined with the error of ctx if ctx has ended.
func orEnded(ctx context.Context, failure error) error {
	if ended := ctx.Err(); ended != nil && !errors.Is(failure, ended) {
		return fmt.Errorf("%w: %w", ended, failure)
	}
	return failure
}

// retryDelay returns the minimum delay before a retry that the server requested.
func retryDelay(err error) time.Duration {
	var found *Error
	if errors.As(err, &found) && found.RetryDelay != nil {
		return *found.RetryDelay
	}
	return 0
}
