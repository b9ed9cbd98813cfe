"""What carries the calls of a client: `AsyncLightningStore.over` and `LightningStore.over` take one.

GrpcTransport and AsyncGrpcTransport carry them over gRPC; ThreadedTransport carries asyncio calls over a
blocking GrpcTransport, from any number of event loops. AsyncTransport and Transport are the protocols that
another one has to follow.
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
