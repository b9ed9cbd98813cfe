package lightningstore

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// shared is a server that names an owner in its trailers and counts its calls.
type shared struct {
	pb.UnimplementedLightningStoreServiceServer
	owner string
	calls atomic.Int64
	err   atomic.Pointer[error]
}

func (s *shared) answer(ctx context.Context) error {
	s.calls.Add(1)
	if s.owner != "" {
		_ = grpc.SetTrailer(ctx, metadata.Pairs(ownerKey, s.owner))
	}
	if err := s.err.Load(); err != nil {
		return *err
	}
	return nil
}

func (s *shared) Heartbeat(ctx context.Context, _ *pb.HeartbeatRequest) (*pb.HeartbeatResponse, error) {
	return &pb.HeartbeatResponse{}, s.answer(ctx)
}

func (s *shared) WatchRollouts(_ *pb.WatchRolloutsRequest,
	stream grpc.ServerStreamingServer[pb.WatchRolloutsResponse],
) error {
	if err := s.answer(stream.Context()); err != nil {
		return err
	}
	return stream.Send(&pb.WatchRolloutsResponse{})
}

func share(t *testing.T, owner string) (*shared, string, *grpc.Server) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, server := &shared{owner: owner}, grpc.NewServer()
	pb.RegisterLightningStoreServiceServer(server, s)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return s, listener.Addr().String(), server
}

// settle makes calls until a condition holds.
func settle(t *testing.T, client *Client, holds func() bool) {
	t.Helper()
	for until := time.Now().Add(patience); !holds(); time.Sleep(time.Millisecond) {
		if err := beat(client); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(until) {
			t.Fatal("waited in vain")
		}
	}
}

func TestClientGoesToTheOwnerAndComesBack(t *testing.T) {
	// The owner names another one, as it would after a move: the client does not go on from there.
	owner, address, server := share(t, "127.0.0.1:1")
	first, entrance, _ := share(t, address)
	client := connect(t, entrance)
	settle(t, client, func() bool { return owner.calls.Load() > 0 })
	before := first.calls.Load()
	for range 10 {
		if err := beat(client); err != nil {
			t.Fatal(err)
		}
	}
	stream, err := client.Service().WatchRollouts(context.Background(), &pb.WatchRolloutsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	if first.calls.Load() != before {
		t.Fatal("calls went to the first server, although the client knows the owner")
	}
	server.Stop()
	if err := beat(client); err != nil {
		t.Fatal(err)
	}
	if first.calls.Load() != before+1 {
		t.Fatal("the call did not come back to the first server")
	}
}

func TestErrorsOfTheOwnerAreThoseOfTheCall(t *testing.T) {
	owner, address, _ := share(t, "")
	_, entrance, _ := share(t, address)
	client := connect(t, entrance)
	settle(t, client, func() bool { return owner.calls.Load() > 0 })
	missing := status.Error(codes.NotFound, "no such worker")
	owner.err.Store(&missing)
	var found *Error
	if err := beat(client); !errors.As(err, &found) || found.Code != codes.NotFound {
		t.Fatal(err)
	}
	if client.owner.current.Load() == nil {
		t.Fatal("the client has left the owner")
	}
}

func TestStreamOfAnOwnerThatIsGoneIsUnavailable(t *testing.T) {
	owner, address, _ := share(t, "")
	first, entrance, _ := share(t, address)
	client := connect(t, entrance)
	settle(t, client, func() bool { return owner.calls.Load() > 0 })
	away := errShuttingDown
	owner.err.Store(&away)
	stream, err := client.Service().WatchRollouts(context.Background(), &pb.WatchRolloutsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	before := first.calls.Load()
	if err := beat(client); err != nil || first.calls.Load() != before+1 {
		t.Fatal(err)
	}
}

func TestOwnerThatCannotBeReachedIsLeftAlone(t *testing.T) {
	first, entrance, _ := share(t, "127.0.0.1:1")
	client := connect(t, entrance)
	settle(t, client, func() bool {
		client.owner.mutex.Lock()
		defer client.owner.mutex.Unlock()
		return !client.owner.retryAt.IsZero()
	})
	before := first.calls.Load()
	if err := beat(client); err != nil || first.calls.Load() != before+1 || client.owner.busy {
		t.Fatal(err)
	}
}

func TestCallThatNamesAnotherNamespaceStaysAtTheFirstServer(t *testing.T) {
	owner, address, _ := share(t, "")
	first, entrance, _ := share(t, address)
	client := connect(t, entrance)
	settle(t, client, func() bool { return owner.calls.Load() > 0 })
	before, ctx := first.calls.Load(), metadata.AppendToOutgoingContext(context.Background(), namespaceKey, "run-2")
	if _, err := client.Service().Heartbeat(ctx, &pb.HeartbeatRequest{WorkerId: "w"}); err != nil {
		t.Fatal(err)
	}
	if first.calls.Load() != before+1 {
		t.Fatal("the call went to the owner of another namespace")
	}
}

func TestTrailersLeadToAHostAndAPortAlone(t *testing.T) {
	way := &owner{dial: func(address string) (*grpc.ClientConn, error) {
		return nil, errors.New("not dialed: " + address)
	}}
	for _, address := range []string{"", "x", "unix:/run/some.sock", "unix:1", "dns://a/b:1", "a:1,b:2", "a b:1",
		"[::1", "a:1\n"} {
		way.learn(metadata.Pairs(ownerKey, address))
		if way.busy || !way.retryAt.IsZero() {
			t.Fatal(address)
		}
	}
	for _, address := range []string{"127.0.0.1:1", "[::1]:1", "store-2.ns_a.svc:1"} {
		if !ownerAddress.MatchString(address) {
			t.Fatal(address)
		}
	}
}
