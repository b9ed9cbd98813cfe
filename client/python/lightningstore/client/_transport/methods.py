"""The methods of the contract, by their names there."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from lightningstore.v1 import namespace_pb2, service_pb2

SERVICE = service_pb2.DESCRIPTOR.services_by_name["LightningStoreService"]
NAMESPACES = namespace_pb2.DESCRIPTOR.services_by_name["NamespaceService"]
#: The methods of both services: no two have the same name.
METHODS: dict[str, MethodDescriptor] = {
    method.name: method for service in (SERVICE, NAMESPACES) for method in service.methods
}


def method_descriptor(name: str) -> MethodDescriptor:
    """Return the contract's description of a method. Raises ValueError for an unknown one."""
    method = METHODS.get(name)
    if method is None:
        raise ValueError(f"the contract has no method {name!r}")
    return method


def method_path(name: str) -> str:
    """Return the path of a method on the wire."""
    method = method_descriptor(name)
    return f"/{method.containing_service.full_name}/{method.name}"


def answer_type(name: str) -> type[Message]:
    """Return the class of a method's responses."""
    return GetMessageClass(method_descriptor(name).output_type)


def repeats_are_harmless(name: str, request: Any) -> bool:
    """Tell whether a call can be retried after a lost response.

    Either the contract declares the method idempotent, or the request has ids by which the server recognises it.
    """
    level = method_descriptor(name).GetOptions().idempotency_level
    if level != MethodOptions.IDEMPOTENCY_UNKNOWN:
        return True
    if getattr(request, "request_id", ""):
        return True
    specs = getattr(request, "rollouts", ())
    return bool(specs) and all(spec.rollout_id for spec in specs)
