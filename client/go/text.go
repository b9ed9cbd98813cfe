package lightningstore

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const (
	replacement = "\ufffd"
	// Beginning of textCodec's errors about a field. convert parses the field from the error that gRPC returns.
	notUTF8 = "text is not valid UTF-8 in field "
)

// textCodec encodes the messages of every call. Protobuf does not encode a message with a text that is not
// UTF-8. textCodec replaces such text in fields that only describe something. In fields that name something,
// such as ids, it returns an error with the field, because a repaired id is another id.
//
// Only messages that failed to encode are examined, so valid ones cost nothing.
type textCodec struct{ encoding.CodecV2 }

func newTextCodec() textCodec { return textCodec{encoding.GetCodecV2("proto")} }

func (c textCodec) Marshal(value any) (mem.BufferSlice, error) {
	data, err := c.CodecV2.Marshal(value)
	message, is := value.(proto.Message)
	if err == nil || !is {
		return data, err
	}
	valid := proto.Clone(message) // the caller's stays as it is
	if field := makeValid(valid.ProtoReflect()); field != "" {
		return nil, fmt.Errorf("%s%s", notUTF8, field)
	}
	return c.CodecV2.Marshal(valid)
}

// makeValid replaces invalid UTF-8 in the texts of a message. It returns the path of the first text that must
// not be replaced, or "".
func makeValid(message protoreflect.Message) (wrong string) {
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		wrong = makeFieldValid(message, field, value)
		return wrong == ""
	})
	return wrong
}

func makeFieldValid(message protoreflect.Message, field protoreflect.FieldDescriptor, value protoreflect.Value) string {
	name := string(field.Name())
	switch {
	case field.IsMap():
		return makeMapValid(name, field, value.Map())
	case field.IsList():
		list := value.List()
		for i := range list.Len() {
			path := fmt.Sprintf("%s[%d]", name, i)
			if wrong := makeValueValid(field, path, list.Get(i), func(v protoreflect.Value) { list.Set(i, v) }); wrong != "" {
				return wrong
			}
		}
		return ""
	}
	return makeValueValid(field, name, value, func(v protoreflect.Value) { message.Set(field, v) })
}

func makeMapValid(name string, field protoreflect.FieldDescriptor, entries protoreflect.Map) (wrong string) {
	entries.Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
		path := fmt.Sprintf("%s[%q]", name, key.String())
		if text, is := key.Interface().(string); is && !utf8.ValidString(text) {
			wrong = path
		} else {
			wrong = makeValueValid(field.MapValue(), path, value, func(v protoreflect.Value) { entries.Set(key, v) })
		}
		return wrong == ""
	})
	return wrong
}

// makeValueValid replaces one value by calling set.
func makeValueValid(field protoreflect.FieldDescriptor, path string, value protoreflect.Value,
	set func(protoreflect.Value),
) string {
	switch field.Kind() {
	case protoreflect.MessageKind:
		if wrong := makeValid(value.Message()); wrong != "" {
			return path + "." + wrong
		}
	case protoreflect.StringKind:
		if utf8.ValidString(value.String()) {
			return ""
		}
		if !isDescription(field) {
			return path
		}
		set(protoreflect.ValueOfString(strings.ToValidUTF8(value.String(), replacement)))
	}
	return ""
}

// isDescription reports whether a text only describes something: spans and their parts, failures, prompts.
func isDescription(field protoreflect.FieldDescriptor) bool {
	name := string(field.FullName())
	if strings.HasPrefix(name, "opentelemetry.proto.") {
		return true
	}
	switch name {
	case "lightningstore.v1.Failure.type", "lightningstore.v1.Failure.message",
		"lightningstore.v1.PromptTemplate.template",
		"lightningstore.v1.SpanBatch.schema_url", "lightningstore.v1.SpanBatch.resource_schema_url":
		return true
	}
	return false
}

// cutText returns a text as UTF-8 of at most limit bytes, truncated at the boundary of a character.
func cutText(text string, limit int) string {
	if len(text) > limit {
		text = text[:limit]
		for cut := 0; cut < utf8.UTFMax-1; cut++ {
			if last, size := utf8.DecodeLastRuneInString(text); last != utf8.RuneError || size != 1 {
				break
			}
			text = text[:len(text)-1]
		}
	}
	text = strings.ToValidUTF8(text, replacement) // which may be longer
	for len(text) > limit {
		_, size := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-size]
	}
	return text
}
