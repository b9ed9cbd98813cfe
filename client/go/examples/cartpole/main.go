// Command cartpole is the Go runner of the demo (`make demo RUNNERS=go`). It claims an episode of CartPole,
// plays it, streams one span per step, and returns the reward. Usage: cartpole ADDRESS WORKER
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	lightningstore "github.com/lightningstore/lightningstore/client/go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

type episode struct {
	Noise [4]float64 `json:"noise"`
	Start state      `json:"start"`
}

type policy struct {
	Mean   [4]float64 `json:"mean"`
	Spread [4]float64 `json:"spread"`
}

// play plays one episode with the published policy and the variation of the task.
func play(ctx context.Context, task *lightningstore.Task[episode]) (*float64, error) {
	var published policy
	if err := task.Resources.Custom("policy", &published); err != nil {
		return nil, err
	}
	weights := vary(published.Mean, published.Spread, task.Input.Noise)
	now, total := task.Input.Start, 0.
	for total < longest && !isOver(now) {
		if ctx.Err() != nil { // the rollout was cancelled, or went to another runner
			return nil, ctx.Err()
		}
		action := act(weights, now)
		_, span := task.Tracer.Start(ctx, "step", trace.WithAttributes(
			attribute.Float64Slice("observation", now[:]), attribute.Int("action", action)))
		now = step(now, action)
		span.SetAttributes(attribute.Float64("reward", 1))
		span.End()
		total++
	}
	return lightningstore.Reward(total), nil
}

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: cartpole ADDRESS WORKER")
		os.Exit(2)
	}
	client, err := lightningstore.New(os.Args[1], nil)
	if err != nil {
		log.Fatal(err)
	}
	runner := lightningstore.NewRunner(client, play, &lightningstore.RunnerOptions{WorkerID: os.Args[2]})
	if err := runner.RunWithSignals(context.Background()); err != nil {
		log.Fatal(err)
	}
}
