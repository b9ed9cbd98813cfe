"""How calls reach a server: channels of gRPC, retries, and the protocols of transports."""
