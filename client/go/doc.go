// Package lightningstore is the Go client of LightningStore, the control plane and trace store of agent
// reinforcement learning.
//
// An algorithm enqueues rollouts and waits for them with a [Client]. A [Runner] claims rollouts and calls a
// function for each. A [SpanExporter] sends the spans of any OpenTelemetry program. [Client.Service] returns
// the generated stubs, for calls without a helper.
//
// Every error of a call is an [*Error] with the reason and the details from the server.
package lightningstore
