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

// Reward returns what a Runner's function returns to give a reward.
func Reward(value float64) *float64 { return &value }

// EmitReward writes down what an attempt was worth, as a span of the current tracer: that of the Runner's
// function in its context, else that of the context's span, else OpenTelemetry's global one. A reward that
// is not finite is an error, and no span. So is a reward that the tracer does not record, because no provider is
// set up or because the provider samples the span away.
func EmitReward(ctx context.Context, value float64) error {
	return EmitRewards(ctx, NamedReward{Name: primaryReward, Value: value})
}

// EmitRewards does the same for several dimensions, in one span. The first is the reward that counts where
// one number is wanted; there must be one.
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
			return fmt.Errorf("lightningstore: reward %q: a finite number is wanted, not %v", reward.Name, reward.Value)
		}
		prefix := rewardPrefix + strconv.Itoa(i)
		attributes = append(attributes,
			attribute.String(prefix+".name", reward.Name), attribute.Float64(prefix+".value", reward.Value))
	}
	_, span := tracer.Start(ctx, annotation, trace.WithAttributes(attributes...))
	defer span.End()
	if !span.IsRecording() || !span.SpanContext().IsSampled() {
		return errors.New("lightningstore: the reward is lost, since the tracer records no spans: call EmitReward with " +
			"the context of a Runner's function, or with that of a span of a recording provider")
	}
	return nil
}

// tracerKey marks the tracer of the attempt that a context belongs to.
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
