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

// Latest names the latest resources, or the latest attempt of a rollout.
const Latest = "latest"

// RolloutSpec is a rollout to create.
type RolloutSpec struct {
	// Input of the agent: any value that encoding/json can encode. Integers of any size are kept.
	// json.RawMessage is sent byte for byte.
	Input any
	// Mode is the purpose of the rollout. May be unspecified.
	Mode pb.RolloutMode
	// Priority: rollouts with a higher one are claimed first.
	Priority int32
	// GroupID groups rollouts that belong together. May be empty.
	GroupID string
	// ResourcesID is the id of the resources that the agent uses. Empty: those that are the latest when the
	// rollout is enqueued. [Latest]: those that are the latest at each claim, retries included.
	ResourcesID string
	// Queue is the task queue that it is claimed from. Empty: the default queue.
	Queue string
	// Labels for filters, at most 32. May be nil.
	Labels map[string]string
	// Config has the time limits of attempts and the rules for retries.
	Config RolloutConfig
	// Metadata of the caller. May be nil.
	Metadata map[string]any
	// RolloutID chosen by the caller. Empty: the server generates one.
	RolloutID string
}

// RolloutConfig has the time limits of attempts and the rules for retries. The zero value sets no limits and
// allows one attempt.
type RolloutConfig struct {
	// Timeout is the maximum duration of an attempt. 0: no limit.
	Timeout time.Duration
	// UnresponsiveTimeout is the maximum time since the last heartbeat or span of an attempt. 0: no limit.
	UnresponsiveTimeout time.Duration
	// MaxAttempts is the maximum number of attempts, retries included. 0 means 1.
	MaxAttempts int32
	// RetryCondition lists the outcomes that are retried: FAILED, TIMEOUT, UNRESPONSIVE.
	RetryCondition []pb.AttemptStatus
	// RetryBackoff is the delay of a retry. Nil: no delay.
	RetryBackoff *pb.RetryBackoff
}

// message returns the message of the contract. path is its position in the request, for errors.
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
		Queue:       s.Queue,
		Labels:      s.Labels,
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

// GroupSpec is a group to create: the rollouts with its GroupID complete together.
type GroupSpec struct {
	// GroupID names the group. Required.
	GroupID string
	// Size is the maximum number of members, and the number that must finish. At least 1.
	Size int32
	// Deadline is the time after the first claim of a member at which the group closes. 0: none.
	Deadline time.Duration
	// OnDeadline says what happens then to members that have not finished. Unspecified: they are cancelled.
	OnDeadline pb.GroupDeadlineAction
}

func (g GroupSpec) message() *pb.GroupSpec {
	message := &pb.GroupSpec{GroupId: g.GroupID, Size: g.Size, OnDeadline: g.OnDeadline}
	if g.Deadline != 0 {
		message.Deadline = durationpb.New(g.Deadline)
	}
	return message
}

// encodeJSON returns a value as JSON, without the HTML escapes of encoding/json. It returns an error for
// values that JSON cannot represent, such as NaN, and names the part by its path, which begins with name.
func encodeJSON(name string, value any) ([]byte, error) {
	if raw, ok := value.(json.RawMessage); ok {
		if !json.Valid(raw) {
			return nil, fmt.Errorf("lightningstore: %s: not valid JSON: %.40q", name, []byte(raw))
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

// Maximum depth to which unencodable searches a value, because a value may contain itself.
const maxSearchDepth = 100

// unencodable returns the path of the first part of a value that JSON cannot represent. It does not look into
// values that encode themselves (json.Marshaler).
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

// DecodeJSON decodes a field that holds JSON, such as input_json or metadata_json. Where the type of the
// target is open (any), a number becomes a json.Number, so that large integers are exact. Empty text leaves
// the target unchanged.
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
