package lightningstore

import (
	"cmp"
	"context"
	"iter"
	"time"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/protobuf/types/known/durationpb"
)

// CreateConsumer creates a consumer, a durable subscription to finished rollouts or groups, and returns it. Only the
// name is required. Creating it again with the same fields returns the consumer, whatever it has delivered since; with
// others it is an error that matches [ErrAlreadyExists].
func (c *Client) CreateConsumer(ctx context.Context, consumer *pb.Consumer) (*pb.Consumer, error) {
	answer, err := c.service.CreateConsumer(ctx, &pb.CreateConsumerRequest{Consumer: consumer})
	return answer.GetConsumer(), err
}

// Consumer returns a consumer with its counts.
func (c *Client) Consumer(ctx context.Context, name string) (*pb.Consumer, error) {
	answer, err := c.service.GetConsumer(ctx, &pb.GetConsumerRequest{Name: name})
	return answer.GetConsumer(), err
}

// Consumers yields the consumers, ordered by name. It loads them page by page. An error ends it.
func (c *Client) Consumers(ctx context.Context) iter.Seq2[*pb.Consumer, error] {
	request := &pb.ListConsumersRequest{}
	return pages(request, func(request *pb.ListConsumersRequest) ([]*pb.Consumer, string, error) {
		answer, err := c.service.ListConsumers(ctx, request)
		return answer.GetConsumers(), answer.GetNextPageToken(), err
	}, func(request *pb.ListConsumersRequest, token string) { request.PageToken = token })
}

// UpdateConsumer changes settings of a consumer and returns it. The update mask of the request names the fields; see
// UpdateConsumerRequest. Deliveries keep their deadlines.
func (c *Client) UpdateConsumer(ctx context.Context, request *pb.UpdateConsumerRequest) (*pb.Consumer, error) {
	answer, err := c.service.UpdateConsumer(ctx, request)
	return answer.GetConsumer(), err
}

// DeleteConsumerOptions configure DeleteConsumer.
type DeleteConsumerOptions struct {
	// AllowMissing makes deleting a consumer that does not exist succeed, also if this call itself has deleted it and
	// was retried because its response was lost.
	AllowMissing bool
}

// DeleteConsumer deletes a consumer with its deliveries. Pulls that wait for it fail. options may be nil.
func (c *Client) DeleteConsumer(ctx context.Context, name string, options *DeleteConsumerOptions) error {
	request := &pb.DeleteConsumerRequest{Name: name}
	if options != nil {
		request.AllowMissing = options.AllowMissing
	}
	_, err := c.service.DeleteConsumer(ctx, request)
	return err
}

// PullOptions configure PullFinished. The zero value takes one item, if there is one, and does not wait.
type PullOptions struct {
	// MaxItems is the maximum number of items, at most 1,000. 0: 1. There are fewer if they would not fit into a
	// message.
	MaxItems int32
	// MinItems is the number of items to wait for. 0: 1.
	MinItems int32
	// Wait is the time to wait for them. 0: do not wait.
	Wait time.Duration
	// PartialOK returns fewer than MinItems when the wait is over, rather than none.
	PartialOK bool
	// RequestID makes retries of your own safe: within 10 minutes, a repeat with the same id and options returns the
	// same deliveries, as far as they are not acknowledged. Empty: the client creates one for its own retries.
	RequestID string
}

// PullFinished takes finished rollouts or groups of a consumer: redeliveries first, then new ones, in the order of
// their completion. Without items it returns none when the wait is over, or shortly before the deadline of ctx.
//
// Each delivery must be acknowledged before its AckDeadlineTime; after it, the item is delivered again. A pull whose
// response was lost is repeated with its request id for as long as it waits, and gets the same deliveries. What a pull
// had taken when ctx ended is delivered again after its deadline, or at once to a pull with the same RequestID.
func (c *Client) PullFinished(ctx context.Context, consumer string, options PullOptions) ([]*pb.Delivery, error) {
	request := &pb.PullFinishedRequest{Consumer: consumer, MaxItems: options.MaxItems, MinItems: options.MinItems,
		PartialOk: options.PartialOK, RequestId: options.RequestID}
	if options.Wait <= 0 {
		if options.Wait < 0 {
			request.Wait = durationpb.New(options.Wait) // the server says what is wrong
		}
		answer, err := c.service.PullFinished(ctx, request)
		return answer.GetDeliveries(), err
	}
	request.Wait = durationpb.New(options.Wait)
	until := time.Now().Add(options.Wait)
	ctx, cancel := context.WithDeadline(ctx, until.Add(pollMargin))
	defer cancel()
	return c.pull(ctx, request, until)
}

// ConsumeOptions configure Consume. The zero value takes one item at a time.
type ConsumeOptions struct {
	// MaxItems is the maximum number of items that are taken at a time, at most 1,000. 0: 1.
	MaxItems int32
	// MinItems is the number of items to wait for each time. 0: 1.
	MinItems int32
}

// Consume yields what PullFinished takes, pull after pull, without end. The caller acknowledges the deliveries. Each
// step is one pull, which begins when the caller asks for it: nothing is taken ahead, so no deadline runs unseen.
//
// It resumes after a broken connection, for as long as ctx lasts, and loses nothing. Items are delivered at least once:
// one that is not acknowledged before its deadline comes again, here or to another caller, with a higher DeliveryCount.
// The end of ctx, or a failure that retrying cannot repair, ends it with an error.
func (c *Client) Consume(ctx context.Context, consumer string, options ConsumeOptions,
) iter.Seq2[[]*pb.Delivery, error] {
	return func(yield func([]*pb.Delivery, error) bool) {
		for {
			deliveries, err := c.pull(ctx, &pb.PullFinishedRequest{Consumer: consumer, MaxItems: options.MaxItems,
				MinItems: options.MinItems, Wait: durationpb.New(pollWait)}, time.Time{})
			if err == nil && len(deliveries) == 0 {
				// A server that is shutting down answers so at once, as does one that sees that ctx is about to end.
				if err = sleep(ctx, firstDelay); err == nil {
					continue
				}
			}
			if !yield(deliveries, err) || err != nil {
				return
			}
		}
	}
}

// pull makes a long poll, and repeats it until it is answered, or until a time; zero: for as long as ctx lasts.
func (c *Client) pull(ctx context.Context, request *pb.PullFinishedRequest, until time.Time) ([]*pb.Delivery, error) {
	request.RequestId = cmp.Or(request.RequestId, newRequestID())
	pauses := newDelays(maxDelay)
	for {
		answer, err := c.poll(ctx, request)
		if err == nil {
			return answer.GetDeliveries(), nil
		}
		if !isRetryable(err) || ctx.Err() != nil || pauses.pause(ctx, err) != nil ||
			!until.IsZero() && time.Now().After(until) {
			return nil, orEnded(ctx, err)
		}
		c.log.Debug("pull repeated", "error", err)
	}
}

func (c *Client) poll(ctx context.Context, request *pb.PullFinishedRequest) (*pb.PullFinishedResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, request.GetWait().AsDuration()+pollMargin)
	defer cancel()
	return c.service.PullFinished(ctx, request)
}

// AcknowledgeOptions configure Acknowledge.
type AcknowledgeOptions struct {
	// Outcome says what becomes of the items. Unspecified: CONSUMED. RELEASED delivers them again at once, DROPPED
	// marks them as unusable.
	Outcome pb.AckOutcome
	// Note says why, for people. At most 256 characters.
	Note string
	// RequestID makes retries of your own safe within 10 minutes. Empty: the client creates one for its own retries.
	RequestID string
}

// Acknowledge ends deliveries, all of them or none. Only their ids count: &pb.Delivery{DeliveryId: id} names one. A
// delivery that has ended before is an error that matches [ErrFailedPrecondition], with the reason
// ERROR_REASON_DELIVERY_ENDED: its deadline passed and the item was delivered again, or it was acknowledged. options
// may be nil.
func (c *Client) Acknowledge(ctx context.Context, consumer string, deliveries []*pb.Delivery,
	options *AcknowledgeOptions,
) error {
	request := &pb.AcknowledgeRequest{Consumer: consumer, DeliveryIds: idsOfDeliveries(deliveries)}
	if options != nil {
		request.Outcome, request.Note, request.RequestId = options.Outcome, options.Note, options.RequestID
	}
	_, err := c.service.Acknowledge(ctx, request)
	return err
}

// ModifyAckDeadline moves the deadlines of deliveries to a time from now, at most 7 days, and returns the new deadline.
// Only the ids of the deliveries count. Deliveries that have ended are an error, as in Acknowledge.
func (c *Client) ModifyAckDeadline(ctx context.Context, consumer string, deliveries []*pb.Delivery,
	fromNow time.Duration,
) (time.Time, error) {
	answer, err := c.service.ModifyAckDeadline(ctx, &pb.ModifyAckDeadlineRequest{Consumer: consumer,
		DeliveryIds: idsOfDeliveries(deliveries), AckDeadline: durationpb.New(fromNow)})
	if err != nil {
		return time.Time{}, err
	}
	return answer.GetAckDeadlineTime().AsTime(), nil
}

// Deliveries yields the items of a consumer that were delivered and are not acknowledged, those that match the request,
// by completion number, without the rollouts and groups themselves. It loads them page by page, beginning with the page
// that the request names. An error ends it.
func (c *Client) Deliveries(ctx context.Context, request *pb.ListDeliveriesRequest) iter.Seq2[*pb.Delivery, error] {
	return pages(request, func(request *pb.ListDeliveriesRequest) ([]*pb.Delivery, string, error) {
		answer, err := c.service.ListDeliveries(ctx, request)
		return answer.GetDeliveries(), answer.GetNextPageToken(), err
	}, func(request *pb.ListDeliveriesRequest, token string) { request.PageToken = token })
}

func idsOfDeliveries(deliveries []*pb.Delivery) []string {
	ids := make([]string, len(deliveries))
	for i, delivery := range deliveries {
		ids[i] = delivery.GetDeliveryId()
	}
	return ids
}
