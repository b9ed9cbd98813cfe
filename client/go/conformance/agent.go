package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	lightningstore "github.com/lightningstore/lightningstore/client/go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// script is the input of a rollout: the actions of the agent.
type script struct {
	Spans    []string `json:"spans"`
	Resource string   `json:"resource"`
	Wait     bool     `json:"wait"`
	Fail     *struct {
		Message   string `json:"message"`
		Retryable *bool  `json:"retryable"`
		Attempts  []int  `json:"attempts"`
	} `json:"fail"`
	Reward *float64 `json:"reward"`
}

// startRunner starts a runner with the scripted agent, on a separate connection.
func (d *driver) startRunner(ctx context.Context, c command) {
	client, err := lightningstore.New(d.address, nil)
	if err != nil {
		d.answer(c, answer{"error": describe(err)})
		return
	}
	runner := lightningstore.NewRunner(client, agent, &lightningstore.RunnerOptions{
		WorkerID:        c.WorkerID,
		Concurrency:     c.Concurrency,
		MaxRollouts:     c.MaxRollouts,
		Queues:          c.Queues,
		HeartbeatPeriod: time.Duration(c.HeartbeatPeriod * float64(time.Second)),
	})
	d.mu.Lock()
	d.runners[string(c.ID)] = runner
	d.mu.Unlock()
	d.answer(c, answer{"started": true})
	go func() {
		if err := runner.Run(ctx); err != nil {
			slog.Warn("runner ended", "error", err)
		}
		_ = client.Close() // nothing is open any more
		d.answer(c, answer{"ended": true})
	}()
}

func agent(ctx context.Context, task *lightningstore.Task[script]) (*float64, error) {
	does := task.Input
	mark := func(name string, attributes ...attribute.KeyValue) {
		_, span := task.Tracer.Start(ctx, name, trace.WithAttributes(attributes...))
		span.End()
	}
	for _, name := range does.Spans {
		mark(name)
	}
	if does.Resource != "" {
		mark("resource", attribute.String("value", text(task.Resources, does.Resource)))
	}
	if does.Wait {
		select {
		case <-ctx.Done():
		case <-time.After(time.Minute):
		}
		mark("cancelled")
		return nil, context.Cause(ctx)
	}
	fail := does.Fail
	if fail != nil && (fail.Attempts == nil || slices.Contains(fail.Attempts, task.SequenceNumber())) {
		err := errors.New(fail.Message)
		if fail.Retryable != nil && !*fail.Retryable {
			err = lightningstore.NonRetryable(err)
		}
		return nil, err
	}
	return does.Reward, nil
}

// text returns the value that identifies the resource with that name.
func text(resources lightningstore.Resources, name string) string {
	if llm := resources.LLM(name); llm != nil {
		return llm.GetEndpoint()
	}
	if prompt := resources.PromptTemplate(name); prompt != nil {
		return prompt.GetTemplate()
	}
	return string(resources[name].GetCustom().GetValueJson())
}
