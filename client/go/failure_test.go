package lightningstore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"unicode/utf8"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

type nilError struct{ text string }

func (e *nilError) Error() string { return e.text } // panics for a nil pointer in the interface

type panickingError struct{ value any }

func (e panickingError) Error() string { panic(e.value) }

type exitingError struct{}

func (exitingError) Error() string { runtime.Goexit(); return "" }

// endlessError wraps itself.
type endlessError struct{}

func (e endlessError) Error() string { return "endless" }
func (e endlessError) Unwrap() error { return e }

type panickingChain struct{}

func (panickingChain) Error() string { return "broken chain" }
func (panickingChain) Unwrap() error { panic("no cause") }
func (panickingChain) As(any) bool   { panic("no target") }

type branchingError struct{}

func (e branchingError) Error() string   { return "branching" }
func (e branchingError) Unwrap() []error { return []error{e, nil, e} }

func TestWhateverEndsTheFunctionIsReportedAsAFailure(t *testing.T) {
	returned := func(err error) Func[input] {
		return func(context.Context, *Task[input]) (*float64, error) { return nil, err }
	}
	paniced := func(value any) Func[input] {
		return func(context.Context, *Task[input]) (*float64, error) { panic(value) }
	}
	holdsItself := []any{nil}
	holdsItself[0] = holdsItself
	cases := map[string]struct {
		function      Func[input]
		kind, message string // of the message: a part
	}{
		"reward that is not a number": {func(context.Context, *Task[input]) (*float64, error) {
			return Reward(math.NaN()), nil
		}, "*", "must be a finite number, not NaN"},
		"infinite reward": {func(context.Context, *Task[input]) (*float64, error) {
			return Reward(math.Inf(-1)), nil
		}, "*", "must be a finite number, not -Inf"},
		"nil pointer as error":            {returned((*nilError)(nil)), "*lightningstore.nilError", "nil pointer"},
		"Error panics":                    {returned(panickingError{"help"}), "lightningstore.panickingError", "help"},
		"Error panics with itself":        {returned(panickingError{panickingError{nil}}), "lightningstore.panickingError", ""},
		"Error ends the goroutine":        {returned(exitingError{}), "panic", "ended its goroutine"},
		"marked, without an error":        {returned(&NonRetryableError{}), "*lightningstore.NonRetryableError", ""},
		"endless causes":                  {returned(endlessError{}), "lightningstore.endlessError", "endless"},
		"endless causes, marked":          {returned(NonRetryable(endlessError{})), "lightningstore.endlessError", "endless"},
		"endless wrapping":                {returned(fmt.Errorf("while: %w", endlessError{})), "lightningstore.endlessError", "while"},
		"branching causes":                {returned(branchingError{}), "lightningstore.branchingError", "branching"},
		"broken chain":                    {returned(panickingChain{}), "lightningstore.panickingChain", "broken chain"},
		"no UTF-8":                        {returned(errors.New("caf\xc3")), "*errors.errorString", "caf\ufffd"},
		"huge text":                       {returned(errors.New(strings.Repeat("é", 1<<20))), "*errors.errorString", "éééé"},
		"huge broken text":                {returned(errors.New(strings.Repeat("a\xff", 1<<20))), "*errors.errorString", "a\ufffda\ufffd"},
		"no text":                         {returned(errors.New("")), "*errors.errorString", "*errors.errorString"},
		"panic with nil":                  {paniced(nil), "panic", "nil"},
		"panic with an error":             {paniced(errors.New("help")), "panic", "help"},
		"panic, Error panics":             {paniced(panickingError{"help"}), "panic", "help"},
		"panic, Error ends the goroutine": {paniced(exitingError{}), "panic", "ended its goroutine"},
		"panic with no UTF-8":             {paniced("caf\xc3"), "panic", "caf\ufffd"},
		"panic with a huge text":          {paniced(strings.Repeat("x", 1<<24)), "panic", "xxxx"},
		"panic with what holds itself":    {paniced(holdsItself), "panic", "[]interface {}"},
		"panic with a channel":            {paniced(make(chan int)), "panic", "0x"},
		"panic with a struct":             {paniced(struct{ A int }{7}), "panic", "{7}"},
		"runtime error": {func(_ context.Context, task *Task[input]) (*float64, error) {
			return nil, []error{}[task.SequenceNumber()]
		}, "panic", "index out of range"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			server := &scripted{}
			start(t, NewRunner(serve(t, server), c.function, &RunnerOptions{MaxRollouts: 1}))
			server.queue <- claimOf("ro-1", "1")
			attempt := next(t, server.updates, "the outcome").GetAttempt()
			failure := attempt.GetFailure()
			if attempt.GetStatus() != pb.AttemptStatus_ATTEMPT_STATUS_FAILED ||
				!strings.Contains(failure.GetType(), c.kind) && c.kind != "*" ||
				!strings.Contains(failure.GetMessage(), c.message) {
				t.Fatalf("%.500s", attempt.String())
			}
			size := len(failure.GetMessage())
			if size == 0 || size > maxFailureMessage || !utf8.ValidString(failure.GetMessage()) {
				t.Fatalf("a message of %d bytes", size)
			}
		})
	}
}

func TestRefusedReportIsRepeatedOnceAsAPlainFailure(t *testing.T) {
	refusals := map[string]error{
		"invalid": status.Error(codes.InvalidArgument, "attempt.failure.message: no"),
		"large":   status.Error(codes.ResourceExhausted, "attempt.failure.message: too large"),
	}
	functions := map[string]Func[input]{
		"failed":    func(context.Context, *Task[input]) (*float64, error) { return nil, NonRetryable(errors.New("help")) },
		"succeeded": func(context.Context, *Task[input]) (*float64, error) { return nil, nil },
	}
	for kind, refusal := range refusals {
		for end, function := range functions {
			t.Run(kind+" "+end, func(t *testing.T) {
				server := &scripted{}
				tries := atomic.Int32{}
				ids := make(chan string, 10)
				server.onUpdate = func(request *pb.UpdateAttemptRequest) (*pb.UpdateAttemptResponse, error) {
					ids <- request.GetRequestId()
					if tries.Add(1) == 1 {
						return nil, refusal
					}
					return nil, nil
				}
				start(t, NewRunner(serve(t, server), function, &RunnerOptions{MaxRollouts: 1}))
				server.queue <- claimOf("ro-1", "1")
				attempt := next(t, server.updates, "the outcome").GetAttempt()
				if attempt.GetStatus() != pb.AttemptStatus_ATTEMPT_STATUS_FAILED ||
					attempt.GetFailure().GetType() != "ReportRefused" ||
					!strings.Contains(attempt.GetFailure().GetMessage(), "attempt.failure.message") {
					t.Fatal(attempt)
				}
				if isFinal := attempt.GetFailure().Retryable != nil; isFinal != (end == "failed") {
					t.Fatal(attempt)
				}
				if next(t, ids, "a report") == next(t, ids, "another report") {
					t.Fatal("another content under the same request id")
				}
			})
		}
	}
}

func TestReportThatIsRefusedAgainEndsTheWork(t *testing.T) {
	server := &scripted{}
	tries := atomic.Int32{}
	server.onUpdate = func(*pb.UpdateAttemptRequest) (*pb.UpdateAttemptResponse, error) {
		tries.Add(1)
		return nil, status.Error(codes.InvalidArgument, "no")
	}
	ended := start(t, NewRunner(serve(t, server), func(context.Context, *Task[input]) (*float64, error) {
		return nil, nil
	}, &RunnerOptions{MaxRollouts: 1}))
	server.queue <- claimOf("ro-1", "1")
	if err := next(t, ended, "the end"); err != nil || tries.Load() != 2 {
		t.Fatal(err, tries.Load())
	}
}
