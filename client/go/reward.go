package lightningstore

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

const (
	annotation    = "agentlightning.annotation"
	reward        = "agentlightning.reward"
	rewardPrefix  = reward + "."
	primaryReward = "primary"
	scopeName     = "github.com/lightningstore/lightningstore/client/go"
)

// NamedReward is one dimension of a reward.
type NamedReward struct {
	Name  string
	Value float64
}

// Reward returns a reward for a Runner's function to return.
func Reward(value float64) *float64 { return &value }

// EmitReward records a reward of the attempt as a span of the current tracer: that of the Runner's function
// in ctx, else that of the span in ctx, else OpenTelemetry's global one. It returns an error, and records no
// span, if the reward is not finite. It also returns an error if the tracer does not record, because no
// provider is set up or because the provider samples the span out.
func EmitReward(ctx context.Context, value float64) error {
	return EmitRewards(ctx, NamedReward{Name: primaryReward, Value: value})
}

// EmitRewards records a reward with several dimensions in one span. The first one is the primary dimension.
// At least one is required.
func EmitRewards(ctx context.Context, rewards ...NamedReward) error {
	return emitRewards(ctx, currentTracer(ctx), rewards...)
}

func emitRewards(ctx context.Context, tracer trace.Tracer, rewards ...NamedReward) error {
	if len(rewards) == 0 {
		return errors.New("lightningstore: a reward needs at least one dimension")
	}
	attributes := make([]attribute.KeyValue, 0, 2*len(rewards))
	for i, reward := range rewards {
		if _, is := finite(reward.Value); !is {
			return fmt.Errorf("lightningstore: reward %q: must be a finite number, not %v", reward.Name, reward.Value)
		}
		prefix := rewardPrefix + strconv.Itoa(i)
		attributes = append(attributes,
			attribute.String(prefix+".name", reward.Name), attribute.Float64(prefix+".value", reward.Value))
	}
	_, span := tracer.Start(ctx, annotation, trace.WithAttributes(attributes...))
	defer span.End()
	if !span.IsRecording() || !span.SpanContext().IsSampled() {
		return errors.New("lightningstore: the reward is lost, because the tracer does not record: call EmitReward with " +
			"the context of a Runner's function, or of a span of a recording provider")
	}
	return nil
}

// tracerKey is the context key of an attempt's tracer.
type tracerKey struct{}

func currentTracer(ctx context.Context) trace.Tracer {
	if tracer, found := ctx.Value(tracerKey{}).(trace.Tracer); found {
		return tracer
	}
	if span := trace.SpanFromContext(ctx); span.SpanContext().IsValid() {
		return span.TracerProvider().Tracer(scopeName)
	}
	return otel.Tracer(scopeName)
}
