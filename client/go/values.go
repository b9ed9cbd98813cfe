package lightningstore

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/protobuf/types/known/durationpb"
)

// RolloutSpec is a rollout to be made.
type RolloutSpec struct {
	// Input says what the agent is to do: anything that encoding/json takes. Integers of any size arrive as
	// they are; json.RawMessage goes byte for byte.
	Input any
	// Mode says what the rollout is for. May be unspecified.
	Mode pb.RolloutMode
	// Priority: higher is claimed first.
	Priority int32
	// GroupID names the rollouts that belong together. May be empty.
	GroupID string
	// ResourcesID names what the agent works with. Empty: the latest resources there are.
	ResourcesID string
	// Config: when an attempt is given up, and whether the rollout is tried again.
	Config RolloutConfig
	// Metadata is the caller's own. May be nil.
	Metadata map[string]any
	// RolloutID, if the caller wants to choose it. Empty: the server makes one.
	RolloutID string
}

// RolloutConfig says when an attempt is given up, and whether the rollout is then tried again. The zero value
// sets no limits and makes one attempt.
type RolloutConfig struct {
	// Timeout is the longest time that an attempt may take. 0: no limit.
	Timeout time.Duration
	// UnresponsiveTimeout is the longest silence of an attempt. 0: no limit.
	UnresponsiveTimeout time.Duration
	// MaxAttempts made by retrying. 0 means 1.
	MaxAttempts int32
	// RetryCondition holds the ends of an attempt that are retried: FAILED, TIMEOUT, UNRESPONSIVE.
	RetryCondition []pb.AttemptStatus
	// RetryBackoff says how long a retry waits in the queue. Nil: not at all.
	RetryBackoff *pb.RetryBackoff
}

// message returns the message of the contract. path is where it stands in the request, for errors.
func (s RolloutSpec) message(path string) (*pb.RolloutSpec, error) {
	input, err := encodeJSON(path+".input", s.Input)
	if err != nil {
		return nil, err
	}
	message := &pb.RolloutSpec{
		InputJson:   input,
		Mode:        s.Mode,
		Priority:    s.Priority,
		GroupId:     s.GroupID,
		ResourcesId: s.ResourcesID,
		Config:      s.Config.message(),
		RolloutId:   s.RolloutID,
	}
	if s.Metadata != nil {
		if message.MetadataJson, err = encodeJSON(path+".metadata", s.Metadata); err != nil {
			return nil, err
		}
	}
	return message, nil
}

func (c RolloutConfig) message() *pb.RolloutConfig {
	message := &pb.RolloutConfig{
		MaxAttempts:    c.MaxAttempts,
		RetryCondition: c.RetryCondition,
		RetryBackoff:   c.RetryBackoff,
	}
	if c.Timeout != 0 {
		message.Timeout = durationpb.New(c.Timeout)
	}
	if c.UnresponsiveTimeout != 0 {
		message.UnresponsiveTimeout = durationpb.New(c.UnresponsiveTimeout)
	}
	return message
}

// encodeJSON returns a value as JSON, without the detours that encoding/json makes for web pages. It fails for
// what JSON has no place for, NaN for instance, and names the part by its path, which begins with name.
func encodeJSON(name string, value any) ([]byte, error) {
	if raw, ok := value.(json.RawMessage); ok {
		if !json.Valid(raw) {
			return nil, fmt.Errorf("lightningstore: %s: no JSON: %.40q", name, []byte(raw))
		}
		if !utf8.Valid(raw) {
			return nil, fmt.Errorf("lightningstore: %s: JSON must be valid UTF-8", name)
		}
		return raw, nil
	}
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		path, _ := unencodable(reflect.ValueOf(value), name, 0)
		return nil, fmt.Errorf("lightningstore: %s: %w", cmp.Or(path, name), err)
	}
	return bytes.TrimSuffix(buffer.Bytes(), []byte("\n")), nil
}

// Levels of a value in which a part without a place in JSON is looked for: a value may hold itself.
const maxSearchDepth = 100

// unencodable finds the first part of a value that JSON has no place for and returns its path. What encodes
// itself (json.Marshaler) is not looked into.
func unencodable(value reflect.Value, path string, depth int) (string, bool) {
	if !value.IsValid() || depth > maxSearchDepth || value.Type().Implements(reflect.TypeFor[json.Marshaler]()) {
		return "", false
	}
	switch value.Kind() {
	case reflect.Float32, reflect.Float64:
		_, is := finite(value.Float())
		return path, !is
	case reflect.Chan, reflect.Func, reflect.Complex64, reflect.Complex128, reflect.UnsafePointer:
		return path, true
	case reflect.Pointer, reflect.Interface:
		return unencodable(value.Elem(), path, depth+1)
	case reflect.Slice, reflect.Array:
		for i := range value.Len() {
			if found, is := unencodable(value.Index(i), fmt.Sprintf("%s[%d]", path, i), depth+1); is {
				return found, true
			}
		}
	case reflect.Map:
		for entries := value.MapRange(); entries.Next(); {
			if found, is := unencodable(entries.Value(), fmt.Sprintf("%s.%v", path, entries.Key()), depth+1); is {
				return found, true
			}
		}
	case reflect.Struct:
		return unencodableField(value, path, depth)
	}
	return "", false
}

func unencodableField(value reflect.Value, path string, depth int) (string, bool) {
	for i := range value.NumField() {
		field := value.Type().Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		switch {
		case name == "-" || !field.IsExported() && !field.Anonymous:
			continue
		case name != "":
			name = path + "." + name
		case field.Anonymous:
			name = path // its fields stand beside the others
		default:
			name = path + "." + field.Name
		}
		if found, is := unencodable(value.Field(i), name, depth+1); is {
			return found, true
		}
	}
	return "", false
}

// DecodeJSON reads a value out of a field that holds JSON, such as input_json or metadata_json. Where the
// target leaves the type open (any), a number becomes a json.Number, so that large integers stay whole.
// Empty text leaves the target as it is.
func DecodeJSON(text []byte, target any) error {
	if len(text) == 0 {
		return nil
	}
	if raw, ok := target.(*json.RawMessage); ok {
		*raw = text
		return nil
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	if err := decoder.Decode(target); err != nil {
		return fmt.Errorf("lightningstore: %w", err)
	}
	return nil
}
