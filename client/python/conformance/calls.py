"""Calls any method of the service, whatever its kind, by the service's descriptor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from lightningstore.client.errors import DETAILS_KEY, from_rpc_error
from lightningstore.client.transports import GrpcTransport
from lightningstore.v1 import namespace_pb2, service_pb2

METHODS = {
    method.name: method
    for file in (service_pb2.DESCRIPTOR, namespace_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
}
TIMEOUT = 30.0


def is_method(name: str) -> bool:
    """Tell whether the contract has a method of that name."""
    return name in METHODS


class Call:
    """One call."""

    def __init__(self, transport: GrpcTransport, command: dict[str, Any]) -> None:
        self._transport = transport
        self._command = command
        self._method = METHODS[command["method"]]
        self._begun = threading.Event()
        self._call: Any = None

    def cancel(self) -> None:
        """Give it up, from any thread."""
        self._begun.wait(TIMEOUT)
        if self._call is not None:
            self._call.cancel()

    def run(self, started: Callable[[], object]) -> dict[str, Any]:
        """Make the call; return its answer."""
        responses: list[Any] = []
        try:
            self._begin()
            if self._method.server_streaming:
                self._call.initial_metadata()
                if not self._call.done() or self._call.code() == grpc.StatusCode.OK:
                    started()
                responses.extend(to_json(response) for response in self._call)
            else:
                responses.append(to_json(self._call.result()))
        except grpc.FutureCancelledError:
            return _failed(responses, {"code": "CANCELLED", "message": "cancelled here"})
        except grpc.RpcError as error:
            return _failed(responses, describe(error))
        except ValueError as error:  # the connection was closed a moment ago
            return _failed(responses, {"code": "CANCELLED", "message": str(error)})
        return {"responses": responses}

    def _begin(self) -> None:
        try:
            kind = GetMessageClass(self._method.input_type)
            requests = [json_format.ParseDict(r, kind()) for r in self._command["requests"]]
            sent: Any = iter(requests) if self._method.client_streaming else requests[0]
            entry = getattr(self._transport.stub(), self._method.name)
            begin = entry if self._method.server_streaming else entry.future
            self._call = begin(
                sent,
                timeout=self._command.get("timeout", TIMEOUT),
                metadata=tuple(self._command.get("metadata", {}).items()),
            )
        finally:
            self._begun.set()


def _failed(responses: list[Any], error: dict[str, Any]) -> dict[str, Any]:
    return {"responses": responses, "error": error}


def to_json(message: Message) -> Any:
    """Return a message in ProtoJSON."""
    return json_format.MessageToDict(message)


def describe(error: Any) -> dict[str, Any]:
    """Return an error as the protocol words it."""
    found = from_rpc_error(error)
    answer: dict[str, Any] = {"code": found.code.name, "message": found.message}
    if found.reason:
        answer |= {"reason": found.reason, "metadata": found.metadata, "domain": _domain(error)}
    if found.field_violations:
        answer["fields"] = [violation.field for violation in found.field_violations]
    if found.retry_delay is not None:
        answer["retry_delay"] = found.retry_delay
    return answer


def _domain(error: Any) -> str:
    info = error_details_pb2.ErrorInfo()
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            for detail in status_pb2.Status.FromString(value).details:
                detail.Unpack(info)
    return str(info.domain)
