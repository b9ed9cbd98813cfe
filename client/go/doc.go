// Package lightningstore is the Go client of LightningStore, the control plane and trace store of agent
// reinforcement learning.
//
// An algorithm enqueues rollouts and waits for them with a [Client]. A [Runner] claims rollouts and calls a
// function for each. A [SpanExporter] sends the spans of any OpenTelemetry program. What the helpers do not
// cover is reached through [Client.Service], the generated stubs.
//
// Every error of a call is an [*Error], which has the reason and the details that the server gave.
package lightningstore
