package lightningstore

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

const (
	// Maximum size in bytes of a failure's type and message.
	maxFailureType    = 256
	maxFailureMessage = 16_384
	// Maximum number of errors of a chain that are examined, because a chain may lead back to itself.
	maxCauses = 100
	// Maximum number of parts of a panic's value that are printed. Printing a value that contains itself would
	// overflow the stack and end the program.
	maxPanicParts = 1_000
)

// panicError is a panic of the user's function.
type panicError struct {
	text  string
	stack string
}

func (e *panicError) Error() string { return e.text }

// failureOf describes an error. The methods of the error are user code and may panic.
func failureOf(err error) *pb.Failure {
	failure := &pb.Failure{
		Type:    cutText(typeOf(err), maxFailureType),
		Message: cutText(messageOf(err), maxFailureMessage),
	}
	if isFinal(err) {
		failure.Retryable = proto.Bool(false)
	}
	return failure
}

// messageOf returns the text of an error, or its type if the text is empty or cannot be read.
func messageOf(err error) (message string) {
	defer func() {
		if value := recover(); value != nil {
			message = fmt.Sprintf("%T: its Error method panicked: %s", err, panicText(value))
		} else if message == "" {
			message = fmt.Sprintf("%T", err)
		}
	}()
	return err.Error()
}

// panicText returns the value of a panic as text, or only its type if it has too many parts.
func panicText(value any) string {
	switch value.(type) {
	case error, fmt.Stringer: // fmt survives methods that panic
		return fmt.Sprint(value)
	}
	parts := maxPanicParts
	if !hasFewer(&parts, reflect.ValueOf(value)) {
		return fmt.Sprintf("%T", value)
	}
	return fmt.Sprint(value)
}

// hasFewer reports whether a value has fewer parts than left, and subtracts them.
func hasFewer(left *int, value reflect.Value) bool {
	if *left--; *left < 0 {
		return false
	}
	switch value.Kind() {
	case reflect.Pointer, reflect.Interface:
		return value.IsNil() || hasFewer(left, value.Elem())
	case reflect.Slice, reflect.Array:
		for i := range value.Len() {
			if !hasFewer(left, value.Index(i)) {
				return false
			}
		}
	case reflect.Map:
		for entries := value.MapRange(); entries.Next(); {
			if !hasFewer(left, entries.Key()) || !hasFewer(left, entries.Value()) {
				return false
			}
		}
	case reflect.Struct:
		for i := range value.NumField() {
			if !hasFewer(left, value.Field(i)) {
				return false
			}
		}
	}
	return true
}

// typeOf returns the most specific type of an error, ignoring errors that only wrap another one.
func typeOf(err error) string {
	for _, one := range chain(err) {
		switch one.(type) {
		case *panicError:
			return "panic"
		case *NonRetryableError: // its Err is what counts
		default:
			if name := fmt.Sprintf("%T", one); name != "*fmt.wrapError" {
				return name
			}
		}
	}
	return fmt.Sprintf("%T", err)
}

// isFinal reports whether an error, or one that it wraps, is marked by NonRetryable.
func isFinal(err error) bool {
	return slices.ContainsFunc(chain(err), func(one error) bool {
		_, is := one.(*NonRetryableError)
		return is || claimsToBeFinal(one)
	})
}

// claimsToBeFinal calls the error's As method, as errors.As does.
func claimsToBeFinal(err error) (is bool) {
	defer func() { is = recover() == nil && is }()
	var marked *NonRetryableError
	custom, has := err.(interface{ As(any) bool })
	return has && custom.As(&marked)
}

// chain returns an error and those that it wraps, in the order of errors.As, up to maxCauses.
func chain(err error) []error {
	var found []error
	for pending := []error{err}; len(pending) > 0 && len(found) < maxCauses; {
		last := len(pending) - 1
		next := pending[last]
		pending = pending[:last]
		if next != nil {
			found = append(found, next)
			inner := unwrap(next)
			slices.Reverse(inner) // the first of them is to come next
			pending = append(pending, inner...)
		}
	}
	return found
}

func unwrap(err error) (inner []error) {
	defer func() {
		if recover() != nil {
			inner = nil
		}
	}()
	switch err := err.(type) {
	case interface{ Unwrap() error }:
		return []error{err.Unwrap()}
	case interface{ Unwrap() []error }:
		return slices.Clone(err.Unwrap())
	}
	return nil
}

// isRefused reports whether the server rejects a request permanently.
func isRefused(err error) bool {
	var found *Error
	if !errors.As(err, &found) {
		return false
	}
	return found.Code == codes.InvalidArgument || found.Code == codes.ResourceExhausted && found.RetryDelay == nil
}

// isUnknownPath reports whether the server does not know a field of an update.
func isUnknownPath(err error) bool {
	var found *Error
	return errors.As(err, &found) && found.Code == codes.InvalidArgument &&
		slices.ContainsFunc(found.Fields, func(field FieldViolation) bool {
			return strings.HasPrefix(field.Field, "update_mask")
		})
}

// refusedFailure replaces an outcome that the server rejected, so that the attempt still ends. Of the
// original failure it keeps only whether it is retryable.
func refusedFailure(refusal error, refused *pb.Failure) *pb.Failure {
	failure := &pb.Failure{
		Type:    "ReportRefused",
		Message: cutText("the server rejected the report of the outcome: "+refusal.Error(), 1_024),
	}
	if refused != nil {
		failure.Retryable = refused.Retryable
	}
	return failure
}
