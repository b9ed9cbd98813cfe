"""A server that forwards every call to another one, as a server does with calls of a namespace that it does not own."""

from __future__ import annotations

import grpc
import grpc.aio
from lightningstore.service.rpc import handlers, otlp
from lightningstore.service.rpc.forwarding import Peer

#: Whether requests and answers are streams, by path of the method.
KINDS = {
    f"/{handlers.SERVICE.full_name}/{method.name}": (
        method.client_streaming,
        method.server_streaming,
    )
    for method in handlers.SERVICE.methods
} | {f"/{otlp.SERVICE}/Export": (False, False)}
_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Forwarder(grpc.GenericRpcHandler):
    """The server. It is the handler of its own calls."""

    def __init__(self, owner: str) -> None:
        self._server = grpc.aio.server(options=_OPTIONS)
        self._server.add_generic_rpc_handlers((self,))
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        channel = grpc.aio.insecure_channel(owner, options=_OPTIONS)
        self.peer = Peer(owner, self.address, channel)

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler | None:
        method = handler_call_details.method
        kind = KINDS.get(method)
        return kind and self.peer.handler(method, streams_in=kind[0], streams_out=kind[1])

    async def start(self) -> None:
        """Listen."""
        await self._server.start()

    async def stop(self) -> None:
        """End all calls."""
        await self.peer.close()
        await self._server.stop(0)
