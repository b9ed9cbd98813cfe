package lightningstore

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	pb "github.com/lightningstore/lightningstore/generated/go/lightningstore/v1"
	"google.golang.org/grpc"
)

// contacted returns a client whose contact logs into a buffer and waits for nothing: what it would do after a
// while is sent to the channel.
func contacted(t *testing.T, address string, isConnected bool) (*Client, *bytes.Buffer, <-chan func()) {
	t.Helper()
	client := connect(t, address)
	buffer, due := &bytes.Buffer{}, make(chan func(), 10)
	client.contact.log = slog.New(slog.NewTextHandler(buffer, nil))
	client.contact.isConnected = func() bool { return isConnected }
	client.contact.after = func(delay time.Duration, do func()) {
		if delay == firstAnswer {
			due <- do
		}
	}
	return client, buffer, due
}

func beat(client *Client) error {
	_, err := client.Service().Heartbeat(context.Background(), &pb.HeartbeatRequest{WorkerId: "w"})
	return err
}

func TestFirstCallThatReachesNoServerWarnsOnce(t *testing.T) {
	address := "127.0.0.1:" + freePort(t)
	client, log, due := contacted(t, address, false)
	for range 2 {
		if err := beat(client); err == nil {
			t.Fatal("a server answered")
		}
	}
	next(t, due, "the time of the first call")()
	if len(due) != 0 {
		t.Fatal("another call is timed")
	}
	text := log.String()
	if strings.Count(text, "\n") != 1 || !strings.Contains(text, "address="+address) ||
		!strings.Contains(text, "is `lightningstore serve` running there?") || !strings.Contains(text, "WARN") {
		t.Fatal(text)
	}
}

func TestServersThatAnswerCauseNoWarning(t *testing.T) {
	for name, call := range map[string]func(*Client) error{
		"unary": beat,
		"stream": func(client *Client) error {
			for _, err := range client.Spans(context.Background(), &pb.QuerySpansRequest{RolloutId: "ro-1"}) {
				return err
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := &scripted{}
			server.onQuery = func(_ int, stream grpc.ServerStreamingServer[pb.QuerySpansResponse]) error {
				return stream.Send(&pb.QuerySpansResponse{})
			}
			client, log, due := contacted(t, serve(t, server).conn.Target(), false)
			if err := call(client); err != nil {
				t.Fatal(err)
			}
			next(t, due, "the time of the first call")()
			if log.Len() != 0 {
				t.Fatal(log)
			}
		})
	}
}

func TestSlowAnswersAndClosedClientsCauseNoWarning(t *testing.T) {
	for _, isConnected := range []bool{true, false} {
		client, log, due := contacted(t, "127.0.0.1:"+freePort(t), isConnected)
		if err := beat(client); err == nil {
			t.Fatal("a server answered")
		}
		if !isConnected {
			_ = client.Close()
		}
		next(t, due, "the time of the first call")()
		if log.Len() != 0 {
			t.Fatal(log)
		}
	}
}

func TestTimeOfTheFirstCallRuns(t *testing.T) {
	reported := make(chan struct{})
	contact := newContact("nowhere", slog.New(slog.DiscardHandler), func() bool {
		close(reported)
		return true
	})
	contact.called()
	next(t, reported, "the report")
}
