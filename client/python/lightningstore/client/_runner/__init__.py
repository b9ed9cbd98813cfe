"""What the runner is made of: claims, execution, heartbeats, tracing."""
