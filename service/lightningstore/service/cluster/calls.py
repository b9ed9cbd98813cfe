"""The calls of cluster.proto, which only translate."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.message_factory import GetMessageClass
from lightningstore.service.cluster.cluster import Cluster, Member
from lightningstore.service.namespaces.directory import Directory
from lightningstore.service.rpc.calls import Calls, Handler
from lightningstore.service.rules.errors import FieldInvalid, NamespaceNotFound
from lightningstore.service.rules.namespaces import check_namespace
from lightningstore.v1 import cluster_pb2
from lightningstore.v1.cluster_pb2 import (
    ListServersRequest,
    ListServersResponse,
    MoveNamespaceRequest,
    MoveNamespaceResponse,
    Server,
)

SERVICE = cluster_pb2.DESCRIPTOR.services_by_name["ClusterService"]


class ClusterCalls:
    """The calls of cluster.proto, on one of several servers or on a single one."""

    def __init__(self, directory: Directory, cluster: Cluster | None, address: str) -> None:
        """Take the namespaces, the servers that share them, and the address of this server."""
        self._directory = directory
        self._cluster = cluster
        self._address = address

    async def list_servers(self, _: ListServersRequest) -> ListServersResponse:
        """Return the servers."""
        if self._cluster is None:
            names = tuple(store.engine.namespace for store in self._directory.open_stores())
            members = [Member(self._address, names)]
        else:
            members = await self._cluster.members()
        return ListServersResponse(
            servers=[
                Server(
                    address=member.address,
                    draining=member.is_draining,
                    namespaces=sorted(member.namespaces),
                )
                for member in sorted(members)
            ]
        )

    async def move_namespace(self, request: MoveNamespaceRequest) -> MoveNamespaceResponse:
        """Choose the server of a namespace."""
        check_namespace("name", request.name)
        if self._cluster is None:
            if self._directory.known(request.name) is None:
                raise NamespaceNotFound(request.name)
            if request.address not in ("", self._address):
                raise FieldInvalid("address", "this is a single server, which has all namespaces")
        else:
            await self._cluster.move(request.name, request.address)
        return MoveNamespaceResponse()


def handlers(
    directory: Directory, cluster: Cluster | None, address: str, calls: Calls
) -> dict[str, Handler]:
    """Return a handler for each method of ClusterService, by its name."""
    operations = ClusterCalls(directory, cluster, address)
    bound: dict[str, Callable[[Any], Awaitable[Any]]] = {
        "ListServers": operations.list_servers,
        "MoveNamespace": operations.move_namespace,
    }
    return {
        method.name: calls.unary(
            method.full_name, GetMessageClass(method.input_type), bound[method.name]
        )
        for method in SERVICE.methods
    }
