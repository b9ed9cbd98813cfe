package lightningstore

import (
	"context"
	"iter"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
)

// CreateNamespace creates a namespace and returns it. Only the name is required. A name that exists is an
// error with the reason ERROR_REASON_NAMESPACE_EXISTS.
func (c *Client) CreateNamespace(ctx context.Context, namespace *pb.Namespace) (*pb.Namespace, error) {
	answer, err := c.namespaces.CreateNamespace(ctx, &pb.CreateNamespaceRequest{Namespace: namespace})
	return answer.GetNamespace(), err
}

// Namespace returns a namespace with its settings.
func (c *Client) Namespace(ctx context.Context, name string) (*pb.Namespace, error) {
	answer, err := c.namespaces.GetNamespace(ctx, &pb.GetNamespaceRequest{Name: name})
	return answer.GetNamespace(), err
}

// Namespaces yields the namespaces whose names contain a text, ordered by name. Empty: all. It loads them page
// by page. An error ends it.
func (c *Client) Namespaces(ctx context.Context, nameContains string) iter.Seq2[*pb.Namespace, error] {
	request := &pb.ListNamespacesRequest{NameContains: nameContains}
	return pages(request, func(request *pb.ListNamespacesRequest) ([]*pb.Namespace, string, error) {
		answer, err := c.namespaces.ListNamespaces(ctx, request)
		return answer.GetNamespaces(), answer.GetNextPageToken(), err
	}, func(request *pb.ListNamespacesRequest, token string) { request.PageToken = token })
}

// UpdateNamespace changes the settings of a namespace and returns it. The update mask of the request names the
// fields; see UpdateNamespaceRequest.
func (c *Client) UpdateNamespace(ctx context.Context, request *pb.UpdateNamespaceRequest) (*pb.Namespace, error) {
	answer, err := c.namespaces.UpdateNamespace(ctx, request)
	return answer.GetNamespace(), err
}

// DeleteNamespaceOptions configure DeleteNamespace.
type DeleteNamespaceOptions struct {
	// Force deletes the namespace even if attempts are running in it.
	Force bool
	// AllowMissing makes deleting a namespace that does not exist succeed, also if this call itself has deleted it
	// and was retried because its response was lost.
	AllowMissing bool
}

// DeleteNamespace deletes a namespace with everything in it. "default" cannot be deleted. options may be nil.
func (c *Client) DeleteNamespace(ctx context.Context, name string, options *DeleteNamespaceOptions) error {
	request := &pb.DeleteNamespaceRequest{Name: name}
	if options != nil {
		request.Force, request.AllowMissing = options.Force, options.AllowMissing
	}
	_, err := c.namespaces.DeleteNamespace(ctx, request)
	return err
}
