package lightningstore

import (
	"bytes"
	"encoding/json"
	"math"
	"strconv"
	"strings"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
)

// FindFinalReward returns the primary reward of the last span that has a reward, by sequence id, regardless
// of the order of the argument. It returns false if no span has one.
func FindFinalReward(spans []*Span) (float64, bool) {
	var last *Span
	var final float64
	for _, span := range spans {
		if last != nil && !isLater(span, last) {
			continue
		}
		if value, found := spanReward(span); found {
			last, final = span, value
		}
	}
	return final, last != nil
}

func isLater(span, other *Span) bool {
	if span.SequenceID != other.SequenceID {
		return span.SequenceID > other.SequenceID
	}
	if a, b := span.GetStartTimeUnixNano(), other.GetStartTimeUnixNano(); a != b {
		return a > b
	}
	return bytes.Compare(span.GetSpanId(), other.GetSpanId()) > 0
}

// spanReward returns the primary reward of a span, in any of the supported forms.
func spanReward(span *Span) (float64, bool) {
	if value := lowestDimension(span); value != nil {
		return finite(plain(value))
	}
	if value := span.Attribute(reward); value != nil {
		return oneReward(plain(value))
	}
	for _, key := range []string{"agentops.task.output", "agentops.entity.output"} {
		output := plain(span.Attribute(key))
		if text, is := output.(string); is {
			output = fromText(text)
		}
		if object, is := output.(map[string]any); is && object["type"] == "reward" {
			return oneReward(object["value"])
		}
	}
	if span.GetName() == annotation || span.GetName() == reward {
		return oneReward(plain(span.Attribute("reward")))
	}
	return 0, false
}

// lowestDimension returns the value of the dimension with the lowest index, or nil if the span has none.
func lowestDimension(span *Span) *commonpb.AnyValue {
	var lowest *commonpb.AnyValue
	var at uint64
	for _, attribute := range span.GetAttributes() {
		digits, isReward := strings.CutPrefix(attribute.GetKey(), rewardPrefix)
		digits, isValue := strings.CutSuffix(digits, ".value")
		if !isReward || !isValue {
			continue
		}
		index, err := strconv.ParseUint(digits, 10, 30)
		if err == nil && (lowest == nil || index < at) {
			lowest, at = attribute.GetValue(), index
		}
	}
	return lowest
}

// oneReward parses a reward given as one value: a number, a list of named rewards, or the JSON text of
// either.
func oneReward(value any) (float64, bool) {
	if text, is := value.(string); is {
		value = fromText(text)
	}
	if list, is := value.([]any); is && len(list) > 0 {
		value = list[0]
	}
	if object, is := value.(map[string]any); is {
		value = object["value"]
	}
	return finite(value)
}

func finite(value any) (float64, bool) {
	number, is := value.(float64)
	if !is || math.IsNaN(number) || math.IsInf(number, 0) {
		return 0, false
	}
	return number, true
}

func fromText(text string) (value any) {
	if json.Unmarshal([]byte(text), &value) != nil {
		return nil
	}
	return value
}

// plain returns a value as encoding/json would decode it. Other clients may have stored a whole number as an
// integer.
func plain(value *commonpb.AnyValue) any {
	switch value := value.GetValue().(type) {
	case *commonpb.AnyValue_StringValue:
		return value.StringValue
	case *commonpb.AnyValue_DoubleValue:
		return value.DoubleValue
	case *commonpb.AnyValue_IntValue:
		return float64(value.IntValue)
	case *commonpb.AnyValue_ArrayValue:
		list := make([]any, 0, len(value.ArrayValue.GetValues()))
		for _, item := range value.ArrayValue.GetValues() {
			list = append(list, plain(item))
		}
		return list
	case *commonpb.AnyValue_KvlistValue:
		object := map[string]any{}
		for _, pair := range value.KvlistValue.GetValues() {
			object[pair.GetKey()] = plain(pair.GetValue())
		}
		return object
	}
	return nil
}
