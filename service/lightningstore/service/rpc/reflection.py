"""gRPC's server reflection, v1 and v1alpha, so that grpcurl, ghz and similar tools need no .proto files.

The two versions differ in their names only, so gRPC's own servicer of v1alpha answers both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio
from lightningstore.service.rpc.calls import Calls, Context

METHOD = "ServerReflectionInfo"
V1ALPHA = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name
V1 = V1ALPHA.replace("v1alpha", "v1")


class Symbols:
    """The descriptor pool of the reflection servicer: the default pool, and the names that it lacks."""

    def __init__(self) -> None:
        """Build the descriptors of v1, which the package of v1alpha does not have."""
        self._pool = descriptor_pool.Default()
        file = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(file)
        # Not in the default pool, where they would collide with a package that defines them.
        self._v1 = descriptor_pool.DescriptorPool()
        self._v1.AddSerializedFile(_renamed(file).SerializeToString())

    def FindFileByName(self, name: str) -> FileDescriptor:  # noqa: N802
        """Return a file. Raises KeyError."""
        file: FileDescriptor = self._either(lambda pool: pool.FindFileByName(name))
        return file

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802
        """Return the file that defines a full name, which may be a method's. Raises KeyError."""
        file: FileDescriptor
        try:
            file = self._either(lambda pool: pool.FindFileContainingSymbol(symbol))
        except KeyError:
            service_name, _, method = symbol.rpartition(".")
            service = self._either(lambda pool: pool.FindServiceByName(service_name))
            if method not in service.methods_by_name:
                raise
            file = service.file
        return file

    def __getattr__(self, name: str) -> Any:
        """Return everything else, which is about extensions, from the default pool."""
        return getattr(self._pool, name)

    def _either(self, find: Callable[[Any], Any]) -> Any:
        try:
            return find(self._pool)
        except KeyError:
            return find(self._v1)


def _renamed(file: descriptor_pb2.FileDescriptorProto) -> descriptor_pb2.FileDescriptorProto:
    """Return the file of v1alpha with the names of v1."""
    file.name = "grpc/reflection/v1/reflection.proto"
    file.package = "grpc.reflection.v1"
    file.ClearField("options")
    for message in file.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace("v1alpha", "v1")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace("v1alpha", "v1")
        method.output_type = method.output_type.replace("v1alpha", "v1")
    return file


def reflection(services: tuple[str, ...], calls: Calls) -> tuple[grpc.GenericRpcHandler, ...]:
    """Return the handlers of both versions, for these services and their own."""
    servicer = aio.ReflectionServicer((*services, V1, V1ALPHA), pool=Symbols())

    async def answers(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[bytes]:
        async for answer in servicer.ServerReflectionInfo(requests, context):
            yield answer.SerializeToString()

    request_type = reflection_pb2.ServerReflectionRequest
    return tuple(
        grpc.method_handlers_generic_handler(
            name, {METHOD: calls.both_streams(f"{name}/{METHOD}", request_type, answers)}
        )
        for name in (V1, V1ALPHA)
    )
