package lightningstore

import (
	"context"
	"strconv"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
)

const (
	annotation       = "agentlightning.annotation"
	rewardPrefix     = "agentlightning.reward."
	firstRewardValue = rewardPrefix + "0.value"
	primaryReward    = "primary"
	scopeName        = "github.com/lightningstore/lightningstore/client/go"
)

// NamedReward is one dimension of a reward.
type NamedReward struct {
	Name  string
	Value float64
}

// Reward returns what a Runner's function returns to give a reward.
func Reward(value float64) *float64 { return &value }

// EmitReward writes down what an attempt was worth, as a span of the current tracer: that of the Runner's
// function in its context, else that of the context's span, else OpenTelemetry's global one.
func EmitReward(ctx context.Context, value float64) {
	EmitRewards(ctx, NamedReward{Name: primaryReward, Value: value})
}

// EmitRewards does the same for several dimensions, in one span. The first is the reward that counts where
// one number is wanted.
func EmitRewards(ctx context.Context, rewards ...NamedReward) {
	emitRewards(ctx, currentTracer(ctx), rewards...)
}

func emitRewards(ctx context.Context, tracer trace.Tracer, rewards ...NamedReward) {
	attributes := make([]attribute.KeyValue, 0, 2*len(rewards))
	for i, reward := range rewards {
		prefix := rewardPrefix + strconv.Itoa(i)
		attributes = append(attributes,
			attribute.String(prefix+".name", reward.Name), attribute.Float64(prefix+".value", reward.Value))
	}
	_, span := tracer.Start(ctx, annotation, trace.WithAttributes(attributes...))
	span.End()
}

// FindFinalReward returns the reward that was written down last: the first dimension of the last span, in the
// order given, that has one. False if there is none.
func FindFinalReward(spans []*Span) (float64, bool) {
	for i := len(spans) - 1; i >= 0; i-- {
		if value, found := number(spans[i].Attribute(firstRewardValue)); found {
			return value, true
		}
	}
	return 0, false
}

// number reads a number; other clients may have written a whole one as an integer.
func number(value *commonpb.AnyValue) (float64, bool) {
	switch value := value.GetValue().(type) {
	case *commonpb.AnyValue_DoubleValue:
		return value.DoubleValue, true
	case *commonpb.AnyValue_IntValue:
		return float64(value.IntValue), true
	}
	return 0, false
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
