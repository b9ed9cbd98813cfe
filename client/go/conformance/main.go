// Command conformance is the Go driver of the conformance tests. It reads commands from stdin, one JSON
// object per line, executes them with this client, and writes the answers to stdout.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"sync"

	lightningstore "github.com/lightningstore/lightningstore/client/go"
)

// command is one line of stdin.
type command struct {
	ID              json.RawMessage   `json:"id"`
	Op              string            `json:"op"`
	Method          string            `json:"method"`
	Requests        []json.RawMessage `json:"requests"`
	Timeout         *float64          `json:"timeout"`
	Metadata        map[string]string `json:"metadata"`
	Target          json.RawMessage   `json:"target"`
	WorkerID        string            `json:"worker_id"`
	Concurrency     int               `json:"concurrency"`
	MaxRollouts     int               `json:"max_rollouts"`
	HeartbeatPeriod float64           `json:"heartbeat_period"`
	Queues          []string          `json:"queues"`
	Exporter        string            `json:"exporter"`
	RolloutID       string            `json:"rollout_id"`
	AttemptID       string            `json:"attempt_id"`
	Spans           []string          `json:"spans"`
}

// answer is one line of stdout without its id.
type answer map[string]any

// driver holds the connection and the running commands.
type driver struct {
	address string
	out     sync.Mutex

	mu      sync.Mutex
	client  *lightningstore.Client
	cancels map[string]context.CancelFunc
	runners map[string]*lightningstore.Runner
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: conformance ADDRESS")
		os.Exit(2)
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	client, err := lightningstore.New(os.Args[1], nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	d := &driver{address: os.Args[1], client: client,
		cancels: map[string]context.CancelFunc{}, runners: map[string]*lightningstore.Runner{}}
	lines := bufio.NewReader(os.Stdin)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 1 {
			d.take(line)
		}
		if err != nil {
			return // the end of stdin: what still runs ends with the process
		}
	}
}

// take starts the command of a line. Commands that only affect other commands are executed at once, in the
// order of the lines; the others run concurrently.
func (d *driver) take(line []byte) {
	var c command
	if err := json.Unmarshal(line, &c); err != nil {
		fmt.Fprintf(os.Stderr, "no command: %v: %.200s\n", err, line)
		return
	}
	switch c.Op {
	case "call", "runner":
		ctx, cancel := context.WithCancel(context.Background())
		d.mu.Lock()
		d.cancels[string(c.ID)] = cancel
		client := d.client
		d.mu.Unlock()
		if c.Op == "call" {
			go d.call(ctx, client, c)
		} else {
			d.startRunner(ctx, c)
		}
	case "cancel":
		d.cancel(string(c.Target))
		d.answer(c, answer{"ok": true})
	case "stop":
		d.mu.Lock()
		runner := d.runners[string(c.Target)]
		d.mu.Unlock()
		if runner != nil {
			runner.Stop()
		}
		d.answer(c, answer{"ok": true})
	case "reconnect":
		d.reconnect(c)
	case "export":
		d.mu.Lock()
		client := d.client
		d.mu.Unlock()
		go d.export(client, c)
	default:
		d.answer(c, answer{"unsupported": fmt.Sprintf("no op %q", c.Op)})
	}
}

func (d *driver) cancel(target string) {
	d.mu.Lock()
	cancel := d.cancels[target]
	d.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

func (d *driver) reconnect(c command) {
	client, err := lightningstore.New(d.address, nil)
	if err != nil {
		d.answer(c, answer{"error": describe(err)})
		return
	}
	d.mu.Lock()
	old := d.client
	d.client = client
	d.mu.Unlock()
	if err := old.Close(); err != nil {
		slog.Warn("connection not closed well", "error", err)
	}
	d.answer(c, answer{"ok": true})
}

// answer writes a line.
func (d *driver) answer(c command, what answer) {
	what["id"] = c.ID
	line, err := json.Marshal(what)
	if err != nil {
		line = fmt.Appendf(nil, `{"id": %s, "error": {"code": "INTERNAL", "message": %q}}`, c.ID, err.Error())
	}
	d.out.Lock()
	defer d.out.Unlock()
	if _, err := os.Stdout.Write(append(line, '\n')); err != nil {
		os.Exit(1) // stdout is closed
	}
}
