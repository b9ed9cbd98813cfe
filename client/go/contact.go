package lightningstore

import (
	"log/slog"
	"sync/atomic"
	"time"
)

// Time without an answer after which the first call of a client logs a warning.
const firstAnswer = 2 * time.Second

// contact warns once if the first call of a client does not reach a server for 2 seconds. Calls and runners
// retry while the server is away, so that programs can start in any order. A wrong address would therefore
// look like a call that hangs.
type contact struct {
	address string
	log     *slog.Logger
	// isConnected reports whether the connection is up. A first call may take long on a server that is there.
	isConnected func() bool
	// after calls a function after a duration: time.AfterFunc, or a replacement in tests.
	after func(time.Duration, func())

	timed atomic.Bool
	over  atomic.Bool
}

func newContact(address string, log *slog.Logger, isConnected func() bool) *contact {
	return &contact{address: address, log: log, isConnected: isConnected,
		after: func(delay time.Duration, do func()) { time.AfterFunc(delay, do) }}
}

// called starts the time with the first call.
func (c *contact) called() {
	if !c.over.Load() && c.timed.CompareAndSwap(false, true) {
		c.after(firstAnswer, c.report)
	}
}

// end records that the server has answered, or that the client was closed.
func (c *contact) end() {
	if !c.over.Load() { // a shared line of memory is written once
		c.over.Store(true)
	}
}

func (c *contact) report() {
	if !c.over.Load() && !c.isConnected() {
		c.log.Warn("no server has answered: is `lightningstore serve` running there?",
			"address", c.address, "after", firstAnswer)
	}
}
