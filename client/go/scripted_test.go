package lightningstore

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// patience is how long tests wait for an event that has to come.
const patience = 30 * time.Second

var (
	errAway         = status.Error(codes.Unavailable, "away")
	errShuttingDown = status.Error(codes.Canceled, "CANCELLED")
	errReset        = status.Error(codes.Internal, "stream terminated by RST_STREAM with error code: INTERNAL_ERROR")
)

type waitStream = grpc.ServerStreamingServer[pb.WaitForRolloutsResponse]

// scripted is a server that answers as a test says. What is not scripted has a harmless default: one claim
// of each rollout in the queue, no stops.
type scripted struct {
	pb.UnimplementedLightningStoreServiceServer

	onDequeue   func(*pb.DequeueRolloutsRequest) (*pb.DequeueRolloutsResponse, error)
	onHeartbeat func(*pb.HeartbeatRequest) (*pb.HeartbeatResponse, error)
	onIngest    func([]*pb.SpanBatch) (*pb.IngestResult, error)
	onUpdate    func(*pb.UpdateAttemptRequest) (*pb.UpdateAttemptResponse, error)
	onEnqueue   func(*pb.EnqueueRolloutsRequest) (*pb.EnqueueRolloutsResponse, error)
	onRollout   func(*pb.GetRolloutRequest) (*pb.GetRolloutResponse, error)
	onWait      func(*pb.WaitForRolloutsRequest, waitStream) error
	onQuery     func(tries int, stream grpc.ServerStreamingServer[pb.QuerySpansResponse]) error
	onResources func(*pb.GetResourcesRequest) (*pb.GetResourcesResponse, error)
	onWatch     func(*pb.WatchGroupsRequest, grpc.ServerStreamingServer[pb.WatchGroupsResponse]) error
	onTriplets  func(*pb.ListTripletsRequest, tripletStream) error
	onSamples   func(*pb.ListSamplesRequest, sampleStream) error
	onPull      func(context.Context, *pb.PullFinishedRequest) (*pb.PullFinishedResponse, error)

	queue   chan *pb.Rollout
	updates chan *pb.UpdateAttemptRequest
	mu      sync.Mutex
	log     []string // what happened, in order
	spans   []string // names of stored spans
	queries int
}

// serve starts a scripted server and returns it with a client of it.
func serve(t *testing.T, s *scripted) *Client {
	t.Helper()
	s.queue = make(chan *pb.Rollout, 100)
	s.updates = make(chan *pb.UpdateAttemptRequest, 100)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterLightningStoreServiceServer(server, s)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return connect(t, listener.Addr().String())
}

func connect(t *testing.T, address string) *Client {
	t.Helper()
	client, err := New(address, &Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func (s *scripted) ListTriplets(request *pb.ListTripletsRequest, stream tripletStream) error {
	return s.onTriplets(request, stream)
}

func (s *scripted) ListSamples(request *pb.ListSamplesRequest, stream sampleStream) error {
	return s.onSamples(request, stream)
}

func claimOf(id, input string) *pb.Rollout {
	return &pb.Rollout{RolloutId: id, InputJson: []byte(input), Config: &pb.RolloutConfig{MaxAttempts: 1},
		LatestAttempt: &pb.Attempt{RolloutId: id, AttemptId: "at-1", SequenceNumber: 1}}
}

func (s *scripted) note(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, what)
}

func (s *scripted) notes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.log...)
}

func (s *scripted) DequeueRollouts(ctx context.Context, request *pb.DequeueRolloutsRequest,
) (*pb.DequeueRolloutsResponse, error) {
	if s.onDequeue != nil {
		return s.onDequeue(request)
	}
	select {
	case rollout := <-s.queue:
		return &pb.DequeueRolloutsResponse{Rollouts: []*pb.Rollout{rollout}}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(300 * time.Millisecond): // the end of a long poll
		return &pb.DequeueRolloutsResponse{}, nil
	}
}

func (s *scripted) Heartbeat(_ context.Context, request *pb.HeartbeatRequest) (*pb.HeartbeatResponse, error) {
	if s.onHeartbeat != nil {
		return s.onHeartbeat(request)
	}
	return &pb.HeartbeatResponse{}, nil
}

func (s *scripted) GetAttempt(_ context.Context, request *pb.GetAttemptRequest) (*pb.GetAttemptResponse, error) {
	return &pb.GetAttemptResponse{Attempt: &pb.Attempt{RolloutId: request.RolloutId, AttemptId: request.AttemptId,
		Status: pb.AttemptStatus_ATTEMPT_STATUS_RUNNING}}, nil
}

func (s *scripted) IngestSpans(stream grpc.ClientStreamingServer[pb.IngestSpansRequest, pb.IngestSpansResponse]) error {
	var batches []*pb.SpanBatch
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		batches = append(batches, request.GetBatch())
	}
	result, err := s.store(batches)
	if err != nil {
		return err
	}
	return stream.SendAndClose(&pb.IngestSpansResponse{Result: result})
}

func (s *scripted) store(batches []*pb.SpanBatch) (*pb.IngestResult, error) {
	if s.onIngest != nil {
		return s.onIngest(batches)
	}
	return s.keep(batches), nil
}

// keep stores spans as the server does.
func (s *scripted) keep(batches []*pb.SpanBatch) *pb.IngestResult {
	s.mu.Lock()
	defer s.mu.Unlock()
	result := &pb.IngestResult{}
	for _, batch := range batches {
		for _, span := range batch.GetSpans() {
			s.spans = append(s.spans, span.GetName())
			s.log = append(s.log, "span "+span.GetName())
			result.AcceptedCount++
		}
	}
	return result
}

func (s *scripted) stored() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.spans...)
}

func (s *scripted) UpdateAttempt(_ context.Context, request *pb.UpdateAttemptRequest,
) (*pb.UpdateAttemptResponse, error) {
	if s.onUpdate != nil {
		if answer, err := s.onUpdate(request); err != nil {
			return answer, err
		}
	}
	s.note("update " + request.GetAttempt().GetStatus().String())
	s.updates <- request
	return &pb.UpdateAttemptResponse{Attempt: request.GetAttempt()}, nil
}

func (s *scripted) GetRollout(_ context.Context, request *pb.GetRolloutRequest) (*pb.GetRolloutResponse, error) {
	return s.onRollout(request)
}

func (s *scripted) GetResources(_ context.Context, request *pb.GetResourcesRequest) (*pb.GetResourcesResponse, error) {
	if s.onResources == nil {
		return nil, status.Error(codes.Unimplemented, "not scripted")
	}
	return s.onResources(request)
}

func (s *scripted) WatchGroups(request *pb.WatchGroupsRequest, stream grpc.ServerStreamingServer[pb.WatchGroupsResponse],
) error {
	return s.onWatch(request, stream)
}

func (s *scripted) EnqueueRollouts(_ context.Context, request *pb.EnqueueRolloutsRequest,
) (*pb.EnqueueRolloutsResponse, error) {
	return s.onEnqueue(request)
}

func (s *scripted) PullFinished(ctx context.Context, request *pb.PullFinishedRequest) (*pb.PullFinishedResponse, error) {
	return s.onPull(ctx, request)
}

func (s *scripted) WaitForRollouts(request *pb.WaitForRolloutsRequest, stream waitStream) error {
	if s.onWait == nil { // nothing finishes
		<-stream.Context().Done()
		return stream.Context().Err()
	}
	return s.onWait(request, stream)
}

func (s *scripted) QuerySpans(_ *pb.QuerySpansRequest, stream grpc.ServerStreamingServer[pb.QuerySpansResponse]) error {
	s.queries++ // one after the other
	return s.onQuery(s.queries, stream)
}

// next waits for an event.
func next[T any](t *testing.T, events <-chan T, what string) T {
	t.Helper()
	select {
	case event := <-events:
		return event
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
		panic("not reached")
	}
}

// start runs a runner until the test ends, and returns the channel of what Run returns.
func start(t *testing.T, runner *Runner) <-chan error {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	gone := make(chan struct{})
	go func() {
		ended <- runner.Run(ctx)
		close(gone)
	}()
	t.Cleanup(func() {
		cancel()
		next(t, gone, "the end of the runner")
	})
	return ended
}
