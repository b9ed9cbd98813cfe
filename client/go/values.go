package lightningstore

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

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

func (s RolloutSpec) message() (*pb.RolloutSpec, error) {
	input, err := encodeJSON(s.Input)
	if err != nil {
		return nil, fmt.Errorf("lightningstore: input: %w", err)
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
		if message.MetadataJson, err = encodeJSON(s.Metadata); err != nil {
			return nil, fmt.Errorf("lightningstore: metadata: %w", err)
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

// encodeJSON returns a value as JSON, without the detours that encoding/json makes for web pages.
func encodeJSON(value any) ([]byte, error) {
	if raw, ok := value.(json.RawMessage); ok {
		if !json.Valid(raw) {
			return nil, fmt.Errorf("no JSON: %.40q", []byte(raw))
		}
		return raw, nil
	}
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buffer.Bytes(), []byte("\n")), nil
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
