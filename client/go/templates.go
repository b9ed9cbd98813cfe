package lightningstore

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"github.com/nikolalohinski/gonja/v2/builtins"
	"github.com/nikolalohinski/gonja/v2/config"
	"github.com/nikolalohinski/gonja/v2/exec"
	"github.com/nikolalohinski/gonja/v2/loaders"
)

// Errors of FormatPrompt, for errors.Is.
var (
	// ErrTemplateValueMissing matches errors about a placeholder of an f-string without a value.
	ErrTemplateValueMissing = errors.New("missing value")
	// ErrTemplateMalformed matches errors about a text that is not a valid template of its engine.
	ErrTemplateMalformed = errors.New("malformed template")
	// ErrTemplateRefused matches errors about an f-string with more than names of values.
	ErrTemplateRefused = errors.New("only names of values are supported")
	// ErrTemplateEngine matches errors about an engine that this client does not support.
	ErrTemplateEngine = errors.New("this client supports f-strings and Jinja")
)

const jinjaName = "/template"

// jinja has no file loader. It is shared, because rendering does not change it.
var jinja = &exec.Environment{
	Context:           exec.EmptyContext().Update(builtins.GlobalFunctions).Update(builtins.GlobalVariables),
	Filters:           builtins.Filters,
	Tests:             builtins.Tests,
	ControlStructures: builtins.ControlStructures,
	Methods:           builtins.Methods,
}

// FormatPrompt fills in a template and returns the text. Templates come from the store and are not trusted:
// an f-string may only name values, and Jinja sees values as JSON has them and no files. A missing value is
// an error, and so is the engine POML, which has no library for Go.
func FormatPrompt(template *pb.PromptTemplate, values map[string]any) (string, error) {
	var text string
	var err error
	switch engine := template.GetEngine(); engine {
	case pb.TemplateEngine_TEMPLATE_ENGINE_F_STRING:
		text, err = fillFString(template.GetTemplate(), values)
	case pb.TemplateEngine_TEMPLATE_ENGINE_JINJA:
		text, err = fillJinja(template.GetTemplate(), values)
	default:
		err = fmt.Errorf("%w, not %s", ErrTemplateEngine, engine)
	}
	if err != nil {
		return "", fmt.Errorf("lightningstore: template: %w", err)
	}
	return text, nil
}

// fillFString implements Python's str.format for plain names.
func fillFString(template string, values map[string]any) (string, error) {
	var out strings.Builder
	for {
		at := strings.IndexAny(template, "{}")
		if at < 0 {
			out.WriteString(template)
			return out.String(), nil
		}
		out.WriteString(template[:at])
		brace, rest := template[at], template[at+1:]
		switch {
		case rest != "" && rest[0] == brace:
			out.WriteByte(brace)
			template = rest[1:]
			continue
		case brace == '}':
			return "", fmt.Errorf("%w: unmatched }", ErrTemplateMalformed)
		}
		end := strings.IndexByte(rest, '}')
		if end < 0 {
			return "", fmt.Errorf("%w: unclosed {", ErrTemplateMalformed)
		}
		value, err := named(rest[:end], values)
		if err != nil {
			return "", err
		}
		fmt.Fprint(&out, value)
		template = rest[end+1:]
	}
}

// named returns the value of a placeholder.
func named(name string, values map[string]any) (any, error) {
	if strings.ContainsAny(name, ".[]:!{") {
		return nil, fmt.Errorf("%w, not {%s}", ErrTemplateRefused, name)
	}
	if strings.Trim(name, "0123456789") == "" {
		return nil, fmt.Errorf("%w: {%s} is not the name of a value", ErrTemplateMalformed, name)
	}
	value, found := values[name]
	if !found {
		return nil, fmt.Errorf("{%s}: %w", name, ErrTemplateValueMissing)
	}
	return value, nil
}

func fillJinja(template string, values map[string]any) (text string, err error) {
	defer func() {
		if found := recover(); found != nil { // the library's way with some templates
			err = fmt.Errorf("%w: %v", ErrTemplateMalformed, found)
		}
	}()
	settings := config.New()
	settings.KeepTrailingNewline, settings.StrictUndefined = true, true
	loader, err := loaders.NewMemoryLoader(map[string]string{jinjaName: template})
	if err != nil {
		return "", err
	}
	parsed, err := exec.NewTemplate(jinjaName, settings, loader, jinja)
	if err != nil {
		return "", fmt.Errorf("%w: %v", ErrTemplateMalformed, err)
	}
	plain, err := plainValues(values)
	if err != nil {
		return "", err
	}
	return parsed.ExecuteToString(exec.NewContext(plain))
}

// plainValues returns values as JSON has them, so that a template cannot call methods of Go values.
func plainValues(values map[string]any) (map[string]any, error) {
	text, err := json.Marshal(values)
	if err != nil {
		return nil, err
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var plain map[string]any
	if err := decoder.Decode(&plain); err != nil {
		return nil, err
	}
	for name, value := range plain {
		plain[name] = withNumbers(value)
	}
	return plain, nil
}

// withNumbers converts whole numbers to int: as a float, 3 would be printed as 3.0.
func withNumbers(value any) any {
	switch value := value.(type) {
	case json.Number:
		if whole, err := value.Int64(); err == nil {
			return int(whole)
		}
		number, _ := value.Float64()
		return number
	case []any:
		for i, item := range value {
			value[i] = withNumbers(item)
		}
	case map[string]any:
		for key, item := range value {
			value[key] = withNumbers(item)
		}
	}
	return value
}
