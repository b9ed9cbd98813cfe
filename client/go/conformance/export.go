package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	lightningstore "github.com/lightningstore/lightningstore/client/go"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// export creates spans with the OpenTelemetry SDK and exports them.
func (d *driver) export(client *lightningstore.Client, c command) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var options []sdktrace.TracerProviderOption
	var flush func(context.Context) error
	switch c.Exporter {
	case "sdk":
		exporter := lightningstore.NewSpanExporter(client,
			&lightningstore.ExporterOptions{RolloutID: c.RolloutID, AttemptID: c.AttemptID})
		options, flush = append(options, sdktrace.WithSyncer(exporter)), exporter.ForceFlush
	case "otlp":
		exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpoint(d.address), otlptracegrpc.WithInsecure())
		if err != nil {
			d.answer(c, answer{"error": describe(err)})
			return
		}
		options = append(options, sdktrace.WithBatcher(exporter), sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("agentlightning.rollout_id", c.RolloutID),
			attribute.String("agentlightning.attempt_id", c.AttemptID))))
	default:
		d.answer(c, answer{"unsupported": fmt.Sprintf("no exporter %q", c.Exporter)})
		return
	}
	provider := sdktrace.NewTracerProvider(append(options, sdktrace.WithSampler(sdktrace.AlwaysSample()))...)
	ids := makeSpans(ctx, provider, c.Spans)
	if flush == nil {
		flush = provider.ForceFlush
	}
	if err := errors.Join(flush(ctx), provider.Shutdown(ctx)); err != nil {
		d.answer(c, answer{"error": describe(err)})
		return
	}
	d.answer(c, answer{"span_ids": ids})
}

// makeSpans creates a span with each name, each the child of the previous one, and returns their ids.
func makeSpans(ctx context.Context, provider *sdktrace.TracerProvider, names []string) []string {
	ids := []string{}
	tracer := provider.Tracer("conformance")
	for _, name := range names {
		next, span := tracer.Start(ctx, name)
		defer span.End() // children end first
		ctx = next
		ids = append(ids, span.SpanContext().SpanID().String())
	}
	return ids
}
