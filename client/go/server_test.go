package lightningstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// serverProgram returns the server to test with: LIGHTNINGSTORE_SERVER, else the checkout's.
func serverProgram(t *testing.T) string {
	t.Helper()
	if program := os.Getenv("LIGHTNINGSTORE_SERVER"); program != "" {
		return program
	}
	program, err := filepath.Abs("../../.venv/bin/lightningstore")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("no server: %v; make one with `make .venv/stamp`, or name one by LIGHTNINGSTORE_SERVER", err)
	}
	return program
}

var addressPattern = regexp.MustCompile(`127\.0\.0\.1:\d+`)

// startServer starts a real server and returns it with its address once it listens. The server is killed at
// the end of the test. It serves no HTTP, because it then starts in half the time.
func startServer(t *testing.T, arguments ...string) (*exec.Cmd, string) {
	t.Helper()
	server := exec.Command(serverProgram(t), append([]string{"serve", "--http-port", "0"}, arguments...)...)
	server.Dir = t.TempDir()
	server.Stderr = os.Stderr
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(server) })
	lines := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n')
		lines <- line
	}()
	address := addressPattern.FindString(next(t, lines, "the server"))
	if address == "" {
		t.Fatal("the server did not start")
	}
	return server, address
}

func kill(server *exec.Cmd) {
	_ = server.Process.Signal(syscall.SIGKILL) // it may have ended already
	_ = server.Wait()
}

type question struct {
	Question int64 `json:"question"`
}

func TestHappyPath(t *testing.T) {
	_, address := startServer(t, "--port", "0", "--backend", "memory")
	client := connect(t, address)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	weights, err := NewCustom("weights", []float64{0.5})
	if err != nil {
		t.Fatal(err)
	}
	resources := Resources{"llm": NewProxyLLM("http://h/v1", "m"), "weights": weights}
	if _, err := client.AddResources(ctx, resources); err != nil {
		t.Fatal(err)
	}
	const large = int64(9007199254740993) // no float64 holds it
	rollouts, err := client.Enqueue(ctx, RolloutSpec{Input: question{large}, GroupID: "g"},
		RolloutSpec{Input: question{1}, GroupID: "g", Metadata: map[string]any{"by": "test"}})
	if err != nil {
		t.Fatal(err)
	}
	changed, err := client.Update(ctx, &pb.UpdateRolloutRequest{
		Rollout: &pb.Rollout{RolloutId: rollouts[1].GetRolloutId(), Priority: 7}})
	if err != nil || changed.GetPriority() != 7 || string(changed.GetMetadataJson()) != `{"by":"test"}` {
		t.Fatal(changed, err)
	}
	start(t, NewRunner(client, func(ctx context.Context, task *Task[question]) (*float64, error) {
		var values []float64
		if err := task.Resources.Custom("weights", &values); err != nil {
			return nil, err
		}
		want := fmt.Sprintf("http://h/rollout/%s/attempt/%s/v1", task.RolloutID(), task.AttemptID())
		if got := task.Resources.LLM("llm").GetEndpoint(); got != want {
			return nil, fmt.Errorf("endpoint %s", got)
		}
		if task.Input.Question != large {
			return nil, NonRetryable(errors.New("only one is right"))
		}
		ctx, span := task.Tracer.Start(ctx, "think")
		EmitRewards(ctx, NamedReward{"speed", 2}, NamedReward{"care", 3})
		span.End()
		return Reward(values[0]), nil
	}, &RunnerOptions{Concurrency: 2}))
	outcomes := map[string]pb.RolloutStatus{}
	for rollout, err := range client.Wait(ctx, WaitOptions{GroupIDs: []string{"g"}}).All() {
		if err != nil {
			t.Fatal(err)
		}
		outcomes[rollout.GetRolloutId()] = rollout.GetStatus()
	}
	if outcomes[rollouts[0].GetRolloutId()] != pb.RolloutStatus_ROLLOUT_STATUS_SUCCEEDED ||
		outcomes[rollouts[1].GetRolloutId()] != pb.RolloutStatus_ROLLOUT_STATUS_FAILED {
		t.Fatal(outcomes)
	}
	checkSpans(ctx, t, client, rollouts[0].GetRolloutId())
	unknown := &Error{Code: codes.NotFound, Reason: "ERROR_REASON_ROLLOUT_NOT_FOUND"}
	if _, err := client.Rollout(ctx, "nobody"); !errors.Is(err, unknown) {
		t.Fatal(err)
	}
}

func checkSpans(ctx context.Context, t *testing.T, client *Client, rolloutID string) {
	t.Helper()
	var spans []*Span
	var names []string
	for span, err := range client.Spans(ctx, &pb.QuerySpansRequest{RolloutId: rolloutID}) {
		if err != nil {
			t.Fatal(err)
		}
		spans, names = append(spans, span), append(names, fmt.Sprint(span.SequenceID, span.GetName()))
	}
	if !slices.Equal(names, []string{"1" + annotation, "2think", "3" + annotation}) {
		t.Fatal(names)
	}
	if value, found := FindFinalReward(spans); !found || value != 0.5 {
		t.Fatal(value, found)
	}
	if value, found := FindFinalReward(spans[:2]); !found || value != 2 {
		t.Fatal(value, found)
	}
	if _, found := FindFinalReward(spans[1:2]); found {
		t.Fatal("a reward out of nothing")
	}
	if got := spans[0].Attribute("agentlightning.reward.1.name").GetStringValue(); got != "care" {
		t.Fatal(got)
	}
}

func TestCancelledRolloutIsNotSucceeded(t *testing.T) {
	_, address := startServer(t, "--port", "0", "--backend", "memory")
	client := connect(t, address)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	working := make(chan string, 1)
	runner := NewRunner(client, func(ctx context.Context, task *Task[any]) (*float64, error) {
		working <- task.AttemptID()
		<-ctx.Done()
		return Reward(1), nil
	}, &RunnerOptions{MaxRollouts: 1, HeartbeatPeriod: 100 * time.Millisecond})
	ended := start(t, runner)
	rollouts, err := client.Enqueue(ctx, RolloutSpec{Input: nil})
	if err != nil {
		t.Fatal(err)
	}
	attemptID := next(t, working, "the function")
	if _, err := client.Cancel(ctx, rollouts[0].GetRolloutId()); err != nil {
		t.Fatal(err)
	}
	if err := next(t, ended, "the end"); err != nil {
		t.Fatal(err)
	}
	rollout, err := client.Rollout(ctx, rollouts[0].GetRolloutId())
	if err != nil || rollout.GetLatestAttempt().GetAttemptId() != attemptID ||
		rollout.GetLatestAttempt().GetStatus() != pb.AttemptStatus_ATTEMPT_STATUS_FAILED ||
		rollout.GetStatus() != pb.RolloutStatus_ROLLOUT_STATUS_CANCELLED {
		t.Fatal(rollout, err)
	}
	answer, err := client.Delete(ctx, rollout.GetRolloutId(), "ro-unknown")
	if err != nil || len(answer.GetDeletedRolloutIds()) != 1 || len(answer.GetMissingRolloutIds()) != 1 {
		t.Fatal(answer, err)
	}
	if _, err := client.Rollout(ctx, rollout.GetRolloutId()); status.Code(err) != codes.NotFound {
		t.Fatal(err)
	}
}

// freePort returns a port for a server that has to come back at the same address: below those that systems
// give to outgoing connections, one of which might take it while the server is away.
func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		port := strconv.Itoa(20_000 + rand.IntN(12_000))
		listener, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = listener.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	panic("not reached")
}

func TestKilledServerCostsNothing(t *testing.T) {
	arguments := []string{"--port", freePort(t), "--backend", "sqlite", "--db", filepath.Join(t.TempDir(), "store.db")}
	server, address := startServer(t, arguments...)
	client := connect(t, address)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	const count = 12
	specs := make([]RolloutSpec, count)
	for i := range specs {
		specs[i] = RolloutSpec{Input: question{int64(i)}, GroupID: "g"}
	}
	if _, err := client.Enqueue(ctx, specs...); err != nil {
		t.Fatal(err)
	}
	working, done, goOn := make(chan struct{}, count), make(chan struct{}, count), make(chan struct{})
	start(t, NewRunner(client, func(ctx context.Context, task *Task[question]) (*float64, error) {
		step(ctx, task, "before")
		working <- struct{}{}
		<-goOn
		step(ctx, task, "after")
		done <- struct{}{}
		return Reward(float64(task.Input.Question)), nil
	}, &RunnerOptions{Concurrency: 4}))
	for range 4 {
		next(t, working, "the functions")
	}
	// Four work, their claims stored, their spans perhaps not.
	kill(server)
	close(goOn)
	for range 4 {
		next(t, done, "the functions' end") // while the server is away
	}
	startServer(t, arguments...)
	rewards := map[float64]bool{}
	for rollout, err := range client.Wait(ctx, WaitOptions{GroupIDs: []string{"g"}}).All() {
		if err != nil {
			t.Fatal(err)
		}
		if rollout.GetStatus() != pb.RolloutStatus_ROLLOUT_STATUS_SUCCEEDED || rollout.GetAttemptCount() != 1 {
			t.Fatal(rollout)
		}
		rewards[finalReward(ctx, t, client, rollout.GetRolloutId())] = true
	}
	if len(rewards) != count {
		t.Fatal(rewards)
	}
}

func step(ctx context.Context, task *Task[question], name string) {
	_, span := task.Tracer.Start(ctx, name)
	span.End()
}

// finalReward checks that the spans are there, each once.
func finalReward(ctx context.Context, t *testing.T, client *Client, rolloutID string) float64 {
	t.Helper()
	var spans []*Span
	var names []string
	for span, err := range client.Spans(ctx, &pb.QuerySpansRequest{RolloutId: rolloutID}) {
		if err != nil {
			t.Fatal(err)
		}
		spans, names = append(spans, span), append(names, span.GetName())
	}
	if !slices.Equal(names, []string{"before", "after", annotation}) {
		t.Fatal(names)
	}
	value, _ := FindFinalReward(spans)
	return value
}
