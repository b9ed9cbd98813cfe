package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	lightningstore "github.com/lightningstore/lightningstore/client/go"
	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

const defaultTimeout = 30 * time.Second

// call calls a method of any name and kind.
func (d *driver) call(ctx context.Context, client *lightningstore.Client, c command) {
	defer d.cancel(string(c.ID))
	method := methodOf(protoreflect.Name(c.Method))
	if method == nil {
		d.answer(c, answer{"unsupported": fmt.Sprintf("no method %q", c.Method)})
		return
	}
	timeout := defaultTimeout
	if c.Timeout != nil {
		timeout = time.Duration(*c.Timeout * float64(time.Second))
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for key, value := range c.Metadata {
		ctx = metadata.AppendToOutgoingContext(ctx, key, value)
	}
	started := func() { d.answer(c, answer{"started": true}) }
	responses := []json.RawMessage{}
	pass := func(message proto.Message) error {
		text, err := protojson.Marshal(message)
		responses = append(responses, text)
		return err
	}
	var err error
	if made := byMethod[c.Method]; made != nil && len(c.Requests) == 1 {
		var message proto.Message
		if message, err = made(ctx, client, c.Requests[0]); err == nil {
			err = pass(message)
		}
	} else {
		err = exchange(ctx, client.Conn(), method, c.Requests, started, pass)
	}
	what := answer{"responses": responses}
	if err != nil {
		what["error"] = describe(err)
	}
	d.answer(c, what)
}

// methodOf returns the method of a name, which no two services of the contract share; nil if there is none.
func methodOf(name protoreflect.Name) protoreflect.MethodDescriptor {
	services := []protoreflect.ServiceDescriptor{
		pb.File_lightningstore_v1_service_proto.Services().ByName("LightningStoreService"),
		pb.File_lightningstore_v1_namespace_proto.Services().ByName("NamespaceService")}
	for _, service := range services {
		if method := service.Methods().ByName(name); method != nil {
			return method
		}
	}
	return nil
}

// exchange sends the requests and passes each response on. It calls started when the initial metadata of a
// response stream has arrived.
func exchange(ctx context.Context, conn *grpc.ClientConn, method protoreflect.MethodDescriptor,
	requests []json.RawMessage, started func(), pass func(proto.Message) error,
) error {
	messages := make([]proto.Message, len(requests))
	for i, request := range requests {
		message, err := newMessage(method.Input())
		if err != nil {
			return err
		}
		if err := protojson.Unmarshal(request, message); err != nil {
			return err
		}
		messages[i] = message
	}
	response, err := newMessage(method.Output())
	if err != nil {
		return err
	}
	path := fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name())
	if !method.IsStreamingClient() && len(messages) != 1 {
		return fmt.Errorf("%s takes one request, not %d", method.Name(), len(messages))
	}
	if !method.IsStreamingClient() && !method.IsStreamingServer() {
		if err := conn.Invoke(ctx, path, messages[0], response); err != nil {
			return err
		}
		return pass(response)
	}
	description := &grpc.StreamDesc{StreamName: string(method.Name()),
		ClientStreams: method.IsStreamingClient(), ServerStreams: method.IsStreamingServer()}
	stream, err := conn.NewStream(ctx, description, path)
	if err != nil {
		return err
	}
	return converse(stream, method, messages, started, pass)
}

func converse(stream grpc.ClientStream, method protoreflect.MethodDescriptor, messages []proto.Message,
	started func(), pass func(proto.Message) error,
) error {
	for _, message := range messages {
		err := stream.SendMsg(message)
		if errors.Is(err, io.EOF) {
			break // broken: RecvMsg says how
		}
		if err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if method.IsStreamingServer() {
		if header, err := stream.Header(); err == nil && header != nil {
			started()
		}
	}
	for {
		response, err := newMessage(method.Output())
		if err != nil {
			return err
		}
		err = stream.RecvMsg(response)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := pass(response); err != nil {
			return err
		}
		if !method.IsStreamingServer() {
			return nil
		}
	}
}

func newMessage(descriptor protoreflect.MessageDescriptor) (proto.Message, error) {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(descriptor.FullName())
	if err != nil {
		return nil, err
	}
	return kind.New().Interface(), nil
}

// describe returns an error in the form of the driver protocol.
func describe(err error) answer {
	number := status.Code(err)
	if errors.Is(err, context.DeadlineExceeded) {
		number = codes.DeadlineExceeded
	}
	found := answer{"code": code.Code(number).String(), "message": err.Error()}
	var known *lightningstore.Error
	if !errors.As(err, &known) {
		return found
	}
	found["message"] = known.Message
	if known.Reason != "" {
		found["reason"], found["domain"], found["metadata"] = known.Reason, known.Domain, known.Metadata
	}
	if len(known.Fields) > 0 {
		fields := make([]string, len(known.Fields))
		for i, violation := range known.Fields {
			fields[i] = violation.Field
		}
		found["fields"] = fields
	}
	if known.RetryDelay != nil {
		found["retry_delay"] = known.RetryDelay.Seconds()
	}
	return found
}
