package lightningstore

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
)

// labelled is a call and the namespaces that it named.
type labelled struct {
	method     string
	namespaces []string
}

// recorder starts a server that implements nothing and records the namespaces of all calls.
func recorder(t *testing.T) (address string, calls <-chan labelled) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	recorded := make(chan labelled, 100)
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		recorded <- labelled{method, metadata.ValueFromIncomingContext(stream.Context(), namespaceKey)}
		return status.Error(codes.Unimplemented, "recorded only")
	}))
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	return listener.Addr().String(), recorded
}

func connectTo(t *testing.T, address string, options *Options) *Client {
	t.Helper()
	client, err := New(address, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func TestEveryCallNamesTheNamespace(t *testing.T) {
	address, calls := recorder(t)
	client := connectTo(t, address, &Options{Namespace: "run-1"})
	ctx := context.Background()
	service := pb.LightningStoreService_ServiceDesc
	want := func(method string) {
		t.Helper()
		if got := next(t, calls, method); got.method != method || !slices.Equal(got.namespaces, []string{"run-1"}) {
			t.Fatalf("%s: %v", method, got)
		}
	}
	for _, method := range service.Methods {
		name := "/" + service.ServiceName + "/" + method.MethodName
		_ = client.Conn().Invoke(ctx, name, &emptypb.Empty{}, &emptypb.Empty{})
		want(name)
	}
	for i := range service.Streams {
		name := "/" + service.ServiceName + "/" + service.Streams[i].StreamName
		if _, err := client.Conn().NewStream(ctx, &service.Streams[i], name); err != nil {
			t.Fatal(err)
		}
		want(name)
	}
	if len(service.Methods)+len(service.Streams) < 20 {
		t.Fatal("methods are missing")
	}
}

func TestExporterNamesTheNamespace(t *testing.T) {
	address, calls := recorder(t)
	exporter := NewSpanExporter(connectTo(t, address, &Options{Namespace: "run-1"}),
		&ExporterOptions{RolloutID: "ro-1", AttemptID: "at-1"})
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
	_, span := provider.Tracer("test").Start(context.Background(), "step")
	span.End()
	if got := next(t, calls, "the spans"); !strings.HasSuffix(got.method, "/IngestSpans") ||
		!slices.Equal(got.namespaces, []string{"run-1"}) {
		t.Fatal(got)
	}
	_ = provider.Shutdown(context.Background())
}

func TestClientsWithoutANamespaceNameNone(t *testing.T) {
	address, calls := recorder(t)
	_ = beat(connectTo(t, address, nil))
	if got := next(t, calls, "the call"); got.namespaces != nil {
		t.Fatal(got)
	}
}

func TestEnvironmentNamesTheNamespace(t *testing.T) {
	address, calls := recorder(t)
	t.Setenv("LIGHTNINGSTORE_NAMESPACE", "run-3")
	for want, options := range map[string]*Options{"run-3": nil, "run-1": {Namespace: "run-1"}} {
		_ = beat(connectTo(t, address, options))
		if got := next(t, calls, "the call"); !slices.Equal(got.namespaces, []string{want}) {
			t.Fatal(got)
		}
	}
	t.Setenv("LIGHTNINGSTORE_NAMESPACE", "Run 3")
	if _, err := New(address, nil); err == nil {
		t.Fatal("an invalid namespace of the environment was accepted")
	}
}

func TestCallThatNamesItsOwnNamespaceNamesOnlyThat(t *testing.T) {
	address, calls := recorder(t)
	client := connectTo(t, address, &Options{Namespace: "run-1"})
	ctx := metadata.AppendToOutgoingContext(context.Background(), namespaceKey, "run-2", "other", "key")
	_, _ = client.Service().Heartbeat(ctx, &pb.HeartbeatRequest{WorkerId: "w"})
	if got := next(t, calls, "the call"); !slices.Equal(got.namespaces, []string{"run-2"}) {
		t.Fatal(got)
	}
}

func TestNamesOfNamespacesAreChecked(t *testing.T) {
	longest := strings.Repeat("x", 63)
	for _, name := range []string{"a", "0", "run-1", "a.b_c-d", longest} {
		connectTo(t, "127.0.0.1:1", &Options{Namespace: name})
	}
	for _, name := range []string{"-a", "a.", "Run", "a b", "a/b", "é", "a\n", longest + "x"} {
		if _, err := New("127.0.0.1:1", &Options{Namespace: name}); err == nil ||
			!strings.Contains(err.Error(), "the namespace must be 1 to 63 of a-z 0-9") {
			t.Fatal(name, err)
		}
	}
}
