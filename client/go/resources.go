package lightningstore

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/protobuf/proto"
)

// Resources are what agents work with, by name.
type Resources map[string]*pb.Resource

// LLM returns the language model endpoint of that name, nil if there is none. In a Runner's function a
// ProxyLLM is one too, with an endpoint of the attempt's own.
func (r Resources) LLM(name string) *pb.LLM { return r[name].GetLlm() }

// PromptTemplate returns the template of that name, nil if there is none.
func (r Resources) PromptTemplate(name string) *pb.PromptTemplate { return r[name].GetPromptTemplate() }

// Custom reads the custom resource of that name into target, a pointer, as [DecodeJSON] does. It fails if
// there is none, and if its value does not fit.
func (r Resources) Custom(name string, target any) error {
	custom := r[name].GetCustom()
	if custom == nil {
		return fmt.Errorf("lightningstore: no custom resource %q", name)
	}
	return DecodeJSON(custom.GetValueJson(), target)
}

// NewLLM returns a language model endpoint. endpoint: its base URL, "http://host:8000/v1" for instance.
func NewLLM(endpoint, model string) *pb.Resource {
	return &pb.Resource{Kind: &pb.Resource_Llm{Llm: &pb.LLM{Endpoint: endpoint, Model: model}}}
}

// NewProxyLLM returns an endpoint behind a proxy that files each call under its attempt.
func NewProxyLLM(endpoint, model string) *pb.Resource {
	llm := &pb.LLM{Endpoint: endpoint, Model: model}
	return &pb.Resource{Kind: &pb.Resource_ProxyLlm{ProxyLlm: &pb.ProxyLLM{Llm: llm}}}
}

// NewPromptTemplate returns a template that agents fill in.
func NewPromptTemplate(template string, engine pb.TemplateEngine) *pb.Resource {
	prompt := &pb.PromptTemplate{Template: template, Engine: engine}
	return &pb.Resource{Kind: &pb.Resource_PromptTemplate{PromptTemplate: prompt}}
}

// NewCustom returns a resource of the caller's own kind. value: anything that encoding/json takes.
func NewCustom(kind string, value any) (*pb.Resource, error) {
	text, err := encodeJSON("value", value)
	if err != nil {
		return nil, err
	}
	return &pb.Resource{Kind: &pb.Resource_Custom{Custom: &pb.CustomResource{Type: kind, ValueJson: text}}}, nil
}

// BaseURL returns the base URL of a proxy for the calls of one attempt: "/rollout/{id}/attempt/{id}" stands
// before a trailing "/v1" of its endpoint, or at the end where there is none. With both ids empty it is the
// endpoint itself; one id without the other is an error.
func BaseURL(proxy *pb.ProxyLLM, rolloutID, attemptID string) (string, error) {
	endpoint := proxy.GetLlm().GetEndpoint()
	if rolloutID == "" && attemptID == "" {
		return endpoint, nil
	}
	if rolloutID == "" || attemptID == "" {
		return "", errors.New("lightningstore: both a rollout id and an attempt id are wanted, or none")
	}
	base, isV1 := strings.CutSuffix(strings.TrimRight(endpoint, "/"), "/v1")
	base += "/rollout/" + segment(rolloutID) + "/attempt/" + segment(attemptID)
	if isV1 {
		base += "/v1"
	}
	return base, nil
}

// segment escapes all that is not plain: url.PathEscape leaves marks that mean something to some proxies.
func segment(id string) string { return strings.ReplaceAll(url.QueryEscape(id), "+", "%20") }

// routed returns the resources of one attempt: a ProxyLLM as the LLM with the attempt's own endpoint. The
// server never leaves an id of an attempt empty.
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
