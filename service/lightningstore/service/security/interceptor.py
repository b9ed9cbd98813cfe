"""Checks the token and the permission of each call before its request is read.

Installed only if tokens are configured, so that other servers do not pay for it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from lightningstore.service.engine.clock import Clock
from lightningstore.service.namespaces.service import VISIBLE
from lightningstore.service.rpc.status import abort
from lightningstore.service.rules.access_errors import (
    NamespaceDenied,
    PermissionDenied,
    TokenInvalid,
    TokenMissing,
)
from lightningstore.service.rules.errors import StoreError
from lightningstore.service.rules.namespaces import namespace_of
from lightningstore.service.security.masking import holds_keys, mask_keys
from lightningstore.service.security.permissions import (
    IN_NAMESPACE,
    IN_NO_NAMESPACE,
    OPEN,
    PERMISSIONS,
    UNLISTED,
    Role,
    Token,
)
from lightningstore.service.security.tokens import TokenFile
from lightningstore.v1 import service_pb2
from lightningstore.v1.error_reason_pb2 import ErrorReason

logger = logging.getLogger(__name__)

Details = grpc.HandlerCallDetails
Handler = Any  # grpc.RpcMethodHandler cannot be subscripted at run time

_SERVICE = service_pb2.DESCRIPTOR.services_by_name["LightningStoreService"]
#: Methods whose responses can contain API keys, with the type of the response.
_WITH_KEYS: dict[str, type[Message]] = {
    f"/{_SERVICE.full_name}/{method.name}": GetMessageClass(method.output_type)
    for method in _SERVICE.methods
    if holds_keys(method.output_type)
}
#: Minimum seconds between two warnings, so that rejected callers cannot fill the disk with log
#: lines.
QUIET = 10.0


class Guard(grpc.aio.ServerInterceptor):
    """Admits or rejects calls."""

    def __init__(self, tokens: TokenFile, clock: Clock) -> None:
        self._tokens = tokens
        self._clock = clock
        #: Number of rejected calls, by reason.
        self.refused: Counter[str] = Counter()
        self._warned_at = float("-inf")

    async def intercept_service(
        self, continuation: Callable[[Details], Awaitable[Handler]], handler_call_details: Details
    ) -> Handler:
        """Return the handler of a call, or one that rejects it."""
        method = handler_call_details.method
        if method in OPEN:
            return await continuation(handler_call_details)
        try:
            token = self._tokens.find(_bearer(handler_call_details.invocation_metadata))
            handler = await continuation(handler_call_details)
            if handler is None:
                return handler  # UNIMPLEMENTED, which is no secret from who has a token
            _check_permission(token, method, handler_call_details.invocation_metadata)
        except StoreError as error:
            return self._refusal(error)
        if token.namespaces is not None:
            VISIBLE.set(token.allows)  # in the context of this call
        if token.role is Role.READ_ONLY and method in _WITH_KEYS:
            return _masked(handler, _WITH_KEYS[method])
        return handler

    def check(self, metadata: Iterable[tuple[str, Any]], method: str, peer: str) -> None:
        """Admit or reject a call that did not arrive by gRPC.

        Raises:
            TokenMissing, TokenInvalid, TokenExpired, TokensUnreadable, PermissionDenied, NamespaceDenied, FieldInvalid
        """
        try:
            _check_permission(self._tokens.find(_bearer(metadata)), method, metadata)
        except StoreError as error:
            self._note(error, peer)
            raise

    def check_namespace(self, metadata: Iterable[tuple[str, Any]], namespace: str) -> None:
        """Check that the token of an admitted call allows a namespace that the request names itself.

        Raises:
            NamespaceDenied, and what `check` raises if the token was revoked meanwhile
        """
        token = self._tokens.find(_bearer(metadata))
        if not token.allows(namespace):
            error = NamespaceDenied(token.namespaces or ())
            self._note(error, "a span exporter")
            raise error

    def check_metrics(self, metadata: Iterable[tuple[str, Any]], peer: str) -> None:
        """Admit or reject a request for the metrics: any role, but no token that is limited to namespaces.

        Raises:
            TokenMissing, TokenInvalid, TokenExpired, TokensUnreadable, NamespaceDenied
        """
        try:
            token = self._tokens.find(_bearer(metadata))
            if token.namespaces is not None:  # The metrics name all namespaces.
                raise NamespaceDenied(token.namespaces)
        except StoreError as error:
            self._note(error, peer)
            raise

    @property
    def tokens_usable(self) -> bool:
        """Whether the tokens file can be read."""
        return self._tokens.usable

    def _refusal(self, error: StoreError) -> Handler:
        async def refuse(
            _: Any, context: grpc.aio.ServicerContext[Any, Any]
        ) -> AsyncIterator[bytes]:
            self._note(error, context.peer())
            await abort(context, error)
            yield b""  # never: but tracing reads the answers of whatever streams

        # A bidirectional stream, whatever the method is, because then the request is not read.
        return grpc.stream_stream_rpc_method_handler(refuse)

    def _note(self, error: StoreError, peer: str) -> None:
        self.refused[ErrorReason.Name(error.reason)] += 1  # type: ignore[arg-type]
        now = self._clock.monotonic()
        if now - self._warned_at >= QUIET:
            self._warned_at = now
            logger.warning(
                "%d call(s) rejected so far, the latest from %s: %s",
                self.refused.total(),
                peer,
                error.message,
            )


def _check_permission(token: Token, method: str, metadata: Iterable[tuple[str, Any]]) -> None:
    if token.role not in PERMISSIONS.get(method, UNLISTED):
        raise PermissionDenied(token.role.value, method.rpartition("/")[2])
    if token.namespaces is None or method in IN_NO_NAMESPACE:
        return
    if method not in IN_NAMESPACE or not token.allows(namespace_of(metadata)):
        raise NamespaceDenied(token.namespaces)


def _bearer(metadata: Iterable[tuple[str, Any]]) -> str:
    """Return the token of a call.

    Raises:
        TokenMissing, TokenInvalid
    """
    for key, value in metadata:
        if key == "authorization":
            scheme, _, secret = str(value).partition(" ")
            if scheme.lower() != "bearer":
                raise TokenInvalid
            return secret.strip()
    raise TokenMissing


def _masked(handler: Handler, kind: type[Message]) -> Handler:
    """Return a handler that masks the API keys in its responses.

    The handler of a call that is rejected is a bidirectional stream, whatever the method is.
    """

    def masked(answer: bytes) -> bytes:
        message = kind.FromString(answer)
        mask_keys(message)
        return message.SerializeToString()

    async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        return masked(await handler.unary_unary(request, context))

    async def answers(
        request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        stream = handler.stream_stream or handler.unary_stream
        async with aclosing(stream(request, context)) as unmasked:
            async for one in unmasked:
                yield masked(one)

    if not handler.response_streaming:
        return grpc.unary_unary_rpc_method_handler(answer)
    if handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(answers)
    return grpc.unary_stream_rpc_method_handler(answers)
