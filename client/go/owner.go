package lightningstore

import (
	"context"
	"errors"
	"io"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	// Trailer with the address, as host:port, of the server that owns the namespace of a call.
	ownerKey = "x-lightning-owner"
	// Time that the owner has to accept the connection, and until it is tried again if it did not.
	ownerConnectTime = 3 * time.Second
	ownerRetryTime   = 60 * time.Second
)

// An address that a client follows: a host, or an IPv6 address in brackets, and a port.
var ownerAddress = regexp.MustCompile(`^([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.%]{2,60}\]):[0-9]{1,5}$`)

// owner is the way to the server that owns the client's namespace, where several servers share the namespaces. A server
// answers for namespaces that another server owns, and its answers name the owner in a trailer. The client then
// connects to the owner beside its first connection, and goes on there once that is connected. Calls never wait for it:
// where the owner cannot be reached from here, or no longer owns the namespace, they take the first connection. What
// the owner answers is not looked at, so that no call is led on further.
type owner struct {
	// dial connects to an address with the credentials of the first connection.
	dial func(address string) (*grpc.ClientConn, error)

	current atomic.Pointer[grpc.ClientConn] // nil: use the first connection
	mutex   sync.Mutex
	busy    bool // connecting
	retryAt time.Time
	closed  bool
}

// learn connects to the owner that the trailer of a call over the first connection names. It returns at once.
func (o *owner) learn(trailer metadata.MD) {
	addresses := trailer.Get(ownerKey)
	if len(addresses) == 0 || !ownerAddress.MatchString(addresses[0]) || strings.HasPrefix(addresses[0], "unix:") {
		return
	}
	o.mutex.Lock()
	defer o.mutex.Unlock()
	if o.closed || o.busy || o.current.Load() != nil || time.Now().Before(o.retryAt) {
		return
	}
	o.busy = true
	go o.connect(addresses[0])
}

func (o *owner) connect(address string) {
	conn, err := o.dial(address)
	ready := err == nil && waitReady(conn)
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.busy = false
	if ready && !o.closed {
		o.current.Store(conn)
		return
	}
	o.retryAt = time.Now().Add(ownerRetryTime)
	if err == nil {
		_ = conn.Close()
	}
}

func waitReady(conn *grpc.ClientConn) bool {
	ctx, cancel := context.WithTimeout(context.Background(), ownerConnectTime)
	defer cancel()
	conn.Connect()
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		if !conn.WaitForStateChange(ctx, state) {
			return false
		}
	}
	return true
}

// failed notes how a call over a connection ended, and reports whether it may succeed over the first connection. used is
// nil for a call over that one. A call is also canceled by a server that shuts down, and by another call at the owner
// that failed and so closed the connection.
func (o *owner) failed(ctx context.Context, used *grpc.ClientConn, ended error) bool {
	if used == nil || ended == nil || errors.Is(ended, io.EOF) || ctx.Err() != nil {
		return false
	}
	if status.Code(ended) != codes.Canceled && !errors.Is(convert(ctx, ended), ErrUnavailable) {
		return false
	}
	o.mutex.Lock()
	defer o.mutex.Unlock()
	if o.current.CompareAndSwap(used, nil) {
		_ = used.Close()
	}
	return !o.closed
}

// close closes the connection. Calls in progress fail.
func (o *owner) close() {
	o.mutex.Lock()
	defer o.mutex.Unlock()
	o.closed = true
	if conn := o.current.Swap(nil); conn != nil {
		_ = conn.Close()
	}
}
