package lightningstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

func names(t *testing.T, client *Client, contains string) []string {
	t.Helper()
	var found []string
	for namespace, err := range client.Namespaces(context.Background(), contains) {
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, namespace.GetName())
	}
	return found
}

func TestNamespacesAreCreatedChangedAndDeleted(t *testing.T) {
	_, address := startServer(t)
	client, ctx := connect(t, address), context.Background()
	settings := &pb.Namespace{Name: "run-1", Description: "first", Labels: map[string]string{"team": "a"}}
	created, err := client.CreateNamespace(ctx, settings)
	if err != nil {
		t.Fatal(err)
	}
	if created.GetName() != "run-1" || created.GetStoreId() == "" || created.GetCreateTime() == nil {
		t.Fatal(created)
	}
	if _, err := client.CreateNamespace(ctx, settings); !errors.Is(err,
		&Error{Code: codes.AlreadyExists, Reason: "ERROR_REASON_NAMESPACE_EXISTS"}) {
		t.Fatal(err)
	}
	changed, err := client.UpdateNamespace(ctx, &pb.UpdateNamespaceRequest{
		Namespace:  &pb.Namespace{Name: "run-1", Description: "second"},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"description"}}})
	if err != nil || changed.GetDescription() != "second" || changed.GetLabels()["team"] != "a" {
		t.Fatal(changed, err)
	}
	if got, err := client.Namespace(ctx, "run-1"); err != nil || got.GetDescription() != "second" {
		t.Fatal(got, err)
	}
	if found := names(t, client, ""); !slices.Equal(found, []string{"default", "run-1"}) {
		t.Fatal(found)
	}

	inside := connectTo(t, address, &Options{Namespace: "run-1"})
	rollouts, err := inside.Enqueue(ctx, RolloutSpec{Input: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Rollout(ctx, rollouts[0].GetRolloutId()); !errors.Is(err, ErrNotFound) {
		t.Fatal("default has a rollout of run-1:", err)
	}

	if err := client.DeleteNamespace(ctx, "run-1", &DeleteNamespaceOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := inside.Rollout(ctx, rollouts[0].GetRolloutId()); !errors.Is(err,
		&Error{Code: codes.NotFound, Reason: "ERROR_REASON_NAMESPACE_NOT_FOUND"}) {
		t.Fatal(err)
	}
	if err := client.DeleteNamespace(ctx, "run-1", nil); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	if err := client.DeleteNamespace(ctx, "run-1", &DeleteNamespaceOptions{AllowMissing: true}); err != nil {
		t.Fatal(err)
	}
}

// directory is a server of namespaces that answers as a test says.
type directory struct {
	pb.UnimplementedNamespaceServiceServer
	onCreate func(*pb.CreateNamespaceRequest) error
	onList   func(*pb.ListNamespacesRequest) (*pb.ListNamespacesResponse, error)
}

func (d *directory) CreateNamespace(_ context.Context, request *pb.CreateNamespaceRequest,
) (*pb.CreateNamespaceResponse, error) {
	return &pb.CreateNamespaceResponse{Namespace: request.GetNamespace()}, d.onCreate(request)
}

func (d *directory) ListNamespaces(_ context.Context, request *pb.ListNamespacesRequest,
) (*pb.ListNamespacesResponse, error) {
	return d.onList(request)
}

func serveNamespaces(t *testing.T, d *directory) *Client {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterNamespaceServiceServer(server, d)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return connect(t, listener.Addr().String())
}

func TestListsOfNamespacesLoadPageByPage(t *testing.T) {
	pages := 0
	client := serveNamespaces(t, &directory{
		onList: func(request *pb.ListNamespacesRequest) (*pb.ListNamespacesResponse, error) {
			if want := []string{"", "1", "2"}[pages]; request.GetPageToken() != want || request.GetNameContains() != "n" {
				return nil, fmt.Errorf("%v instead of page %q", request, want)
			}
			pages++
			response := &pb.ListNamespacesResponse{Namespaces: []*pb.Namespace{{Name: fmt.Sprintf("n%d", pages)}}}
			if pages < 3 {
				response.NextPageToken = fmt.Sprint(pages)
			}
			return response, nil
		}})
	if found := names(t, client, "n"); !slices.Equal(found, []string{"n1", "n2", "n3"}) {
		t.Fatal(found)
	}
	pages = 0
	for range client.Namespaces(context.Background(), "n") {
		break
	}
	if pages != 1 {
		t.Fatal("pages were loaded that are not read")
	}
}

func TestCreationOfANamespaceIsRetriedWithItsRequestID(t *testing.T) {
	var ids []string
	client := serveNamespaces(t, &directory{onCreate: func(request *pb.CreateNamespaceRequest) error {
		ids = append(ids, request.GetRequestId())
		if len(ids) == 1 {
			return errAway
		}
		return nil
	}})
	if _, err := client.CreateNamespace(context.Background(), &pb.Namespace{Name: "run-1"}); err != nil {
		t.Fatal(err)
	}
	if len(ids) != 2 || ids[0] == "" || ids[0] != ids[1] {
		t.Fatal(ids)
	}
}
