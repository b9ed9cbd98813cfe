"""Transports, which carry the calls of clients. `AsyncLightningStore.over` and `LightningStore.over` take one.

`GrpcTransport` and `AsyncGrpcTransport` carry calls over gRPC. `ThreadedTransport` carries asyncio calls over a blocking
`GrpcTransport`, from any number of event loops. `AsyncTransport` and `Transport` are the protocols for transports of
your own.
"""

from __future__ import annotations

from lightningstore.client._transport.bridge import ThreadedTransport
from lightningstore.client._transport.grpc_async import AsyncGrpcTransport
from lightningstore.client._transport.grpc_sync import GrpcTransport, PendingCall
from lightningstore.client._transport.protocols import (
    AsyncServerStream,
    AsyncTransport,
    ServerStream,
    Transport,
)

__all__ = [
    "AsyncGrpcTransport",
    "AsyncServerStream",
    "AsyncTransport",
    "GrpcTransport",
    "PendingCall",
    "ServerStream",
    "ThreadedTransport",
    "Transport",
]
