package lightningstore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Metadata key that names the namespace of a call.
const namespaceKey = "x-lightning-namespace"

// The values of the service config.
const (
	maxTries      = 5
	maxRetryDelay = 2 * time.Second
)

// newRequestID returns a random id.
func newRequestID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	return hex.EncodeToString(id[:])
}

// withRequestID returns the request with a request_id, if its type has one and the caller did not set it. In
// that case it returns a shallow copy: the caller's message, which may be sent again on purpose, does not
// change.
func withRequestID(request any) any {
	message, ok := request.(proto.Message)
	if !ok {
		return request
	}
	from := message.ProtoReflect()
	field := from.Descriptor().Fields().ByName("request_id")
	if field == nil || from.Get(field).String() != "" {
		return request
	}
	to := from.New()
	from.Range(func(other protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		to.Set(other, value)
		return true
	})
	to.SetUnknown(from.GetUnknown())
	to.Set(field, protoreflect.ValueOfString(newRequestID()))
	return to.Interface()
}

// interceptor is what a client does with each of its calls.
type interceptor struct {
	contact   *contact
	owner     *owner
	namespace string // of calls that do not name their own; may be empty
}

// route returns the context of a call and the connection to the owner of its namespace; nil: the first connection. The
// owner is that of the client's namespace: ours is false for a call that names its own.
func (i *interceptor) route(ctx context.Context) (routed context.Context, used *grpc.ClientConn, ours bool) {
	if named, _ := metadata.FromOutgoingContext(ctx); len(named.Get(namespaceKey)) > 0 {
		return ctx, nil, false
	}
	return i.inNamespace(ctx), i.owner.current.Load(), true
}

// inNamespace returns a context with the metadata that names the namespace of a call.
func (i *interceptor) inNamespace(ctx context.Context) context.Context {
	if i.namespace == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, namespaceKey, i.namespace)
}

// unary makes a call. gRPC retries by status codes only. This function retries, equally often, the
// calls whose error message shows that the connection broke.
func (i *interceptor) unary(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn,
	invoke grpc.UnaryInvoker, options ...grpc.CallOption,
) error {
	request = withRequestID(request)
	named := ctx
	i.contact.called()
	pauses := newDelays(maxRetryDelay)
	for tries := 1; ; tries++ {
		ctx, used, ours := i.route(named)
		var ended error
		if used != nil {
			ended = used.Invoke(ctx, method, request, reply, options...)
		} else {
			var trailer metadata.MD
			ended = invoke(ctx, method, request, reply, conn, append(slices.Clip(options), grpc.Trailer(&trailer))...)
			if ours {
				i.owner.learn(trailer)
			}
		}
		if ended == nil {
			i.contact.end()
			return nil
		}
		if i.owner.failed(ctx, used, ended) {
			continue
		}
		err := convert(ctx, ended)
		code := status.Code(ended)
		isRepeated := code == codes.Unavailable || code == codes.Canceled // as the service config says
		if isRepeated || !errors.Is(err, ErrUnavailable) || tries == maxTries || pauses.pause(ctx, err) != nil {
			return err
		}
	}
}

func (i *interceptor) stream(ctx context.Context, description *grpc.StreamDesc, conn *grpc.ClientConn, method string,
	open grpc.Streamer, options ...grpc.CallOption,
) (grpc.ClientStream, error) {
	i.contact.called()
	routed, used, ours := i.route(ctx)
	if used != nil {
		stream, err := used.NewStream(routed, description, method, options...)
		if err == nil {
			return convertingStream{ClientStream: stream, ctx: ctx, calls: i, used: used}, nil
		}
		if !i.owner.failed(ctx, used, err) {
			return nil, convert(ctx, err)
		}
	}
	stream, err := open(routed, description, conn, method, options...)
	if err != nil {
		return nil, convert(ctx, err)
	}
	return convertingStream{stream, ctx, i, nil, ours && !description.ServerStreams}, nil
}

// convertingStream converts the errors of a stream. ctx is the context of the caller, because gRPC cancels
// the stream's own context when the stream ends.
type convertingStream struct {
	grpc.ClientStream
	ctx   context.Context
	calls *interceptor
	used  *grpc.ClientConn // nil: the first connection
	// learns is true for a call whose one response is its end, and so the time to look at the trailer.
	learns bool
}

func (s convertingStream) SendMsg(message any) error {
	return s.convert(s.ClientStream.SendMsg(message))
}

func (s convertingStream) RecvMsg(message any) error {
	err := s.ClientStream.RecvMsg(message)
	if err == nil {
		s.calls.contact.end()
		if s.learns {
			s.calls.owner.learn(s.Trailer())
		}
	}
	return s.convert(err)
}

func (s convertingStream) CloseSend() error { return s.convert(s.ClientStream.CloseSend()) }

func (s convertingStream) convert(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	if s.calls.owner.failed(s.ctx, s.used, err) {
		err = status.Error(codes.Unavailable, "the connection to the owner of the namespace has ended: "+err.Error())
	}
	return convert(s.ctx, err)
}
