package lightningstore

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/protobuf/proto"
)

// Resources are what agents use, by name.
type Resources map[string]*pb.Resource

// LLM returns the language model endpoint with that name, or nil. In a Runner's function this includes a
// ProxyLLM, with the URL of the attempt.
func (r Resources) LLM(name string) *pb.LLM { return r[name].GetLlm() }

// PromptTemplate returns the template with that name, or nil.
func (r Resources) PromptTemplate(name string) *pb.PromptTemplate { return r[name].GetPromptTemplate() }

// Custom decodes the custom resource with that name into target, a pointer, as [DecodeJSON] does. It returns
// an error if there is none, or if its value does not fit.
func (r Resources) Custom(name string, target any) error {
	custom := r[name].GetCustom()
	if custom == nil {
		return fmt.Errorf("lightningstore: no custom resource %q", name)
	}
	return DecodeJSON(custom.GetValueJson(), target)
}

// NewLLM returns a language model endpoint. endpoint is its base URL, for example "http://host:8000/v1".
func NewLLM(endpoint, model string) *pb.Resource {
	return &pb.Resource{Kind: &pb.Resource_Llm{Llm: &pb.LLM{Endpoint: endpoint, Model: model}}}
}

// NewProxyLLM returns an endpoint behind a proxy that assigns each call to its attempt.
func NewProxyLLM(endpoint, model string) *pb.Resource {
	llm := &pb.LLM{Endpoint: endpoint, Model: model}
	return &pb.Resource{Kind: &pb.Resource_ProxyLlm{ProxyLlm: &pb.ProxyLLM{Llm: llm}}}
}

// NewPromptTemplate returns a template that agents fill in.
func NewPromptTemplate(template string, engine pb.TemplateEngine) *pb.Resource {
	prompt := &pb.PromptTemplate{Template: template, Engine: engine}
	return &pb.Resource{Kind: &pb.Resource_PromptTemplate{PromptTemplate: prompt}}
}

// NewCustom returns a resource of a kind defined by the caller. value is any value that encoding/json can
// encode.
func NewCustom(kind string, value any) (*pb.Resource, error) {
	text, err := encodeJSON("value", value)
	if err != nil {
		return nil, err
	}
	return &pb.Resource{Kind: &pb.Resource_Custom{Custom: &pb.CustomResource{Type: kind, ValueJson: text}}}, nil
}

// BaseURL returns the base URL of a proxy for the calls of one attempt: its endpoint with
// "/rollout/{id}/attempt/{id}" before a trailing "/v1", or at the end if there is none. With both ids empty
// it returns the endpoint unchanged. One id without the other is an error.
func BaseURL(proxy *pb.ProxyLLM, rolloutID, attemptID string) (string, error) {
	endpoint := proxy.GetLlm().GetEndpoint()
	if rolloutID == "" && attemptID == "" {
		return endpoint, nil
	}
	if rolloutID == "" || attemptID == "" {
		return "", errors.New("lightningstore: set both the rollout id and the attempt id, or neither")
	}
	base, isV1 := strings.CutSuffix(strings.TrimRight(endpoint, "/"), "/v1")
	base += "/rollout/" + segment(rolloutID) + "/attempt/" + segment(attemptID)
	if isV1 {
		base += "/v1"
	}
	return base, nil
}

// segment escapes every character that is not unreserved: url.PathEscape keeps some that proxies interpret.
func segment(id string) string { return strings.ReplaceAll(url.QueryEscape(id), "+", "%20") }

// routed returns the resources of one attempt, with each ProxyLLM as an LLM with the attempt's URL. The
// server never sends an empty attempt id.
func routed(resources map[string]*pb.Resource, rolloutID, attemptID string) Resources {
	found := make(Resources, len(resources))
	for name, resource := range resources {
		if proxy := resource.GetProxyLlm(); proxy != nil {
			if endpoint, err := BaseURL(proxy, rolloutID, attemptID); err == nil {
				llm := proto.CloneOf(proxy.GetLlm())
				llm.Endpoint = endpoint
				resource = &pb.Resource{Kind: &pb.Resource_Llm{Llm: llm}}
			}
		}
		found[name] = resource
	}
	return found
}
