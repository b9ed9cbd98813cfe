package lightningstore

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

var errEnded = &Error{Code: codes.FailedPrecondition, Reason: "ERROR_REASON_DELIVERY_ENDED"}

// finish makes rollouts that have succeeded, in this order.
func finish(t *testing.T, client *Client, ids ...string) {
	t.Helper()
	ctx := context.Background()
	for _, id := range ids {
		spec := &pb.RolloutSpec{RolloutId: id, InputJson: []byte("1")}
		if _, err := client.Service().StartRollout(ctx, &pb.StartRolloutRequest{Rollout: spec}); err != nil {
			t.Fatal(err)
		}
		if _, err := client.UpdateAttempt(ctx, id, Latest, AttemptUpdate{Status: succeeded}); err != nil {
			t.Fatal(err)
		}
	}
}

func itemsOf(deliveries []*pb.Delivery) (ids []string) {
	for _, delivery := range deliveries {
		ids = append(ids, delivery.GetItemId())
	}
	return ids
}

// TestConsumers runs with one server, each part in a namespace of its own.
func TestConsumers(t *testing.T) {
	_, address := startServer(t, "--port", "0", "--backend", "memory")
	outside := connect(t, address)
	for name, test := range map[string]func(*testing.T, *Client){
		"settings":   consumersAreCreatedChangedAndDeleted,
		"deliveries": deliveriesAreAcknowledged,
		"lost":       pullsWhoseResponsesAreLost,
		"namespaces": func(t *testing.T, inside *Client) { consumersBelongToANamespace(t, inside, outside) },
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := outside.CreateNamespace(context.Background(), &pb.Namespace{Name: name}); err != nil {
				t.Fatal(err)
			}
			test(t, connectTo(t, address, &Options{Namespace: name}))
		})
	}
}

func consumersAreCreatedChangedAndDeleted(t *testing.T, client *Client) {
	ctx := context.Background()
	settings := &pb.Consumer{Name: "trainer", AfterCompletionNumber: proto.Int64(0), MaxLag: proto.Int64(4), MaxOutstanding: 8,
		Filter: &pb.ConsumerFilter{Queues: []string{"gpu"}}}
	for range 2 { // the second time it exists
		created, err := client.CreateConsumer(ctx, settings)
		if err != nil || created.GetAckDeadline().AsDuration() != 10*time.Minute || created.GetMaxLag() != 4 {
			t.Fatal(created, err)
		}
	}
	if _, err := client.CreateConsumer(ctx, &pb.Consumer{Name: "trainer"}); !errors.Is(err, ErrAlreadyExists) {
		t.Fatal(err)
	}
	changed, err := client.UpdateConsumer(ctx, &pb.UpdateConsumerRequest{
		Consumer:   &pb.Consumer{Name: "trainer", MaxDeliveries: 3},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"max_deliveries", "max_lag"}}})
	if err != nil || changed.GetMaxDeliveries() != 3 || changed.MaxLag != nil || changed.GetMaxOutstanding() != 8 {
		t.Fatal(changed, err)
	}
	if got, err := client.Consumer(ctx, "trainer"); err != nil || !proto.Equal(got, changed) {
		t.Fatal(got, err)
	}
	if _, err := client.CreateConsumer(ctx, &pb.Consumer{Name: "archive"}); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, consumer := range all(t, client.Consumers(ctx)) {
		names = append(names, consumer.GetName())
	}
	if !slices.Equal(names, []string{"archive", "trainer"}) {
		t.Fatal(names)
	}
	if err := client.DeleteConsumer(ctx, "archive", nil); err != nil {
		t.Fatal(err)
	}
	if err := client.DeleteConsumer(ctx, "archive", nil); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	if err := client.DeleteConsumer(ctx, "archive", &DeleteConsumerOptions{AllowMissing: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.PullFinished(ctx, "archive", PullOptions{}); !errors.Is(err,
		&Error{Code: codes.NotFound, Reason: "ERROR_REASON_CONSUMER_NOT_FOUND"}) {
		t.Fatal(err)
	}
}

func deliveriesAreAcknowledged(t *testing.T, client *Client) {
	ctx := context.Background()
	if _, err := client.CreateConsumer(ctx, &pb.Consumer{Name: "trainer"}); err != nil {
		t.Fatal(err)
	}
	finish(t, client, "a", "b", "c")
	pull := PullOptions{MaxItems: 5, MinItems: 3, Wait: patience, RequestID: "mine"}
	first, err := client.PullFinished(ctx, "trainer", pull)
	if err != nil || !slices.Equal(itemsOf(first), []string{"a", "b", "c"}) || first[0].GetRollout().GetRolloutId() != "a" {
		t.Fatal(first, err)
	}
	again, err := client.PullFinished(ctx, "trainer", pull)
	if err != nil || !slices.Equal(idsOfDeliveries(again), idsOfDeliveries(first)) {
		t.Fatal(again, err)
	}
	before := time.Now()
	moved, err := client.ModifyAckDeadline(ctx, "trainer", first[:1], time.Hour)
	if err != nil || moved.Before(before.Add(50*time.Minute)) {
		t.Fatal(moved, err)
	}
	if err := client.Acknowledge(ctx, "trainer", first[:1], nil); err != nil {
		t.Fatal(err)
	}
	if err := client.Acknowledge(ctx, "trainer", first, nil); !errors.Is(err, errEnded) { // all of them or none
		t.Fatal(err)
	}
	release := &AcknowledgeOptions{Outcome: pb.AckOutcome_ACK_OUTCOME_RELEASED, Note: "later", RequestID: "mine"}
	named := []*pb.Delivery{{DeliveryId: first[1].GetDeliveryId()}, {DeliveryId: first[2].GetDeliveryId()}}
	for range 2 { // a repeat changes nothing
		if err := client.Acknowledge(ctx, "trainer", named, release); err != nil {
			t.Fatal(err)
		}
	}
	waiting := all(t, client.Deliveries(ctx, &pb.ListDeliveriesRequest{Consumer: "trainer", PageSize: 1,
		States: []pb.DeliveryState{pb.DeliveryState_DELIVERY_STATE_REDELIVERY}}))
	if !slices.Equal(itemsOf(waiting), []string{"b", "c"}) || waiting[0].GetNote() != "later" {
		t.Fatal(waiting)
	}
	none, err := client.PullFinished(ctx, "trainer", PullOptions{MaxItems: 3, MinItems: 3})
	if err != nil || len(none) != 0 {
		t.Fatal(none, err)
	}
	rest, err := client.PullFinished(ctx, "trainer", PullOptions{MaxItems: 3, MinItems: 3, PartialOK: true})
	if err != nil || !slices.Equal(itemsOf(rest), []string{"b", "c"}) || rest[0].GetDeliveryCount() != 2 {
		t.Fatal(rest, err)
	}
	if _, err := client.PullFinished(ctx, "trainer", PullOptions{Wait: -time.Second}); !errors.Is(err,
		&Error{Code: codes.InvalidArgument}) {
		t.Fatal(err)
	}
}

func consumersBelongToANamespace(t *testing.T, inside, outside *Client) {
	ctx := context.Background()
	for _, client := range []*Client{outside, inside} {
		if _, err := client.CreateConsumer(ctx, &pb.Consumer{Name: "trainer"}); err != nil {
			t.Fatal(err)
		}
	}
	finish(t, inside, "a")
	if none, err := outside.PullFinished(ctx, "trainer", PullOptions{}); err != nil || len(none) != 0 {
		t.Fatal(none, err)
	}
	found, err := inside.PullFinished(ctx, "trainer", PullOptions{})
	if err != nil || !slices.Equal(itemsOf(found), []string{"a"}) {
		t.Fatal(found, err)
	}
	if err := outside.Acknowledge(ctx, "trainer", found, nil); !errors.Is(err, errEnded) {
		t.Fatal(err)
	}
}

// pullsWhoseResponsesAreLost loses responses of the server.
func pullsWhoseResponsesAreLost(t *testing.T, behind *Client) {
	ctx := context.Background()
	if _, err := behind.CreateConsumer(ctx, &pb.Consumer{Name: "trainer"}); err != nil {
		t.Fatal(err)
	}
	finish(t, behind, "a", "b", "c", "d")
	var taken []string // the ids of all deliveries, in the order in which the server made them
	lost := 0
	server := &scripted{onPull: func(ctx context.Context, request *pb.PullFinishedRequest) (*pb.PullFinishedResponse, error) {
		answer, err := behind.Service().PullFinished(ctx, request)
		for _, id := range idsOfDeliveries(answer.GetDeliveries()) {
			if !slices.Contains(taken, id) {
				taken = append(taken, id)
			}
		}
		if lost++; lost%2 == 1 { // every other one
			return nil, errReset
		}
		return answer, err
	}}
	client := serve(t, server)
	seen, err := client.PullFinished(ctx, "trainer", PullOptions{MaxItems: 2, Wait: patience})
	if err != nil || !slices.Equal(itemsOf(seen), []string{"a", "b"}) {
		t.Fatal(seen, err)
	}
	for deliveries, err := range client.Consume(ctx, "trainer", ConsumeOptions{MaxItems: 1}) {
		if err != nil {
			t.Fatal(err)
		}
		if seen = append(seen, deliveries...); len(seen) == 4 {
			break
		}
	}
	if !slices.Equal(itemsOf(seen), []string{"a", "b", "c", "d"}) || !slices.Equal(idsOfDeliveries(seen), taken) {
		t.Fatal(seen, taken)
	}
	if err := behind.Acknowledge(ctx, "trainer", seen, nil); err != nil {
		t.Fatal(err)
	}
}

func TestPullsThatBreakAreRepeatedUnchanged(t *testing.T) {
	busy, err := status.New(codes.ResourceExhausted, "busy").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(1)})
	if err != nil {
		t.Fatal(err)
	}
	var asked []*pb.PullFinishedRequest
	server := &scripted{onPull: func(ctx context.Context, request *pb.PullFinishedRequest) (*pb.PullFinishedResponse, error) {
		asked = append(asked, request)
		if until, _ := ctx.Deadline(); time.Until(until) < 50*time.Minute {
			t.Error("the deadline of the call ends the wait:", until)
		}
		switch len(asked) {
		case 1:
			return nil, errReset
		case 2, 3: // such errors are not retried by other calls
			return nil, busy.Err()
		}
		return &pb.PullFinishedResponse{Deliveries: []*pb.Delivery{{DeliveryId: "de-1"}}}, nil
	}}
	found, err := serve(t, server).PullFinished(context.Background(), "trainer", PullOptions{Wait: time.Hour})
	if err != nil || !slices.Equal(idsOfDeliveries(found), []string{"de-1"}) {
		t.Fatal(found, err)
	}
	if len(asked) != 4 {
		t.Fatal(asked)
	}
	for _, request := range asked {
		if request.GetRequestId() == "" || !proto.Equal(request, asked[0]) {
			t.Fatal(request, asked[0])
		}
	}
}

func TestCancelledPullsEnd(t *testing.T) {
	began, ended := make(chan struct{}, 10), make(chan struct{}, 10)
	client := serve(t, &scripted{onPull: func(ctx context.Context, _ *pb.PullFinishedRequest) (*pb.PullFinishedResponse, error) {
		began <- struct{}{}
		<-ctx.Done()
		ended <- struct{}{}
		return nil, ctx.Err()
	}})
	for name, pull := range map[string]func(context.Context) error{
		"pull": func(ctx context.Context) error {
			_, err := client.PullFinished(ctx, "trainer", PullOptions{Wait: time.Hour})
			return err
		},
		"consume": func(ctx context.Context) (failure error) {
			for _, err := range client.Consume(ctx, "trainer", ConsumeOptions{}) {
				failure = errors.Join(failure, err)
			}
			return failure
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			result := make(chan error, 1)
			go func() { result <- pull(ctx) }()
			next(t, began, "the call")
			cancel()
			if err := next(t, result, "the end"); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			next(t, ended, "the server's end of the call")
		})
	}
}

func TestConsumingTakesNothingAhead(t *testing.T) {
	var asked []*pb.PullFinishedRequest
	client := serve(t, &scripted{onPull: func(_ context.Context, request *pb.PullFinishedRequest) (*pb.PullFinishedResponse, error) {
		asked = append(asked, request)
		switch len(asked) {
		case 2: // the end of a long poll
			return &pb.PullFinishedResponse{}, nil
		case 4:
			return nil, ErrNotFound.GRPCStatus().Err()
		}
		return &pb.PullFinishedResponse{Deliveries: []*pb.Delivery{{}, {}}}, nil
	}})
	steps := []int{1, 3, 4}
	var failure error
	for deliveries, err := range client.Consume(context.Background(), "trainer", ConsumeOptions{MaxItems: 7, MinItems: 2}) {
		if len(asked) != steps[0] || (len(deliveries) == 2) == (err != nil) {
			t.Fatal(len(asked), deliveries, err)
		}
		steps, failure = steps[1:], err
	}
	if len(steps) != 0 || !errors.Is(failure, ErrNotFound) {
		t.Fatal(steps, failure)
	}
	ids := map[string]bool{}
	for _, request := range asked {
		ids[request.GetRequestId()] = true
		if request.GetMaxItems() != 7 || request.GetMinItems() != 2 || request.GetWait().AsDuration() != pollWait ||
			request.GetPartialOk() {
			t.Fatal(request)
		}
	}
	if len(ids) != 4 {
		t.Fatal(ids)
	}
}
