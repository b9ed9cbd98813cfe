"""Health and reflection: gRPC's own servicers, with messages decoded here, as those of all other calls are."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from lightningstore.service.rpc import wrap
from lightningstore.service.store import Store


def handler(service: ServiceDescriptor, servicer: Any, store: Store) -> grpc.GenericRpcHandler:
    """Return the handler of a service: for each of its methods the servicer's of the same name."""
    found: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in service.methods:
        call = getattr(servicer, method.name)
        if inspect.isasyncgenfunction(call):
            found[method.name] = _streaming(method, call, store)
        elif inspect.iscoroutinefunction(call):  # what the servicer leaves out is neither
            found[method.name] = _single(method, call, store)
    return grpc.method_handlers_generic_handler(service.full_name, found)


def _single(method: MethodDescriptor, call: Any, store: Store) -> Any:
    """Wrap a call that takes one message, and returns its answer or writes several to the context."""
    request_type, limit = GetMessageClass(method.input_type), store.limits.message_bytes

    async def handle(data: bytes, context: wrap.Context) -> Any:
        try:
            return await call(wrap.decode(request_type, data, limit), context)
        except grpc.aio.AbortError:
            raise
        except BaseException as error:
            await wrap.fail(context, error, method.full_name, closing=store.closing)
            raise

    make = (
        grpc.unary_stream_rpc_method_handler
        if method.server_streaming
        else grpc.unary_unary_rpc_method_handler
    )
    return make(handle, response_serializer=GetMessageClass(method.output_type).SerializeToString)


def _streaming(method: MethodDescriptor, call: Any, store: Store) -> Any:
    """Wrap a call that takes a stream of messages and yields its answers."""
    request_type, limit = GetMessageClass(method.input_type), store.limits.message_bytes

    async def handle(requests: AsyncIterator[bytes], context: wrap.Context) -> AsyncIterator[Any]:
        decoded = (wrap.decode(request_type, data, limit) async for data in requests)
        try:
            async for answer in call(decoded, context):
                yield answer
        except (grpc.aio.AbortError, GeneratorExit):
            raise
        except BaseException as error:
            await wrap.fail(context, error, method.full_name, closing=store.closing)
            raise

    return grpc.stream_stream_rpc_method_handler(
        handle, response_serializer=GetMessageClass(method.output_type).SerializeToString
    )
