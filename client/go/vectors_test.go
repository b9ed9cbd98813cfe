package lightningstore

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// vectors reads a file of the cases that all clients keep.
func vectors(t *testing.T, name string, into any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "tests", "conformance", "vectors", name))
	if err != nil {
		t.Fatal(err)
	}
	decoder := json.NewDecoder(strings.NewReader(string(text)))
	decoder.UseNumber()
	if err := decoder.Decode(into); err != nil {
		t.Fatal(err)
	}
}

func TestTemplateVectors(t *testing.T) {
	var file struct {
		Cases []struct {
			Name, Engine, Template, Error, Names string
			Variables                            map[string]any
			Text                                 *string
		}
	}
	vectors(t, "templates.json", &file)
	kinds := map[string]error{"missing": ErrTemplateValueMissing, "malformed": ErrTemplateMalformed,
		"refused": ErrTemplateRefused, "no_library": ErrTemplateEngine}
	for _, c := range file.Cases {
		t.Run(c.Engine+" "+c.Name, func(t *testing.T) {
			engine := pb.TemplateEngine_value["TEMPLATE_ENGINE_"+strings.ToUpper(c.Engine)]
			template := &pb.PromptTemplate{Template: c.Template, Engine: pb.TemplateEngine(engine)}
			text, err := FormatPrompt(template, c.Variables)
			switch {
			case c.Text != nil && (err != nil || text != *c.Text):
				t.Fatalf("%q, %v; want %q", text, err, *c.Text)
			case c.Text == nil && err == nil:
				t.Fatalf("%q; want an error", text)
			case c.Text == nil && c.Engine != "jinja" && !errors.Is(err, kinds[c.Error]):
				t.Fatalf("%v; want %v", err, kinds[c.Error])
			case err != nil && !strings.Contains(err.Error(), c.Names):
				t.Fatalf("%v does not name %q", err, c.Names)
			}
		})
	}
}

type secretive struct{ Shown string }

func (secretive) Secret() string { return "secret" }

func TestJinjaSeesValuesAsJSONAlone(t *testing.T) {
	template := func(text string) *pb.PromptTemplate {
		return NewPromptTemplate(text, pb.TemplateEngine_TEMPLATE_ENGINE_JINJA).GetPromptTemplate()
	}
	values := map[string]any{"a": secretive{"x"}, "n": []any{1, 2.5}}
	if text, err := FormatPrompt(template("{{ a.Shown }} {{ n[0] }}"), values); err != nil || text != "x 1" {
		t.Fatal(text, err)
	}
	if text, err := FormatPrompt(template("{{ a.Secret() }}"), values); err == nil {
		t.Fatal("a template called a method: ", text)
	}
	if _, err := FormatPrompt(template("x"), map[string]any{"f": func() {}}); err == nil {
		t.Fatal("no JSON, no error")
	}
}

func TestBaseURLVectors(t *testing.T) {
	var file struct {
		Cases []struct {
			Name, Endpoint, URL, Error string
			RolloutID                  string `json:"rollout_id"`
			AttemptID                  string `json:"attempt_id"`
		}
	}
	vectors(t, "base_urls.json", &file)
	for _, c := range file.Cases {
		proxy := NewProxyLLM(c.Endpoint, "m").GetProxyLlm()
		url, err := BaseURL(proxy, c.RolloutID, c.AttemptID)
		if url != c.URL || (err != nil) != (c.Error != "") {
			t.Errorf("%s: %q, %v; want %q", c.Name, url, err, c.URL)
		}
		if err != nil && !strings.Contains(err.Error(), c.Error) {
			t.Errorf("%s: %v does not say %q", c.Name, err, c.Error)
		}
	}
}

// anyValue is what clients make of a JSON value.
func anyValue(t *testing.T, value any) *commonpb.AnyValue {
	switch value := value.(type) {
	case string:
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}
	case json.Number:
		if whole, err := value.Int64(); err == nil {
			return &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: whole}}
		}
		number, _ := value.Float64()
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_DoubleValue{DoubleValue: number}}
	}
	t.Fatalf("no attribute: %v", value)
	return nil
}

func TestFinalRewardVectors(t *testing.T) {
	var file struct {
		Cases []struct {
			Name  string
			Spans []struct {
				Name       string
				SequenceID int64 `json:"sequence_id"`
				Attributes map[string]any
			}
			Reward *float64
		} `json:"find_final_reward"`
	}
	vectors(t, "rewards.json", &file)
	for _, c := range file.Cases {
		var spans []*Span
		for _, span := range c.Spans {
			otlp := &tracepb.Span{Name: span.Name}
			for key, value := range span.Attributes {
				pair := &commonpb.KeyValue{Key: key, Value: anyValue(t, value)}
				otlp.Attributes = append(otlp.Attributes, pair)
			}
			spans = append(spans, &Span{Span: otlp, SequenceID: span.SequenceID})
		}
		value, found := FindFinalReward(spans)
		if found != (c.Reward != nil) || found && value != *c.Reward {
			t.Errorf("%s: %v, %v", c.Name, value, found)
		}
	}
}

func TestEmitRewardVectors(t *testing.T) {
	var file struct {
		Cases []struct {
			Name, Primary, Error string
			Reward               any
			Attributes           map[string]any
		} `json:"emit_reward"`
	}
	vectors(t, "rewards.json", &file)
	for _, c := range file.Cases {
		spans := tracetest.NewInMemoryExporter()
		tracer := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans)).Tracer("t")
		ctx := context.WithValue(context.Background(), tracerKey{}, tracer)
		var err error
		if dimensions, is := c.Reward.([]any); is {
			err = EmitRewards(ctx, dimensionsOf(t, dimensions, c.Primary)...)
		} else {
			err = EmitReward(ctx, numberOf(t, c.Reward))
		}
		if c.Error != "" {
			if err == nil || !strings.Contains(err.Error(), c.Error) || len(spans.GetSpans()) > 0 {
				t.Errorf("%s: %v, %d spans", c.Name, err, len(spans.GetSpans()))
			}
			continue
		}
		if err != nil || len(spans.GetSpans()) != 1 || spans.GetSpans()[0].Name != annotation {
			t.Fatal(c.Name, err, spans.GetSpans())
		}
		got, want := map[attribute.Key]any{}, map[attribute.Key]any{}
		for _, pair := range spans.GetSpans()[0].Attributes {
			got[pair.Key] = pair.Value.AsInterface()
		}
		for key, value := range c.Attributes {
			if _, is := value.(json.Number); is {
				value = numberOf(t, value)
			}
			want[attribute.Key(key)] = value
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", c.Name, got, want)
		}
	}
}

// dimensionsOf returns pairs of names and numbers as rewards, the primary one first.
func dimensionsOf(t *testing.T, pairs []any, primary string) []NamedReward {
	var first, rest []NamedReward
	for _, pair := range pairs {
		name := pair.([]any)[0].(string)
		found := NamedReward{name, numberOf(t, pair.([]any)[1])}
		if name == primary {
			first = append(first, found)
		} else {
			rest = append(rest, found)
		}
	}
	return append(first, rest...)
}

func numberOf(t *testing.T, value any) float64 {
	switch value := value.(type) {
	case json.Number:
		number, err := value.Float64()
		if err != nil {
			t.Fatal(err)
		}
		return number
	case string:
		number, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		return number
	}
	return math.NaN()
}
