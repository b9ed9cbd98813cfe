package main

import (
	"context"
	"encoding/json"
	"iter"

	lightningstore "github.com/lightningstore/lightningstore/client/go"
	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// byMethod has the calls that are made with the methods of the client, rather than from their descriptors. The others
// have no such method, or one that sends the request unchanged.
var byMethod = map[string]func(context.Context, *lightningstore.Client, json.RawMessage) (proto.Message, error){
	"CreateConsumer":    with(createConsumer),
	"GetConsumer":       with(getConsumer),
	"UpdateConsumer":    with(updateConsumer),
	"DeleteConsumer":    with(deleteConsumer),
	"PullFinished":      with(pullFinished),
	"Acknowledge":       with(acknowledge),
	"ModifyAckDeadline": with(modifyAckDeadline),
	"ListDeliveries":    with(listDeliveries),
}

// with decodes the request of a call.
func with[R any, P interface {
	*R
	proto.Message
}](call func(context.Context, *lightningstore.Client, P) (proto.Message, error),
) func(context.Context, *lightningstore.Client, json.RawMessage) (proto.Message, error) {
	return func(ctx context.Context, client *lightningstore.Client, text json.RawMessage) (proto.Message, error) {
		request := P(new(R))
		if err := protojson.Unmarshal(text, request); err != nil {
			return nil, err
		}
		return call(ctx, client, request)
	}
}

func createConsumer(ctx context.Context, client *lightningstore.Client, request *pb.CreateConsumerRequest,
) (proto.Message, error) {
	consumer, err := client.CreateConsumer(ctx, request.GetConsumer())
	return &pb.CreateConsumerResponse{Consumer: consumer}, err
}

func getConsumer(ctx context.Context, client *lightningstore.Client, request *pb.GetConsumerRequest,
) (proto.Message, error) {
	consumer, err := client.Consumer(ctx, request.GetName())
	return &pb.GetConsumerResponse{Consumer: consumer}, err
}

func updateConsumer(ctx context.Context, client *lightningstore.Client, request *pb.UpdateConsumerRequest,
) (proto.Message, error) {
	consumer, err := client.UpdateConsumer(ctx, request)
	return &pb.UpdateConsumerResponse{Consumer: consumer}, err
}

func deleteConsumer(ctx context.Context, client *lightningstore.Client, request *pb.DeleteConsumerRequest,
) (proto.Message, error) {
	options := &lightningstore.DeleteConsumerOptions{AllowMissing: request.GetAllowMissing()}
	return &pb.DeleteConsumerResponse{}, client.DeleteConsumer(ctx, request.GetName(), options)
}

func pullFinished(ctx context.Context, client *lightningstore.Client, request *pb.PullFinishedRequest,
) (proto.Message, error) {
	deliveries, err := client.PullFinished(ctx, request.GetConsumer(), lightningstore.PullOptions{
		MaxItems: request.GetMaxItems(), MinItems: request.GetMinItems(), Wait: request.GetWait().AsDuration(),
		PartialOK: request.GetPartialOk(), RequestID: request.GetRequestId()})
	return &pb.PullFinishedResponse{Deliveries: deliveries}, err
}

func acknowledge(ctx context.Context, client *lightningstore.Client, request *pb.AcknowledgeRequest,
) (proto.Message, error) {
	options := &lightningstore.AcknowledgeOptions{Outcome: request.GetOutcome(), Note: request.GetNote(),
		RequestID: request.GetRequestId()}
	return &pb.AcknowledgeResponse{},
		client.Acknowledge(ctx, request.GetConsumer(), named(request.GetDeliveryIds()), options)
}

func modifyAckDeadline(ctx context.Context, client *lightningstore.Client, request *pb.ModifyAckDeadlineRequest,
) (proto.Message, error) {
	deadline, err := client.ModifyAckDeadline(ctx, request.GetConsumer(), named(request.GetDeliveryIds()),
		request.GetAckDeadline().AsDuration())
	return &pb.ModifyAckDeadlineResponse{AckDeadlineTime: timestamppb.New(deadline)}, err
}

func listDeliveries(ctx context.Context, client *lightningstore.Client, request *pb.ListDeliveriesRequest,
) (proto.Message, error) {
	deliveries, err := all(client.Deliveries(ctx, request))
	return &pb.ListDeliveriesResponse{Deliveries: deliveries}, err
}

func named(ids []string) []*pb.Delivery {
	deliveries := make([]*pb.Delivery, len(ids))
	for i, id := range ids {
		deliveries[i] = &pb.Delivery{DeliveryId: id}
	}
	return deliveries
}

func all[T any](items iter.Seq2[T, error]) ([]T, error) {
	var found []T
	for item, err := range items {
		if err != nil {
			return nil, err
		}
		found = append(found, item)
	}
	return found, nil
}
