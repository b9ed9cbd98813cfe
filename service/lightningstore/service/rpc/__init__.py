"""The gRPC face of the store: translation only."""
